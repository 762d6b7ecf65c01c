"""How many requests the gates of a rollout will ask for, and how long those take at a given rate. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infra.settings.rollout import Gate, RolloutSettings
from rollout.analysis.judge import samples_needed
from rollout.analysis.samples import WINDOW_SECONDS
from rollout.strategies import Step


@dataclass(frozen=True)
class GateNeed:
    """What one gate asks of one version in one step before it can pass."""

    step: int
    """Index."""
    gate: str
    version: str
    samples: int
    unit: Literal["requests", "windows"]
    """Requests of the version; or spans of WINDOW_SECONDS, for a gate whose metric has one value for each."""
    seconds: float | None
    """Until there are as many; None: nobody knows the rate, or there are no requests."""
    within: bool | None
    """Whether that is within the longest that the step may bake; None: nobody knows."""


def gate_needs(
    steps: Sequence[Step],
    candidates: Sequence[str],
    baseline: str,
    settings: RolloutSettings,
    *,
    rate: float | None,
    error_ratio: float,
) -> list[GateNeed]:
    """What each gate asks of each candidate, in each step that is looked at and gives the candidate requests.

    Args:
        rate: The endpoint's requests/s; None where nobody knows.
        error_ratio: The baseline's.
    """
    return [
        _need(index, step, candidate, baseline, gate, settings, len(candidates), rate, error_ratio)
        for index, step in enumerate(steps)
        if step.bake_seconds
        for candidate in candidates
        if step.weights[candidate] or candidate in step.shadow
        for gate in settings.gates
    ]


def _need(
    index: int,
    step: Step,
    candidate: str,
    baseline: str,
    gate: Gate,
    settings: RolloutSettings,
    candidates: int,
    rate: float | None,
    error_ratio: float,
) -> GateNeed:
    whole = sum(step.weights.values())
    own = step.shadow.get(candidate, 0.0) / 100 or step.weights[candidate] / whole
    against = step.weights[baseline] / whole
    samples = samples_needed(gate, settings, error_ratio, own / (own + against), candidates=candidates, step=index)
    by_window = gate.metric in ("score", "promql")
    each = WINDOW_SECONDS if by_window else 1 / (rate * own) if rate else None
    seconds = None if each is None else samples * each
    return GateNeed(
        step=index,
        gate=gate.label,
        version=candidate,
        samples=samples,
        unit="windows" if by_window else "requests",
        seconds=seconds,
        within=None if seconds is None else seconds <= settings.max_bake,
    )
