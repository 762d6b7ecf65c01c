"""Says of a rollout, before anything moves, what its steps are, what they take, how long, and whether that fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from infra.contracts import ObservationError, Observer, QueryError
from infra.monitoring.catalogue import WINDOWS
from infra.placement import Demand, Unplaced
from infra.settings import PlatformSettings, SettingsError, VersionSettings
from infra.settings.rollout import RolloutSettings, StrategyName
from rollout.analysis.samples import WINDOW_SECONDS, filled
from rollout.clock import Clock, SystemClock
from rollout.driving.quiet_hours import quiet_until
from rollout.planning import cautions
from rollout.planning.cautions import LONGEST_WINDOW
from rollout.planning.fitting import Rollout, demand_of, strategy_fits
from rollout.planning.gate_needs import GateNeed, gate_needs
from rollout.planning.peak import Peak, peak
from rollout.project import Project, StackConfig
from rollout.release import Releases
from rollout.strategies import Step, plan_steps
from rollout.strategies.move import Move

UPDATE_SECONDS = 5.0
"""Allowed for one update of a stack, with its verification."""


@dataclass(frozen=True)
class Duration:
    """In seconds, without the time that somebody takes to approve."""

    shortest: float
    """Every gate passes as soon as its bake is over."""
    longest: float
    """Every gate takes the longest that it may, and every replica that comes takes its whole `ready_timeout`."""


@dataclass(frozen=True)
class Plan:
    """A rollout that nobody has started."""

    endpoint: str
    strategy: StrategyName
    current: dict[str, int]
    target: dict[str, int]
    steps: tuple[Step, ...]
    peak: Peak
    without_place: tuple[Unplaced, ...]
    """Replicas that no node has room for, though all nodes together may have."""
    would_fit: tuple[str, ...]
    """Strategies that fit, where this one doesn't."""
    duration: Duration
    rate: float | None
    """Requests/s of the endpoint's clients over the last `rate_seconds`; None: nobody knows."""
    gates: tuple[GateNeed, ...]
    warnings: tuple[str, ...]

    @property
    def rate_seconds(self) -> float:
        """Over which the rate is taken."""
        return WINDOWS[LONGEST_WINDOW]

    @property
    def fits(self) -> bool:
        return not self.peak.lacking and not self.without_place

    def summary(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "strategy": self.strategy,
            "current": self.current,
            "target": self.target,
            "steps": [step.model_dump() for step in self.steps],
            "fits": self.fits,
            "peak": {"needed": self.peak.needed, "reserved": self.peak.reserved, "total": self.peak.total},
            "lacking": self.peak.lacking,
            "without_place": [asdict(each) for each in self.without_place],
            "would_fit": list(self.would_fit),
            "seconds": asdict(self.duration) | {"allowed_for_an_update": UPDATE_SECONDS},
            "requests_per_second": self.rate,
            "requests_over_seconds": self.rate_seconds,
            "gates": [asdict(need) for need in self.gates],
            "warnings": list(self.warnings),
        }


def make_plan(
    releases: Releases,
    project: Project,
    endpoint: StackConfig,
    target: Mapping[str, int],
    settings: RolloutSettings,
    clock: Clock | None = None,
) -> Plan:
    """The plan of a rollout from the endpoint's weights to the target's. Changes nothing.

    Raises:
        SettingsError: where a version of the target has no stack config, or a gate's query can't be asked.
        StrategyError: where the strategy can't do it.
        NotDeployedError, ObservationError: where the environment can't be looked at. Without metrics there is a plan.
    """
    rollout = rollout_to(project, endpoint, target, settings)
    current, versions = endpoint.endpoint.weights, rollout.versions
    replicas = {version: its.replicas for version, its in versions.items()}
    resources = {version: its.resources for version, its in versions.items()}
    move = Move.between(current, target, replicas)
    steps = plan_steps(current, target, settings, replicas)
    observer = releases.observer(endpoint)
    room = observer.room()
    running = running_replicas(releases, project, endpoint, list(versions))
    found = peak(steps, running, resources, room)
    metrics = _Metrics(observer, endpoint)
    rate = metrics.rate()
    baseline = endpoint.endpoint.baseline_version
    gates = gate_needs(steps, move.gaining, baseline, settings, rate=rate, error_ratio=metrics.error_ratio(baseline))
    duration = expected_duration(steps, running, settings, versions)
    platform = project.platform(endpoint.settings.environment).settings
    assert isinstance(platform, PlatformSettings)
    quiet = quiet_until(settings.quiet, (clock or SystemClock()).now())
    queries = list(metrics.ask_gates(settings, baseline))
    bounds = metrics.bounds()
    # Where nobody can ask, nobody knows that there are no requests.
    unjudged = () if metrics.problems else cautions.unjudged(steps, gates, settings, rate)
    warnings: list[str] = [
        *cautions.obstacles(endpoint, platform, quiet),
        *cautions.few_replicas(move, steps[-1]),
        *cautions.decided_by_scores(steps, settings),
        *cautions.unlimited(steps, running, versions),
        *cautions.hurried(settings, duration.shortest),
        *metrics.problems,
        *queries,
        *cautions.rounded_limits(settings, bounds),
        *unjudged,
    ]
    known = demands(project, endpoint.settings.environment)
    fits = strategy_fits(rollout, observer.inventory(), known, advise=False)
    own = next(fits)
    others = fits if found.lacking or own.lacking else ()
    return Plan(
        endpoint=endpoint.address,
        strategy=settings.strategy,
        current=current,
        target=dict(target),
        steps=tuple(steps),
        peak=found,
        without_place=own.lacking,
        would_fit=tuple(each.strategy for each in others if each.fits),
        duration=duration,
        rate=rate,
        gates=tuple(gates),
        warnings=tuple(warnings),
    )


def demands(project: Project, environment: str) -> dict[str, Demand]:
    """What the configs of an environment's versions ask for, by address. Raises SettingsError."""
    versions = [stack for stack in project.stacks(environment) if stack.kind == "version"]
    return {stack.address: demand_of(stack.team, stack.version) for stack in versions}


def rollout_to(
    project: Project, endpoint: StackConfig, target: Mapping[str, int], settings: RolloutSettings
) -> Rollout:
    """A rollout from the endpoint's weights to the target's.

    Raises:
        SettingsError: where a version of either has no config, or one that can't be used.
    """
    current = endpoint.endpoint.weights
    names = list(dict.fromkeys([*current, *target]))
    variants = [{"version": version, "weight": 1} for version in names]
    project.require_versions(endpoint.with_document(endpoint.document() | {"variants": variants}))
    versions = {version: project.version_of(endpoint, version).version for version in names}
    return Rollout(endpoint.team, current, target, versions, settings)


def expected_duration(
    steps: Sequence[Step],
    running: Mapping[str, int],
    settings: RolloutSettings,
    versions: Mapping[str, VersionSettings],
) -> Duration:
    """How long the steps take, with the time that the old side is kept. `running`: replicas by version before them."""
    shortest = longest = settings.keep or 0.0
    before = running
    for step in steps:
        rising = [version for version, replicas in step.capacity.items() if replicas > before.get(version, 0)]
        falling = [version for version, replicas in step.capacity.items() if replicas < before.get(version, 0)]
        # Those that rise do so side by side, and so do those that fall.
        updates = UPDATE_SECONDS * (1 + bool(rising) + bool(falling))
        shortest += updates + step.bake_seconds
        longest += updates + max((versions[version].ready_timeout for version in rising), default=0.0)
        asked = step.bake_seconds and (step.percent or step.shadow)
        longest += settings.max_bake if asked else step.bake_seconds
        before = {**before, **step.capacity}
    return Duration(shortest=shortest, longest=longest)


def running_replicas(
    releases: Releases, project: Project, endpoint: StackConfig, versions: list[str]
) -> dict[str, int]:
    """Replicas that each version's stack was last brought up with; 0 where it isn't up."""

    def ask(version: str) -> int:
        return releases.pulumi(project.version_of(endpoint, version)).outputs().get("desired_replicas", 0)

    with ThreadPoolExecutor(max_workers=len(versions)) as pool:
        return dict(zip(versions, pool.map(ask, versions), strict=True))


class _Metrics:
    """What the endpoint's metrics say now. What they don't say is a problem to tell of, and no error."""

    def __init__(self, observer: Observer, endpoint: StackConfig) -> None:
        self.problems: list[str] = []
        self._observer = observer
        self._endpoint = endpoint
        self._model = f'team="{endpoint.team}", model="{endpoint.endpoint.model}"'

    def rate(self) -> float | None:
        """Requests/s of the endpoint's clients; None where nobody knows."""
        return self._value(f"endpoint:requests:rate{LONGEST_WINDOW}{{{self._model}}}")

    def error_ratio(self, version: str) -> float:
        """A version's; 0 where nobody knows."""
        return self._value(f'version:errors:ratio{LONGEST_WINDOW}{{{self._model}, version="{version}"}}') or 0.0

    def bounds(self) -> list[float]:
        """The bounds of the latencies' histogram in ms; none where nobody knows them."""
        found = self._ask(f"group by (le) (version:latency_ms:bucket{{{self._model}}})")
        return [float(labels["le"]) for labels, _ in found or ()]

    def ask_gates(self, settings: RolloutSettings, baseline: str) -> Iterator[str]:
        """Asks each gate's own query once, for the baseline, and says which have no value.

        Raises SettingsError where one can't be asked at all.
        """
        for gate in settings.gates:
            if gate.query is None:
                continue
            asked = filled(gate.query, self._endpoint.team, self._endpoint.endpoint.model, baseline, WINDOW_SECONDS)
            try:
                found = self._ask(asked)
            except QueryError as error:
                raise SettingsError(f"{self._endpoint.address}: gate {gate.label}: {error}") from None
            if found is not None and len(found) != 1:
                yield (
                    f"gate {gate.label}: its query gives {len(found) or 'no'} values for {baseline} now, and must give "
                    "one: until then it is inconclusive"
                )

    def _value(self, promql: str) -> float | None:
        samples = self._ask(promql)
        return samples[0][1] if samples else None

    def _ask(self, promql: str) -> list[tuple[dict[str, str], float]] | None:
        """None where nobody answers. Raises QueryError."""
        try:
            return self._observer.query(promql)
        except QueryError:
            raise
        except ObservationError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None
