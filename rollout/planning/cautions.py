"""What somebody should know of a planned rollout before starting it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

from infra.monitoring.catalogue import WINDOWS
from infra.settings import PlatformSettings, VersionSettings
from infra.settings.rollout import RolloutSettings
from rollout.analysis.gates import QUANTILES, bound_from
from rollout.planning.gate_needs import GateNeed
from rollout.project import StackConfig
from rollout.strategies import Step
from rollout.strategies.move import Move

LONGEST_WINDOW = max(WINDOWS, key=lambda window: WINDOWS[window])
"""Over which a plan asks how many requests there are."""


def obstacles(endpoint: StackConfig, platform: PlatformSettings, quiet: datetime | None) -> Iterator[str]:
    """Why it can't start, or go on, now. `quiet`: until when no step may begin."""
    if endpoint.rollout() is not None:
        yield f"a rollout of {endpoint.address} is under way; no other can start before it ends"
    if platform.freeze:
        yield f"{platform.environment} is frozen: {platform.freeze}; no step begins"
    if quiet:
        yield f"quiet hours: no step begins before {quiet:%Y-%m-%d %H:%M} UTC"
    if endpoint.endpoint.shadow:
        yield f"{endpoint.endpoint.shadow.version} gets no copies of requests while the rollout is under way"


def few_replicas(move: Move, last: Step) -> Iterator[str]:
    """Replicas that a config asks for stay as they are, also where the old side has more for the same share."""
    for version in move.gaining:
        # Rounded, as a tenth of a replica more is no reason for another.
        usual = round(move.target[version] * move.replicas_per_share)
        if last.capacity[version] < usual:
            yield (
                f"{version} has {last.capacity[version]} of the {usual} replicas that {' and '.join(move.losing)} "
                f"would have for {float(move.target[version]):.0%} of the traffic; its config can ask for more"
            )


def decided_by_scores(steps: Sequence[Step], settings: RolloutSettings) -> Iterator[str]:
    """Steps whose weights nobody knows yet."""
    if settings.strategy == "adaptive" and len(steps) > 1:
        yield (
            "the weights after step 1 follow the scores and are shown as without any; the last step goes to a version "
            "that is better beyond chance by the first gate, and without one the rollout ends with a mixture"
        )


def unlimited(
    steps: Sequence[Step], running: Mapping[str, int], versions: Mapping[str, VersionSettings]
) -> Iterator[str]:
    """Versions that come up and promise nothing, so that nobody can say whether they fit."""
    for version, its in versions.items():
        comes = any(step.capacity.get(version, 0) > running.get(version, 0) for step in steps)
        if comes and its.resources.cpu is None and its.resources.memory is None and not its.resources.gpu:
            yield f"{version} says nothing of its resources, so that its replicas count as nothing"


def hurried(settings: RolloutSettings, shortest: float) -> Iterator[str]:
    """`shortest`: how long it takes at least, in seconds."""
    if shortest > settings.max_duration:
        yield f"it takes {shortest:.0f} s at least, and max_duration ends it after {settings.max_duration:.0f} s"


def rounded_limits(settings: RolloutSettings, bounds_ms: Collection[float]) -> Iterator[str]:
    """Limits of latency that are none of the histogram's bounds, as far as those are known."""
    for gate in settings.gates:
        if gate.metric not in QUANTILES or gate.limit is None or not bounds_ms:
            continue
        bound = bound_from(bounds_ms, gate.limit)
        if bound == math.inf:
            yield f"gate {gate.label} never passes: its limit of {gate.limit:g} ms is above the histogram's last bound"
        elif not math.isclose(bound, gate.limit):
            yield (
                f"gate {gate.label}: its limit of {gate.limit:g} ms is no bound of the histogram; judged is the share "
                f"above {bound:g} ms"
            )


def unjudged(
    steps: Sequence[Step], gates: Sequence[GateNeed], settings: RolloutSettings, rate: float | None
) -> Iterator[str]:
    """Gates that can't get what they need at `rate`, the endpoint's requests/s, in the longest that a step may bake."""
    if gates and not rate:
        yield f"no requests were seen within {LONGEST_WINDOW}: gates without requests are inconclusive, and never pass"
    for need in gates:
        if need.within is False:
            yield (
                f"step {need.step + 1} ({steps[need.step].percent:g} %): gate {need.gate} needs {need.samples} "
                f"{need.unit} of {need.version}, which take {need.seconds:.0f} s at this rate, and max_bake is "
                f"{settings.max_bake:.0f} s"
            )
