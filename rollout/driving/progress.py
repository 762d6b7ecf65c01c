"""What there is to show of a rollout that is under way: its state, its traffic, and what its record has seen last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from infra.contracts import ObservationError
from rollout.analysis.judge import Verdict
from rollout.analysis.samples import Counts
from rollout.clock import Clock
from rollout.driving.asking import is_driven
from rollout.driving.state import RolloutState, find_state, read_state
from rollout.project import Project, StackConfig
from rollout.records.record import Record, Seen, read_summary
from rollout.release import Releases

_WINDOW_SECONDS = 10.0
"""Over which rates are shown: a look a second is too few requests."""


@dataclass(frozen=True)
class Shown:
    """One version over the last seconds."""

    rate: float
    """Requests/s."""
    error_ratio: float | None
    """None without requests."""
    p95_ms: float | None
    """The upper bound of the bucket that has it; None where that is unknown."""


@dataclass(frozen=True)
class Progress:
    endpoint: str
    state: RolloutState
    driven: bool
    """Whether a process on this machine drives it."""
    weights: Mapping[str, int]
    """As configured."""
    observed: Mapping[str, int]
    """As the data plane has them; empty where it can't be read."""
    seen: Mapping[str, Shown]
    """By version; empty where nobody has looked for a while."""
    verdicts: tuple[Verdict, ...]
    """The last that were kept of the step."""
    problem: str
    """Why the last look saw nothing."""
    seconds_left: float | None
    """Of the bake, at least; None while nothing bakes."""

    def summary(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            **self.state.summary(),
            "driven": self.driven,
            "configured_weights": dict(self.weights),
            "observed_weights": dict(self.observed),
            "versions": {version: asdict(shown) for version, shown in self.seen.items()},
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "problem": self.problem,
            "seconds_left": self.seconds_left,
        }


def progress_of(
    project: Project, releases: Releases, endpoint: StackConfig, clock: Clock, *, in_file: bool = False
) -> Progress | None:
    """The progress of the endpoint's rollout; None where none is under way. `in_file`: as the config file knows it.

    Raises SettingsError when its state can't be used.
    """
    state = read_state(endpoint) if in_file else find_state(endpoint, releases.pulumi(endpoint))
    if state is None:
        return None
    seen = [each for each in Record.of(project, endpoint, state.id).seen() if each.step == state.step]
    try:
        observed = releases.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)["weights"]
    except ObservationError:
        observed = {}
    left = None
    if state.phase == "baking":
        since = (clock.now() - datetime.fromisoformat(state.since)).total_seconds()
        left = min(max(state.current.bake_seconds - since, 0.0), state.current.bake_seconds)
    return Progress(
        endpoint=endpoint.address,
        state=state,
        driven=is_driven(project, endpoint),
        weights=endpoint.endpoint.weights,
        observed=observed,
        seen=_seen(seen, clock.now().timestamp()),
        verdicts=next((each.verdicts for each in reversed(seen) if each.verdicts), ()),
        problem=seen[-1].look.problem if seen else "",
        seconds_left=left,
    )


def outcome_of(project: Project, endpoint: StackConfig, rollout: str) -> str:
    """How a rollout ended, as its record says."""
    summary = read_summary(Record.of(project, endpoint, rollout))
    return str(summary["outcome"]) if summary else "ended"


def _seen(seen: list[Seen], now: float) -> dict[str, Shown]:
    """Nothing of a rollout that nobody looks at now: what was seen before it stopped says nothing of today."""
    recent = [each.look for each in seen if each.look.at > now - _WINDOW_SECONDS and not each.look.problem]
    seconds = sum(look.seconds for look in recent)
    versions = dict.fromkeys(version for look in recent for version in look.counts)
    if not seconds:
        return {}
    return {
        version: _shown([look.counts[version] for look in recent if version in look.counts], seconds)
        for version in versions
    }


def _shown(counts: list[Counts], seconds: float) -> Shown:
    requests = sum(each.requests for each in counts)
    errors = sum(each.errors for each in counts)
    latency: dict[float, int] = {}
    for each in counts:
        for bound, count in each.latency_ms.items():
            latency[bound] = latency.get(bound, 0) + count
    whole = max(latency.values(), default=0)
    p95 = next((bound for bound in sorted(latency) if latency[bound] >= 0.95 * whole), None) if whole else None
    finite = p95 if p95 is not None and p95 < float("inf") else None
    return Shown(requests / seconds, errors / requests if requests else None, finite)
