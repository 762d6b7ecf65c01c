"""What a driver acts through: the stacks, the data plane, the metrics, the record, the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from infra.settings.rollout import Hook, Notification
from rollout.analysis.judge import Judge, Verdict
from rollout.analysis.samples import Look, Sampler
from rollout.capacity import Capacity, Refusal
from rollout.clock import Clock, SystemClock
from rollout.driving.hooks import run_hooks, tell
from rollout.driving.state import RolloutState
from rollout.driving.warming import warm_up
from rollout.project import Project, StackConfig
from rollout.records.record import Record
from rollout.release import Releases


class Sampling(Protocol):
    """`rollout.analysis.samples.Sampler`."""

    def look(self, versions: Sequence[str]) -> Look: ...


class Judging(Protocol):
    """`rollout.analysis.judge.Judge`."""

    def begin_step(self, index: int) -> None: ...
    def see(self, look: Look) -> None: ...
    def verdicts(self) -> list[Verdict]: ...
    def winner(self) -> str | None: ...
    def scores(self) -> dict[str, float]: ...


class Provisioning(Protocol):
    """`rollout.capacity.Capacity`."""

    def ensure(self, endpoint: StackConfig, needs: Mapping[str, int]) -> Mapping[str, float]: ...
    def reduce(self, endpoint: StackConfig, keeps: Mapping[str, int]) -> object: ...


class Recording(Protocol):
    """`rollout.records.record.Record`. Nothing of it raises: a rollout is worth more than its record."""

    def event(self, kind: str, at: datetime, **facts: Any) -> None: ...
    def look(self, step: int, look: Look, verdicts: Sequence[Verdict] = ()) -> None: ...
    def looks(self) -> Iterator[tuple[int, Look]]: ...
    def finish(self, state: RolloutState, at: datetime) -> None: ...


@dataclass(frozen=True)
class Means:
    project: Project
    releases: Releases
    capacity: Provisioning
    warm_up: Callable[[StackConfig, str], object]
    """Has a version of an endpoint answer its sample requests; raises a UserError where it doesn't."""
    sampler: Callable[[StackConfig, RolloutState], Sampling]
    judge: Callable[[RolloutState], Judging]
    record: Callable[[StackConfig, str], Recording]
    """Of the endpoint's rollout with that id."""
    run_hooks: Callable[[Sequence[Hook], Mapping[str, Any], Path], None]
    tell: Callable[[Sequence[Notification], str, str, Mapping[str, Any]], Sequence[str]]
    """Tells webhooks of such an event, and returns what went wrong."""
    clock: Clock
    say: Callable[[str], None]
    """Takes a line for whoever looks on."""


def means_of(project: Project, say: Callable[[str], None], refuse: Refusal = lambda model, version: None) -> Means:
    """The means of a driver in this process. `refuse`: why a version may not be brought back."""
    clock = SystemClock()
    releases = Releases(project, say, clock)

    def sampler(endpoint: StackConfig, state: RolloutState) -> Sampler:
        observer = releases.observer(endpoint)
        return Sampler(observer, endpoint.team, endpoint.endpoint.model, state.settings.gates, clock)

    return Means(
        project=project,
        releases=releases,
        capacity=Capacity(releases, project, say, clock, refuse),
        warm_up=lambda endpoint, version: warm_up(releases, project, endpoint, version, clock),
        sampler=sampler,
        judge=lambda state: Judge(state.settings, state.baseline, state.candidates),
        record=lambda endpoint, rollout: Record.of(project, endpoint, rollout, say),
        run_hooks=run_hooks,
        tell=tell,
        clock=clock,
        say=say,
    )
