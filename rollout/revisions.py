"""Revisions of an endpoint or of a version: its stack's successful updates that changed something, from the history."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from infra.errors import UserError
from rollout.author import unsigned
from rollout.driving.state import ENDED
from rollout.project import ROLLOUT_KEY

if TYPE_CHECKING:
    from pulumi.automation import UpdateSummary

_CHANGING = {"create", "update", "delete", "replace", "create-replacement", "delete-replaced"}


class NoSuchRevisionError(UserError):
    """The history has no such revision."""


@dataclass(frozen=True)
class Revision:
    """One successful update, with the whole config that it ran with."""

    number: int
    """Counted from 1 in the order of time: a self-managed backend numbers nothing itself."""
    document: dict[str, Any]
    """The value of the stack's own config key; empty where it holds secrets, which the history keeps to itself."""
    message: str
    started: datetime
    seconds: float
    git_commit: str | None
    by: str | None = None
    """Who ran it; of a bare `pulumi up` that is unknown, and the author of its Git commit stands here."""
    rollout: dict[str, Any] | None = None
    """The rollout that made it (`rollout/driving/state.py`), as last told while the revision was in force."""

    @property
    def weights(self) -> dict[str, int]:
        return {variant["version"]: variant["weight"] for variant in self.document.get("variants", [])}

    @property
    def traffic(self) -> tuple[dict[str, int], dict[str, Any] | None]:
        """What of the config decides who gets which requests: the weights above 0, and the shadow."""
        weights = {version: weight for version, weight in self.weights.items() if weight}
        return weights, self.document.get("shadow")

    @property
    def rollout_id(self) -> str | None:
        return self.rollout["id"] if self.rollout else None

    @property
    def is_between(self) -> bool:
        """Whether it is a rollout's step on the way: nothing that anybody meant to stay."""
        state = self.rollout
        if not state or state.get("phase") in ENDED:
            return False
        steps = state.get("steps")
        return bool(steps) and steps[-1]["weights"] != self.weights

    def summary(self) -> dict[str, Any]:
        state = self.rollout
        return {
            "revision": self.number,
            "weights": self.weights,
            "message": self.message,
            "started": self.started.isoformat(),
            "seconds": self.seconds,
            "git_commit": self.git_commit,
            "by": self.by,
            "rollout": self._rollout_summary(state) if state else None,
            "verdicts": list(state.get("outcomes", ())) if state else [],
        }

    def _rollout_summary(self, state: dict[str, Any]) -> dict[str, Any]:
        told = {key: state.get(key) for key in ("id", "strategy", "by", "phase")}
        return told | {"step": state.get("step", 0), "steps": len(state.get("steps", ()))}


def revisions(history: Iterable[UpdateSummary], key: str) -> list[Revision]:
    """The revisions in a stack's history, oldest first. `key`: the stack's config key, as `lepton:endpoint`.

    An update that changed nothing makes no revision, nor does one after which the stack was gone.
    """
    found: list[Revision] = []
    for update in sorted(history, key=lambda update: update.start_time):
        changes = update.resource_changes or {}
        changed = any(str(operation) in _CHANGING and count for operation, count in changes.items())
        if update.kind != "update" or update.result != "succeeded" or key not in update.config:
            continue
        document = _value(update, key) or {}
        rollout = _value(update, ROLLOUT_KEY)
        if found and not changed and found[-1].document == document:
            if rollout and rollout["id"] == found[-1].rollout_id:
                found[-1] = replace(found[-1], rollout=rollout)
            continue
        ended = update.end_time or update.start_time
        message, by = unsigned(update.message)
        found.append(
            Revision(
                number=len(found) + 1,
                document=document,
                message=message,
                started=update.start_time,
                seconds=(ended - update.start_time).total_seconds(),
                git_commit=update.environment.get("git.head"),
                by=by or update.environment.get("git.author.email") or update.environment.get("git.author"),
                rollout=rollout,
            )
        )
    return found


def _value(update: UpdateSummary, key: str) -> dict[str, Any] | None:
    """What an update's config had under the key; None where that is nothing, or holds secrets."""
    value = update.config.get(key)
    return None if value is None or value.secret else json.loads(value.value)


def is_up(history: Iterable[UpdateSummary]) -> bool:
    """Whether the stack is as its latest revision says: no update failed since then, and none destroyed it."""
    done = [update for update in history if update.kind in ("update", "destroy")]
    last = max(done, key=lambda update: update.start_time, default=None)
    return last is not None and last.kind == "update" and last.result == "succeeded"


def revision_at(found: list[Revision], moment: datetime) -> Revision | None:
    """The revision that was in force just before a moment."""
    return next((revision for revision in reversed(found) if revision.started < moment), None)


def in_force_until(found: list[Revision], revision: Revision) -> datetime | None:
    """When the next revision followed it; None: it is in force."""
    return next((later.started for later in found if later.number == revision.number + 1), None)


def revision_before(found: list[Revision], rollout_id: str | None = None) -> Revision:
    """What a rollback restores: the latest revision with other traffic than now that was meant to stay.

    The revisions of one rollout are one change: of the latest, the endpoint as it was before it is what is restored,
    and of earlier ones only what they came to. `rollout_id`: of the rollout that is under way, if one is; where it has
    made no revision yet, the one in force is what was before it.

    Raises:
        NoSuchRevisionError: where there is none.
    """
    now = found[-1]
    if rollout_id is not None and rollout_id != now.rollout_id:
        return now
    changes = [list(group) for _, group in groupby(found, key=lambda revision: revision.rollout_id or revision.number)]
    for change in reversed(changes[:-1]):
        last = change[-1]
        if last.document and not last.is_between and last.traffic != now.traffic:
            return last
    raise NoSuchRevisionError(
        "there is no earlier revision with other traffic to go back to; `lepton history` lists all that there are, and "
        "--to-revision takes any"
    )


def revision_led_by(found: list[Revision], version: str) -> Revision:
    """The latest revision in which a version had the greatest weight; before a rollout's steps, one meant to stay.

    Raises:
        NoSuchRevisionError: where there is none.
    """
    led = [
        revision for revision in found if revision.weights.get(version, 0) > max([0, *_weights_but(revision, version)])
    ]
    if not led:
        known = ", ".join(dict.fromkeys(version for revision in found for version in revision.weights))
        raise NoSuchRevisionError(
            f"in no revision had {version} the greatest weight; the history has {known}, and `lepton history` their "
            "weights"
        )
    return next((revision for revision in reversed(led) if not revision.is_between), led[-1])


def _weights_but(revision: Revision, version: str) -> list[int]:
    return [weight for other, weight in revision.weights.items() if other != version]


def revision_numbered(found: list[Revision], number: int) -> Revision:
    """Raises NoSuchRevisionError where there is none of that number."""
    for revision in found:
        if revision.number == number:
            return revision
    raise NoSuchRevisionError(f"there is no revision {number}; the history has 1 to {len(found)}")


def differences(old: Revision, new: Revision) -> dict[str, tuple[Any, Any]]:
    """What differs between two revisions' configs beside the weights: old and new value by key, as `timeouts.total`.

    None stands for a key that isn't there.
    """
    before, after = _leaves(old.document), _leaves(new.document)
    keys = sorted({key for key in before.keys() | after.keys() if key.partition(".")[0] != "variants"})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _leaves(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            found |= _leaves(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
