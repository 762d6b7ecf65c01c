"""What `record.json` says of a rollout: who, when, its steps, what the gates said, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

from rollout.analysis.judge import question_alpha
from rollout.analysis.samples import Counts
from rollout.driving.state import Phase, RolloutState

if TYPE_CHECKING:
    from rollout.records.record import Event, Seen

PHASES: frozenset[str] = frozenset(get_args(Phase))


def summarise(
    endpoint: str,
    state: RolloutState,
    at: datetime,
    events: Sequence[Event],
    seen: Sequence[Seen],
    git_commit: str | None,
) -> dict[str, Any]:
    """The record of a rollout that is where `state` says. `at`: when it ended, or now."""
    started = datetime.fromisoformat(state.started)
    totals = _totals(seen)
    requests = {
        version: {"requests": counts.requests, "errors": counts.errors}
        for version, counts in sorted(totals.items(), key=lambda item: _order(state, item[0]))
    }
    return {
        "schema": 1,
        "id": state.id,
        "endpoint": endpoint,
        "by": state.by,
        "strategy": state.strategy,
        "baseline": state.baseline,
        "candidates": list(state.candidates),
        "outcome": state.phase,
        "reason": state.reason,
        "started": started.astimezone(UTC).isoformat(),
        "ended": at.astimezone(UTC).isoformat() if state.ended else None,
        "seconds": round((at - started).total_seconds(), 3),
        "revision_before": state.revision,
        "git_commit": git_commit,
        "initial": state.initial,
        "steps": _steps(state, at, events, seen),
        "rollback": _rollback(events),
        "requests": requests,
        "lost": {
            "by_candidates": sum(counts.errors for name, counts in totals.items() if name in state.candidates),
            "by_others": sum(counts.errors for name, counts in totals.items() if name not in state.candidates),
        },
        "looks": len(seen),
        "fails_at": 1 / question_alpha(state.settings, len(state.candidates)),
        "seconds_unseen": round(sum(item.look.seconds for item in seen if item.look.problem), 3),
        "settings": state.settings,
    }


def phases(events: Sequence[Event]) -> list[Event]:
    """The events that say which phase the rollout came to."""
    return [event for event in events if event.kind in PHASES]


def _steps(state: RolloutState, at: datetime, events: Sequence[Event], seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """Each step as it was planned, and as it went."""
    entered = phases(events)
    times: dict[int, tuple[float, float]] = {}
    outcomes: dict[int, Any] = {}
    for event, following in pairwise([*entered, None]):
        assert event is not None
        index = _index(event)
        if index is None:
            continue
        left = following.at if following else at.timestamp()
        if event.kind == "baking":
            times[index] = (times[index][0] if index in times else event.at, left)
        # What the gates said of a step is told with the phase after it.
        if following and event.kind == "baking" and following.facts.get("outcomes"):
            outcomes[index] = following.facts["outcomes"]
    updates = {
        _index(event): event.facts.get("seconds")
        for event in events
        if event.kind == "weights" and event.facts.get("phase") == "moving"
    }
    verdicts = {item.step: item.verdicts for item in seen if item.verdicts}
    return [
        {
            "step": index + 1,
            "weights": step.weights,
            "shadow": step.shadow,
            "capacity": step.capacity,
            "percent": step.percent,
            "bake_seconds": step.bake_seconds,
            "update_seconds": updates.get(index),
            "began": _iso(times[index][0]) if index in times else None,
            "ended": _iso(times[index][1]) if index in times else None,
            "seconds": round(times[index][1] - times[index][0], 3) if index in times else None,
            "outcomes": outcomes.get(index, []),
            "verdicts": list(verdicts.get(index, ())),
        }
        for index, step in enumerate(state.steps)
    ]


def _index(event: Event) -> int | None:
    """The index of the step that an event is of; events count steps from 1, as people do."""
    number = event.facts.get("step")
    return number - 1 if isinstance(number, int) else None


def _rollback(events: Sequence[Event]) -> dict[str, Any] | None:
    begun = next((event for event in events if event.kind == "taking back"), None)
    if begun is None:
        return None
    done = next((event for event in events if event.kind in ("taken back", "aborted") and event.at >= begun.at), None)
    return {
        "at": _iso(begun.at),
        "reason": begun.facts.get("reason", ""),
        "done": _iso(done.at) if done else None,
        "seconds": round(done.at - begun.at, 3) if done else None,
    }


def _totals(seen: Sequence[Seen]) -> Mapping[str, Counts]:
    found: dict[str, Counts] = {}
    for item in seen:
        for version, counts in item.look.counts.items():
            sum_ = found.get(version, Counts())
            found[version] = Counts(requests=sum_.requests + counts.requests, errors=sum_.errors + counts.errors)
    return found


def _order(state: RolloutState, version: str) -> tuple[bool, bool, str]:
    """The baseline first, candidates last."""
    return version != state.baseline, version in state.candidates, version


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
