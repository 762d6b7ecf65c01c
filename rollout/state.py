"""A rollout as its endpoint's stack keeps it: config key `lepton:rollout`, in the config file and in every update.

The file says where the rollout is, so that a driver that was killed is followed by another; the backend's history has
it too, for a checkout that hasn't. Who changes it holds the endpoint (`Project.holding`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from infra.settings.rollout import RolloutSettings, StrategyName
from rollout.strategies import Step

Phase = Literal[
    "preparing",  # bringing the step's capacity up, and warming versions up
    "moving",  # setting the step's weights
    "baking",  # gates look at it
    "finishing",  # the last step has passed: hooks, and the old side's capacity
    "awaiting approval",
    "paused",
    "held",  # a gate could not say, or failed, and nothing may go on by itself
    "taking back",
    "succeeded",
    "taken back",
    "aborted",
]

ENDED = ("succeeded", "taken back", "aborted")
"""Phases of a rollout that is over; its state leaves the config then, and stays in the history."""

Request = Literal["pause", "resume", "promote", "abort"]


class GateOutcome(BaseModel):
    """What one gate said of one version at the end of a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    version: str
    verdict: Literal["pass", "fail", "inconclusive"]
    reason: str


class Follows(BaseModel):
    """What the stack must export for an update to be the next of its rollout; the program checks it under the lock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, int]
    driver: str | None
    """None: no rollout was there."""


class RolloutState(BaseModel):
    """Where a rollout is. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Unique, and in order of time: `20261121-154220-3f2a`."""
    by: str
    """Who started it."""
    driver: str
    """Names the one process that may act; whoever takes over writes another."""
    strategy: StrategyName
    settings: RolloutSettings
    """As they were when it started: a later edit of the endpoint's own is for the next."""
    initial: Step
    """What the endpoint was like before; what taking back restores."""
    revision: int | None
    """The endpoint's revision then."""
    baseline: str
    """The version that others are judged against."""
    candidates: tuple[str, ...]
    """Versions that gain."""
    steps: tuple[Step, ...]
    step: int = 0
    """Index of the step that is being made, or in force."""
    phase: Phase = "preparing"
    since: str
    """When the phase began."""
    started: str
    reason: str = ""
    """Of what it waits for, or why it was taken back."""
    request: Request | None = None
    """What somebody asked of the driver, until it does so."""
    outcomes: tuple[GateOutcome, ...] = ()
    """Of the gates of the last step that was judged."""
    follows: Follows | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED
