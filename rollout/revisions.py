"""Revisions of an endpoint: its successful updates that changed something, from the backend's history."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from infra.errors import UserError

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

    @property
    def weights(self) -> dict[str, int]:
        return {variant["version"]: variant["weight"] for variant in self.document["variants"]}

    def summary(self) -> dict[str, Any]:
        return {
            "revision": self.number,
            "weights": self.weights,
            "message": self.message,
            "started": self.started.isoformat(),
            "seconds": self.seconds,
            "git_commit": self.git_commit,
        }


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
        value = update.config[key]
        document: dict[str, Any] = {} if value.secret else json.loads(value.value)
        if found and not changed and found[-1].document == document:
            continue
        ended = update.end_time or update.start_time
        found.append(
            Revision(
                number=len(found) + 1,
                document=document,
                message=update.message,
                started=update.start_time,
                seconds=(ended - update.start_time).total_seconds(),
                git_commit=update.environment.get("git.head"),
            )
        )
    return found


def revision_before(found: list[Revision]) -> Revision:
    """The latest revision whose config differs from the current one's: what a rollback restores.

    Raises:
        NoSuchRevisionError: where there is none.
    """
    for revision in reversed(found[:-1]):
        if revision.document != found[-1].document:
            return revision
    raise NoSuchRevisionError("there is no earlier revision with another config to go back to")


def revision_numbered(found: list[Revision], number: int) -> Revision:
    """Raises NoSuchRevisionError where there is none of that number."""
    for revision in found:
        if revision.number == number:
            return revision
    raise NoSuchRevisionError(f"there is no revision {number}; the history has 1 to {len(found)}")
