"""The stages of a model version's life, and the conditions for each step between them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from model_packaging.errors import DeletionRefused, TransitionRefused


class Stage(StrEnum):
    """Where a model version is in its life."""

    DEVELOPMENT = "development"
    """Being worked on; the stage of every new version."""
    TESTING = "testing"
    """A candidate that is being evaluated."""
    RELEASED = "released"
    """May serve users."""
    DEPRECATED = "deprecated"
    """Still serves, but nothing new should depend on it."""
    RETIRED = "retired"
    """Serves nowhere, and never will again."""


TRANSITIONS: Mapping[Stage, tuple[Stage, ...]] = {
    Stage.DEVELOPMENT: (Stage.TESTING,),
    Stage.TESTING: (Stage.RELEASED, Stage.DEVELOPMENT),
    Stage.RELEASED: (Stage.DEPRECATED,),
    Stage.DEPRECATED: (Stage.RETIRED, Stage.RELEASED),
    Stage.RETIRED: (),
}
"""The stages that each leads to."""

PROMOTION: Mapping[Stage, Stage] = {Stage.DEVELOPMENT: Stage.TESTING, Stage.TESTING: Stage.RELEASED}
"""The step that a promotion takes."""


class Share(NamedTuple):
    """What a version has of an endpoint's traffic."""

    environment: str
    endpoint: str
    weight: int


@dataclass(frozen=True)
class Evidence:
    """What is known of a version that is to change its stage."""

    metrics: Collection[str] = ()
    """Those that it has evaluation results of."""
    makers: Collection[str] = ()
    """Who made it, built it or registered it: their own approval doesn't count."""
    approvers: Collection[str] = ()
    """Who approved it since it was last in development."""
    shares: Collection[Share] = ()
    """In any environment."""


def check_transition(
    version: str, stage: Stage, target: Stage, evidence: Evidence, *, who: str, approvals: int = 0
) -> None:
    """Whether `who` may move a version, named for errors, from `stage` to `target`.

    `approvals` is how many people besides its makers and `who` must have approved a version before it is released.

    Raises:
        TransitionRefused: with every condition that isn't met.
    """
    unmet = _unmet(stage, target, evidence, who, approvals)
    if unmet:
        raise TransitionRefused(version, stage, target, unmet)


def check_deletion(version: str, stage: Stage, stacks: Collection[str]) -> None:
    """Whether a version, named for errors, may be deleted from a store, while these stacks hold it.

    Raises:
        DeletionRefused: it is, or may be, served.
    """
    if stacks:
        raise DeletionRefused(f"{version} is in {', '.join(sorted(stacks))}; take those down first")
    if stage in (Stage.RELEASED, Stage.DEPRECATED):
        raise DeletionRefused(
            f"{version} is {stage}, and what may serve is not deleted; retire it first (lepton package retire)"
        )


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's, however they write it."""
    return _identity(one) == _identity(other)


def _unmet(stage: Stage, target: Stage, evidence: Evidence, who: str, approvals: int) -> list[str]:
    if target not in TRANSITIONS[stage]:
        return [_no_way(stage, target)]
    match target:
        case Stage.RELEASED:
            return _unmet_for_release(evidence, who, approvals)
        case Stage.RETIRED:
            return [
                f"{share.environment}: endpoint {share.endpoint} gives it weight {share.weight}; "
                "move that traffic to another version"
                for share in sorted(evidence.shares)
                if share.weight > 0
            ]
        case _:
            return []


def _no_way(stage: Stage, target: Stage) -> str:
    if target == stage:
        return f"it is {stage} already"
    leads = " or ".join(TRANSITIONS[stage])
    return f"{stage} leads to {leads}; take one step at a time" if leads else f"{stage} is final; build a new version"


def _unmet_for_release(evidence: Evidence, who: str, approvals: int) -> list[str]:
    unmet: list[str] = []
    if not evidence.metrics:
        unmet.append(
            "it has no evaluation results; evaluate it (lepton package evaluate), "
            "or give them in package.yaml under 'evaluation'"
        )
    involved = {_identity(name) for name in (*evidence.makers, who)}
    others = {_identity(name) for name in evidence.approvers} - involved
    if len(others) < approvals:
        needed = "an approval by another person" if approvals == 1 else f"approvals by {approvals} other people"
        given = sorted({name.strip() for name in evidence.approvers})
        unmet.append(
            f"it needs {needed} than who made it and who releases it, and has {len(others)}"
            + (f" (approved by {', '.join(given)})" if given else "")
        )
    return unmet


def _identity(name: str) -> str:
    return " ".join(name.split()).casefold()
