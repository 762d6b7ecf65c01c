"""What the guard sees of an endpoint: weights, readiness and requests, from the data plane and its metrics.

It never imports Pulumi: a process that stays for months has to be small. The platform's outputs, which say where the
data plane is, are asked for in a process of their own and kept in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from infra.contracts import ObservationError, Observer, PlatformExports, observer_of
from infra.errors import UserError
from infra.files import salvage_json, write_json
from rollout.analysis.samples import Counts, Sampler
from rollout.clock import Clock
from rollout.project import Project, StackConfig

_RETRY_SECONDS = 5.0
"""Until the platform is asked for anew, at first; twice as long each further time."""
_NOT_UP_SECONDS = 120.0
"""At most, while it isn't up …"""
_LOST_SECONDS = 600.0
"""… and where it was, and can't be read any more."""


@dataclass(frozen=True)
class Sight:
    """What was seen of an endpoint since the look before."""

    seconds: float
    """Since the look before."""
    weights: Mapping[str, int] = field(default_factory=dict[str, int])
    """As the data plane has them; empty where the endpoint isn't up."""
    ready: Mapping[str, int] | None = None
    """Healthy replicas by version; None where the data plane could not be read."""
    counts: Mapping[str, Counts] | None = None
    """Requests by version; None where the metrics could not be read, or say nothing new."""
    problem: str = ""
    """Why something could not be read."""


class Lookout(Protocol):
    def look(self, endpoint: StackConfig) -> Sight:
        """What there is to see of an endpoint since the last look at it. Never raises for what can't be read."""
        ...

    def forget(self, address: str) -> None:
        """Has the next look at that endpoint be a first one."""
        ...


class Question(Protocol):
    def answer(self) -> dict[str, Any] | None:
        """None as long as there is none. Has `problem` where it is an error."""
        ...


class NodeLookout:
    """Looks through the mode's own observer."""

    def __init__(
        self,
        project: Project,
        environment: str,
        cache: Path,
        ask_platform: Callable[[], Question],
        clock: Clock,
    ) -> None:
        """`cache`: file of the platform's outputs. `ask_platform` starts asking Pulumi for them."""
        self._project = project
        self._environment = environment
        self._cache = cache
        self._ask_platform = ask_platform
        self._clock = clock
        self._observer: Observer | None = None
        self._question: Question | None = None
        self._ask_at = clock.monotonic()
        self._wait = _RETRY_SECONDS
        self._problem = ""
        self._samplers: dict[str, Sampler] = {}
        self._looked: dict[str, float] = {}
        self._tried_cache = False

    def look(self, endpoint: StackConfig) -> Sight:
        now = self._clock.monotonic()
        seconds = now - self._looked.get(endpoint.address, now)
        self._looked[endpoint.address] = now
        observer = self._open(now)
        if observer is None:
            return Sight(seconds, problem=self._problem)
        settings = endpoint.endpoint
        try:
            weights = observer.traffic(endpoint.team, settings.model)["weights"]
            ready = observer.ready(endpoint.team, settings.model, list(weights)) if weights else {}
        except ObservationError as error:
            self._lose(now)
            return Sight(seconds, problem=str(error))
        if not weights or settings.guard is None or not _needs_metrics(settings.guard.rules):
            return Sight(seconds, weights, ready)
        sampler = self._samplers.get(endpoint.address)
        if sampler is None:
            sampler = Sampler(observer, endpoint.team, settings.model, (), self._clock)
            self._samplers[endpoint.address] = sampler
        look = sampler.look(list(weights))
        if look.problem:
            self._lose(now)
        else:
            self._wait = _RETRY_SECONDS
        return Sight(seconds, weights, ready, None if look.problem else look.counts, look.problem)

    def forget(self, address: str) -> None:
        self._samplers.pop(address, None)
        self._looked.pop(address, None)

    # -- inside

    def _open(self, now: float) -> Observer | None:
        if self._observer is None and not self._tried_cache:
            self._tried_cache = True
            self._use(salvage_json(self._cache) if self._is_fresh() else None)
        if self._question is not None:
            self._hear(now)
        elif self._observer is None and now >= self._ask_at:
            self._question = self._ask_platform()
        return self._observer

    def _hear(self, now: float) -> None:
        assert self._question is not None
        answer = self._question.answer()
        if answer is None:
            return
        self._question = None
        if "problem" in answer:
            self._problem = answer["problem"]
            self._postpone(now, _NOT_UP_SECONDS)
            return
        try:
            write_json(self._cache, answer)
        except OSError as error:
            self._problem = str(error)
        self._use(answer)

    def _use(self, platform: Any) -> None:
        if isinstance(platform, dict):
            try:
                self._observer = observer_of(cast("PlatformExports", platform))
            except (UserError, KeyError, TypeError) as error:
                self._problem = f"the platform's outputs can't be used: {error}"
        self._samplers.clear()

    def _lose(self, now: float) -> None:
        """The data plane may have moved: asks where it is now, and goes on with what is known until then."""
        if self._question is None and now >= self._ask_at:
            self._question = self._ask_platform()
            self._postpone(now, _LOST_SECONDS)

    def _postpone(self, now: float, longest: float) -> None:
        self._ask_at = now + min(self._wait, longest)
        self._wait *= 2

    def _is_fresh(self) -> bool:
        """Whether the platform's config is older than what is known of its outputs."""
        try:
            return self._cache.stat().st_mtime > self._project.platform(self._environment).file.stat().st_mtime
        except (OSError, UserError):
            return False


def _needs_metrics(rules: Any) -> bool:
    return any(rule.error_ratio is not None or rule.latency_p95 is not None for rule in rules)
