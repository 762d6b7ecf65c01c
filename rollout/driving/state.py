"""A rollout as its endpoint's stack keeps it: config key `lepton:rollout`, in the config file and in every update.

The file says where the rollout is, so that a driver that was killed is followed by another; the backend's history has
it too, for a checkout that hasn't. Who changes it holds the endpoint (`Project.holding`). Pure but for `find`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from infra.errors import UserError
from infra.settings import SettingsError, parse_settings
from infra.settings.fence import Follows
from infra.settings.rollout import RolloutSettings, StrategyName
from rollout.project import ROLLOUT_KEY, StackConfig
from rollout.strategies import Step

if TYPE_CHECKING:
    from pulumi.automation import UpdateSummary

    from rollout.pulumi_stack import PulumiStack

Phase = Literal[
    "awaiting approval",
    "waiting",  # for quiet hours to end, or the environment's freeze to be lifted
    "preparing",  # bringing the step's capacity up, and warming versions up
    "moving",  # setting the step's weights
    "baking",  # gates look at it
    "finishing",  # the last step has passed: the old side is kept for a while, and then scaled down
    "paused",
    "held",  # a gate could not say, or failed, and nothing may go on by itself
    "taking back",
    "succeeded",
    "taken back",
    "aborted",
]

ENDED = ("succeeded", "taken back", "aborted")
"""Phases of a rollout that is over; its last update has one, and the config file has the rollout no more then."""

STOPPED = ("paused", "held")
"""Phases in which no driver acts, until somebody says `resume`, `promote` or `abort`."""

_NEXT: Mapping[Phase, frozenset[Phase]] = {
    "awaiting approval": frozenset({"waiting", "paused", "held", "taking back"}),
    "waiting": frozenset({"preparing", "paused", "held", "taking back"}),
    "preparing": frozenset({"moving", "paused", "held", "taking back"}),
    "moving": frozenset({"baking", "paused", "held", "taking back"}),
    "baking": frozenset({"awaiting approval", "waiting", "finishing", "paused", "held", "taking back"}),
    "finishing": frozenset({"succeeded", "paused", "held", "taking back"}),
    "paused": frozenset({"awaiting approval", "waiting", "finishing", "taking back"}),
    "held": frozenset({"awaiting approval", "waiting", "finishing", "taking back"}),
    "taking back": frozenset({"taken back", "aborted"}),
    "succeeded": frozenset(),
    "taken back": frozenset(),
    "aborted": frozenset(),
}

_TRAFFIC = ("variants", "shadow", "baseline")
"""What of an endpoint's config a rollout sets."""

Request = Literal["pause", "promote", "abort"]


class RequestError(UserError):
    """What was asked of a rollout can't be done where it is."""


class GateOutcome(BaseModel):
    """What one gate said of one version at the end of a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    version: str
    verdict: Literal["pass", "fail", "inconclusive"]
    reason: str


class RolloutState(BaseModel):
    """Where a rollout is. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Unique, and in order of time: `20261121-154220-3f2a`."""
    by: str
    """Who started it."""
    driver: str
    """Names the one process that may act; whoever takes over writes another. Empty: nobody has yet."""
    turn: int = 0
    """Counts drivers: of two states of a rollout, as two checkouts have them, the one with the greater is the newer."""
    strategy: StrategyName
    settings: RolloutSettings
    """As they were when it started: a later edit of the endpoint's own is for the next."""
    initial: Step
    """What the endpoint was like before; what taking back restores."""
    revision: int | None = None
    """The endpoint's revision then."""
    named_baseline: str | None = None
    """The baseline that the endpoint's config named before, if it named one."""
    baseline: str
    """The version that others are judged against."""
    candidates: tuple[str, ...]
    """Versions that gain."""
    steps: tuple[Step, ...]
    step: int = 0
    """Index of the step that is being made, or in force."""
    applied: int = 0
    """How many of the steps have had their weights set."""
    judged: int = 0
    """How many of the steps have been passed. Once all are, none is baked again."""
    phase: Phase = "waiting"
    since: str
    """When the phase began."""
    started: str
    spent: float = 0.0
    """Seconds that drivers have spent on it until then."""
    reason: str = ""
    """Of what it waits for, or why it was taken back."""
    approved: bool = False
    """Whether somebody has approved the step."""
    request: Request | None = None
    """What somebody asked of the driver, until it does so; an abort, until it is done."""
    asked_by: str = ""
    outcomes: tuple[GateOutcome, ...] = ()
    """Of the gates of the last step that was judged."""
    follows: Follows | None = None

    @model_validator(mode="after")
    def _is_at_one_of_its_steps(self) -> RolloutState:
        if not 0 <= self.step < len(self.steps):
            raise ValueError(f"step {self.step} is none of its {len(self.steps)} steps, which count from 0")
        return self

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def stopped(self) -> bool:
        return self.phase in STOPPED

    @property
    def current(self) -> Step:
        """The step that is being made, or in force."""
        return self.steps[self.step]

    @property
    def before(self) -> Step:
        """What the endpoint was like before that step."""
        return self.steps[self.step - 1] if self.step else self.initial

    @property
    def target(self) -> dict[str, int]:
        """The weights that it ends with."""
        return self.steps[-1].weights

    @property
    def newcomers(self) -> list[str]:
        """Versions that have to answer before the current step's weights are set.

        Those that get weight, or a copy of requests, for the first time by it; and where nothing new gets any, those
        that it has replicas of for the next step.
        """
        served = {version for step in (self.initial, *self.steps[: self.step]) for version in _serving(step)}
        found = _serving(self.current)
        if not self.current.percent and not self.current.shadow:
            following = self.steps[self.step + 1 : self.step + 2]
            found += [version for step in following for version in _serving(step) if self.current.capacity.get(version)]
        return [version for version in dict.fromkeys(found) if version not in served]

    @property
    def in_force(self) -> Step:
        """What it last gave the endpoint, as far as the state says."""
        if self.phase in ("taken back", "aborted") or not self.applied:
            return self.initial
        return self.steps[self.applied - 1]

    @property
    def passed_all(self) -> bool:
        """Whether the last step has been passed."""
        return self.judged == len(self.steps)

    def summary(self) -> dict[str, Any]:
        """For scripts. Steps count from 1."""
        return {
            "rollout": self.id,
            "strategy": self.strategy,
            "phase": self.phase,
            "reason": self.reason,
            "step": self.step + 1,
            "steps": len(self.steps),
            "weights": self.in_force.weights,
            "target": self.target,
            "baseline": self.baseline,
            "candidates": list(self.candidates),
            "by": self.by,
            "started": self.started,
            "since": self.since,
            "outcomes": [outcome.model_dump() for outcome in self.outcomes],
        }

    def document(self) -> dict[str, Any]:
        """The value of its config key. What is as by default is left out, but for what others read of it."""
        read = {"step": self.step, "phase": self.phase}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=set(read)) | read

    def enter(self, phase: Phase, at: datetime, reason: str = "", *, spent: float = 0.0) -> RolloutState:
        """The state in another phase, `spent` seconds later. Raises RequestError where no way leads there."""
        if phase not in _NEXT[self.phase]:
            raise RequestError(f"rollout {self.id} is {self.phase}, and can't be {phase} after that")
        changed = {"phase": phase, "since": at.isoformat(), "reason": reason, "spent": round(self.spent + spent, 1)}
        applied = {"applied": self.step + 1} if phase == "baking" else {}
        return self.model_copy(update=changed | applied)

    def passed(self, at: datetime, outcomes: Sequence[GateOutcome] = (), *, spent: float = 0.0) -> RolloutState:
        """The state once the current step is done: at the next one's beginning, or finishing after the last."""
        judged = self.model_copy(update={"outcomes": tuple(outcomes), "judged": self.step + 1})
        if self.step == len(self.steps) - 1:
            return judged.enter("finishing", at, spent=spent)
        following = judged.model_copy(update={"step": self.step + 1, "approved": False})
        return following.enter(following.entry, at, spent=spent)

    def resumed(self, at: datetime) -> RolloutState:
        """The state once somebody has said that it may go on: at the beginning of the step that it stopped in.

        The time that it may take begins anew. Raises RequestError where it has not stopped.
        """
        if not self.stopped:
            raise RequestError(f"rollout {self.id} is {self.phase}, and not stopped")
        return self.model_copy(update={"request": None, "spent": 0.0}).enter(self.entry, at)

    def promoted(self, at: datetime, by: str, *, spent: float = 0.0) -> RolloutState:
        """The state once somebody has said not to wait any longer for what it waits for.

        A step that stopped before its weights were set isn't skipped: it goes on as by `resumed`. Raises RequestError
        where it waits for nothing.
        """
        state = self.model_copy(update={"request": None, "asked_by": by})
        match self.phase:
            case "awaiting approval":
                return state.model_copy(update={"approved": True}).enter("waiting", at, spent=spent)
            case "waiting":
                return state.enter("preparing", at, f"promoted by {by}", spent=spent)
            case "paused" | "held" if self.applied <= self.step:
                return state.resumed(at)
            case "paused" | "held":
                return state.model_copy(update={"spent": 0.0}).passed(at, self.outcomes)
            case "baking":
                return state.passed(at, self.outcomes, spent=spent)
            case "finishing":
                return state.model_copy(update={"reason": f"promoted by {by}"})
            case _:
                raise RequestError(f"rollout {self.id} is {self.phase}: there is nothing to skip")

    def aborted(self, by: str) -> RolloutState:
        """The state once somebody has said that it is to be taken back."""
        return self.asked("abort", by).model_copy(update={"phase": "taking back", "reason": f"aborted by {by}"})

    def asked(self, request: Request, by: str) -> RolloutState:
        """The state with a request to its driver."""
        return self.model_copy(update={"request": request, "asked_by": by})

    @property
    def entry(self) -> Phase:
        """The phase that the current step begins with."""
        return "awaiting approval" if self.current.approval and not self.approved else "waiting"


def parse_state(document: object, endpoint: StackConfig) -> RolloutState:
    """The state that a config key's value says. Raises SettingsError, naming the file and what is wrong in it."""
    try:
        return parse_settings(RolloutState, document, file=endpoint.shown, key=ROLLOUT_KEY)
    except SettingsError as error:
        raise SettingsError(
            f"{error}\n{endpoint.shown}: {ROLLOUT_KEY} is written by `lepton rollout`, not by hand: put it back as Git "
            f"or the stack's history has it; to give the rollout up, take the key out, and then run "
            f"`lepton rollout abort {endpoint.address}`"
        ) from None


def read_state(endpoint: StackConfig) -> RolloutState | None:
    """The state of the rollout that the endpoint's config file has, if it has one. Raises as `parse_state`.

    One that has ended leaves the file once its last update is done; before that, it is still at its last phase.
    """
    document = endpoint.rollout()
    state = None if document is None else parse_state(document, endpoint)
    if state is None or not state.ended:
        return state
    unfinished: Phase = "finishing" if state.phase == "succeeded" else "taking back"
    return state.model_copy(update={"phase": unfinished})


def find_state(endpoint: StackConfig, stack: PulumiStack) -> RolloutState | None:
    """The rollout that is under way: as the config file says, or the stack's last update where that knows more.

    The latter is for a checkout that has no rollout, or one that was driven on from elsewhere. None where there is
    none, or it has ended. Raises as `parse_state`, and RequestError where the stack's is another than the file's.
    """
    state, made = read_state(endpoint), _last_in_history(endpoint, stack)
    if state is not None and made is not None and not made.ended and made.id != state.id:
        raise RequestError(
            f"{endpoint.address}: rollout {made.id} is under way, started by {made.by}, and {endpoint.shown} has "
            f"rollout {state.id}: get the file as it is where that was started, or take {ROLLOUT_KEY} out of it"
        )
    if made is not None and (state is None or (made.id == state.id and made.turn > state.turn)):
        return None if made.ended else made
    return state


def adopted(endpoint: StackConfig, stack: PulumiStack, found: RolloutState) -> dict[str, Any]:
    """The endpoint's config by its key, with the traffic of the stack's last update, where `find_state` found it there.

    A file that does not know of a rollout, or of how far it is, has older variants than the rollout goes by. Empty
    where the file has that state, or where the history keeps the update's config to itself, as it holds a secret.
    """
    key = f"lepton:{endpoint.kind}"
    last = None if read_state(endpoint) == found else _last_update(stack)
    if last is None or key not in last.config or last.config[key].secret:
        return {}
    there = json.loads(last.config[key].value)
    own = {name: value for name, value in endpoint.document().items() if name not in _TRAFFIC}
    return {key: own | {name: there[name] for name in _TRAFFIC if name in there}}


def _last_in_history(endpoint: StackConfig, stack: PulumiStack) -> RolloutState | None:
    """The rollout of the stack's last successful update."""
    last = _last_update(stack)
    if last is None or ROLLOUT_KEY not in last.config:
        return None
    return parse_state(json.loads(last.config[ROLLOUT_KEY].value), endpoint)


def _last_update(stack: PulumiStack) -> UpdateSummary | None:
    """The last update that was done; None where the stack was destroyed after it."""
    done = [
        update for update in stack.history() if update.result == "succeeded" and update.kind in ("update", "destroy")
    ]
    last = max(done, key=lambda update: update.start_time, default=None)
    return last if last is not None and last.kind == "update" else None


def _serving(step: Step) -> list[str]:
    """Versions that get requests, or copies of them."""
    return list(dict.fromkeys([*(version for version, weight in step.weights.items() if weight), *step.shadow]))
