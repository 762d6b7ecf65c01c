"""A stand-in for an environment: one endpoint whose data plane, stack, metrics and time are this process's own.

The project's files are real, and so are the rollout's state and record in them. Each thing that a driver does to the
world is an effect, and before and after each it can be killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml

from infra.contracts import ObservationError
from infra.settings.fence import Fence
from infra.settings.rollout import Hook, Notification, RolloutSettings
from rollout.analysis.judge import Verdict
from rollout.analysis.samples import Counts, Look
from rollout.capacity import CapacityError
from rollout.driving.driver import Driver
from rollout.driving.hooks import HookError
from rollout.driving.means import Means
from rollout.driving.state import RolloutState
from rollout.driving.warming import NotWarmError
from rollout.project import ROLLOUT_KEY, BusyError, Project, StackConfig, write_config
from rollout.pulumi_stack import StackError
from rollout.records.record import Record
from rollout.release import FencedError, NotVerifiedError, Releases
from rollout.strategies import Step

TEAM, MODEL = "diagnostics", "scan"
ENDPOINT = f"{TEAM}/dev.{MODEL}"
OLD, NEW = "1.0.0", "1.1.0"
RATE = 100
"""Requests a second."""
_ENOUGH = 10
"""Requests that the stand-in judge wants of a version."""


class Killed(BaseException):
    """What kill -9 is to a process: nothing of it runs any more."""


class WorldClock:
    """Time that passes when somebody waits, and then has things happen that were planned for it."""

    def __init__(self) -> None:
        self._monotonic = 1000.0
        self._now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> datetime:
        # A step further each time, as two updates never begin at the same moment.
        self._now += timedelta(microseconds=1)
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)
        due = [plan for plan in self._planned if plan[0] <= self._monotonic]
        self._planned = [plan for plan in self._planned if plan[0] > self._monotonic]
        for _, happening in due:
            happening()

    def at(self, seconds: float, happening: Callable[[], None]) -> None:
        """Has something happen so many seconds from now."""
        self._planned.append((self._monotonic + seconds, happening))

    def jump(self, seconds: float) -> None:
        """The time of day jumps; time that passes doesn't."""
        self._now += timedelta(seconds=seconds)


@dataclass
class World:
    root: Path
    clock: WorldClock = field(default_factory=WorldClock)
    weights: dict[str, int] = field(default_factory=lambda: {OLD: 100})
    """Of the data plane."""
    shadow: dict[str, float] = field(default_factory=dict[str, float])
    replicas: dict[str, int] = field(default_factory=lambda: {OLD: 2, NEW: 1})
    ready: bool = True
    """Whether replicas get ready at all."""
    errors: dict[str, float] = field(default_factory=dict[str, float])
    """Share of a version's requests that fails."""
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    history: list[Any] = field(default_factory=list[Any])
    warm: set[str] = field(default_factory=lambda: {OLD})
    told: list[str] = field(default_factory=list[str])
    """Kinds of notification."""
    said: list[str] = field(default_factory=list[str])
    hooks: list[str] = field(default_factory=list[str])
    moves: list[dict[str, int]] = field(default_factory=list[dict[str, int]])
    """Shares that the data plane has had, one after the other."""
    broken: dict[str, int] = field(default_factory=dict[str, int])
    """How often each effect is still to fail."""
    metrics: bool = True
    readable: bool = True
    """Whether the data plane says what its weights are."""
    winner: str | None = None
    scores: dict[str, float] = field(default_factory=dict[str, float])
    looks: int = 0
    """How often the metrics were looked at while the candidate had traffic."""
    kill_at: int | None = None
    """The boundary, counted from 0, at which the driver is killed."""
    boundaries: int = 0
    effects: list[str] = field(default_factory=list[str])
    drivers: int = 0

    def __post_init__(self) -> None:
        team = self.root / "stacks" / TEAM
        _write(self.root / "Pulumi.yaml", {"name": "lepton", "runtime": "python"})
        _write(team / "Pulumi.yaml", {"name": TEAM, "runtime": "python"})
        self.freeze(None)
        for version in (OLD, NEW):
            settings = {"environment": "dev", "model": MODEL, "version": version}
            _write(team / f"Pulumi.dev.{MODEL}-{version}.yaml", _config("version", **settings))
        variants = [{"version": OLD, "weight": 100}]
        endpoint = {"environment": "dev", "model": MODEL, "variants": variants}
        _write(team / f"Pulumi.dev.{MODEL}.yaml", _config("endpoint", **endpoint))
        self.project = Project(self.root)
        self.update(self.endpoint.document(), None, "deploy")
        self.moves = [self.shares]

    # -- what tests read and do

    @property
    def endpoint(self) -> StackConfig:
        return self.project.stack(ENDPOINT)

    @property
    def shares(self) -> dict[str, int]:
        return {version: weight for version, weight in self.weights.items() if weight}

    def freeze(self, reason: str | None) -> None:
        """Somebody edits the platform's config."""
        document = {"environment": "dev", "mode": "single-node"} | ({"freeze": reason} if reason else {})
        _write(self.root / "stacks/platform/Pulumi.dev.yaml", _config("platform", **document))

    def edit(self, **changes: Any) -> None:
        """Another command changes the rollout's state in the file."""
        document = self.endpoint.rollout()
        assert document is not None
        write_config(self.endpoint, {ROLLOUT_KEY: document | changes})

    def rollout(self, *weights: dict[str, int], **settings: Any) -> RolloutState:
        """A canary through these weights, whose steps bake for 2 s."""
        chosen = RolloutSettings.model_validate({"bake": "2s", "max_bake": "20s", **settings})
        capacity = {OLD: 2, NEW: 2}
        steps = tuple(
            Step(
                weights=each,
                capacity=capacity,
                bake_seconds=chosen.bake,
                approval=each[NEW] in chosen.approve,
                percent=float(each[NEW]),
            )
            for each in weights
        )
        now = self.clock.now().isoformat()
        return RolloutState(
            id="20261121-120000-0001",
            by="ada",
            driver="",
            strategy=chosen.strategy,
            settings=chosen,
            initial=Step(weights={OLD: 100}, capacity={OLD: 2, NEW: 1}, bake_seconds=0, percent=0),
            baseline=OLD,
            candidates=(NEW,),
            steps=steps,
            since=now,
            started=now,
        )

    def start(self, state: RolloutState) -> RolloutState:
        driver = self.driver()
        driver.register(state)
        return driver.go_on()

    def driver(self) -> Driver:
        """A new process's driver."""
        self.drivers += 1
        return Driver(self.means(), ENDPOINT, f"driver-{self.drivers}")

    def means(self) -> Means:
        return Means(
            project=self.project,
            releases=cast("Releases", _Stacks(self)),
            capacity=_Replicas(self),
            warm_up=self._warm_up,
            sampler=lambda endpoint, state: _Metrics(self),
            judge=lambda state: _Judge(self, state.candidates),
            record=lambda endpoint, rollout: Record.of(self.project, endpoint, rollout),
            run_hooks=self._run_hooks,
            tell=self._tell,
            clock=self.clock,
            say=self.said.append,
        )

    @contextmanager
    def effect(self, name: str) -> Iterator[None]:
        """One thing done to the world; a boundary before it, and one after."""
        self._boundary()
        if self.broken.get(name):
            self.broken[name] -= 1
            raise _PROBLEMS[name]
        self.effects.append(name)
        yield
        self._boundary()

    def _boundary(self) -> None:
        self.boundaries += 1
        if self.kill_at == self.boundaries - 1:
            raise Killed

    # -- how it behaves

    def move(self, weights: Mapping[str, int], shadow: Mapping[str, float] | None = None) -> None:
        """The data plane takes weights on."""
        self.weights = dict(weights)
        if shadow is not None:
            self.shadow = dict(shadow)
        for version in [*self.shares, *self.shadow]:
            assert version in self.warm, f"{version} has traffic before it was warmed up"
            assert self.replicas.get(version), f"{version} has traffic without a replica"
        if not self.moves or self.moves[-1] != self.shares:
            self.moves.append(self.shares)

    def update(self, document: dict[str, Any], rollout: Mapping[str, Any] | None, message: str) -> None:
        """The stack's update, under its lock: fenced, and then told to history."""
        weights = {variant["version"]: variant["weight"] for variant in document["variants"]}
        fence = Fence.model_validate(rollout) if rollout else None
        refusal = fence.refusal(weights, self.outputs) if fence else None
        if refusal:
            raise FencedError(f"{ENDPOINT}: {refusal}")
        shadow = document.get("shadow")
        self.move(weights, {shadow["version"]: shadow["percent"]} if shadow else {})
        self.outputs = {
            "url": "http://stand-in",
            "weights": weights,
            "rollout": fence and fence.model_dump(include={"id", "driver", "step"}),
        }
        config = {"lepton:endpoint": document} | ({ROLLOUT_KEY: rollout} if rollout else {})
        values = {key: SimpleNamespace(value=json.dumps(value), secret=False) for key, value in config.items()}
        update = {"kind": "update", "result": "succeeded", "start_time": self.clock.now(), "message": message}
        self.history.append(SimpleNamespace(**update, config=values))

    def _warm_up(self, endpoint: StackConfig, version: str) -> str:
        with self.effect("warm up"):
            assert version in endpoint.endpoint.weights, "only a variant can be asked"
            self.warm.add(version)
        return "10 requests"

    def _run_hooks(self, hooks: Sequence[Hook], facts: Mapping[str, Any], folder: Path) -> None:
        if hooks:
            with self.effect("hook"):
                self.hooks.append(f"{facts['step']} {facts['phase']}")

    def _tell(self, notifications: Sequence[Notification], on: str, text: str, facts: Mapping[str, Any]) -> list[str]:
        with self.effect("tell"):
            self.told.append(on)
        return []


class _Stacks:
    """Stands in for `Releases`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def pulumi(self, endpoint: StackConfig) -> Any:
        return SimpleNamespace(outputs=lambda: self._world.outputs, history=lambda: self._world.history)

    def observer(self, endpoint: StackConfig) -> Any:
        return self

    def traffic(self, team: str, model: str) -> dict[str, Any]:
        if not self._world.readable:
            raise ObservationError("the router does not answer")
        return {"weights": dict(self._world.weights), "shadow": dict(self._world.shadow)}

    def ready(self, team: str, model: str, versions: list[str]) -> dict[str, int]:
        return {version: self._world.replicas.get(version, 0) if self._world.ready else 0 for version in versions}

    def split(self, team: str, model: str, requests: int) -> None:
        """`traffic` is the world's own word."""

    def apply(
        self,
        endpoint: StackConfig,
        document: dict[str, Any],
        message: str,
        *,
        rollout: Mapping[str, Any] | None = None,
        fast: bool = False,
    ) -> None:
        world = self._world
        changed = endpoint.with_document(document)
        before = {"lepton:endpoint": endpoint.document(), ROLLOUT_KEY: endpoint.rollout()}
        with world.effect("apply"):
            refusal = Fence.model_validate(rollout).refusal(changed.endpoint.weights, world.outputs) if fast else None
            if refusal:
                raise FencedError(f"{ENDPOINT}: {refusal}")
            write_config(endpoint, {"lepton:endpoint": document, ROLLOUT_KEY: rollout})
            if fast:
                with world.effect("shift"):
                    world.move(changed.endpoint.weights)
            try:
                with world.effect("up"):
                    world.update(document, rollout, message)
            except StackError:
                if not fast:
                    write_config(endpoint, before)
                raise
            with world.effect("verify"):
                pass


class _Replicas:
    """Stands in for `Capacity`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def ensure(self, endpoint: StackConfig, needs: Mapping[str, int]) -> dict[str, float]:
        with self._world.effect("ensure"):
            if not self._world.ready:
                raise CapacityError(f"{', '.join(needs)}: not ready within 120 s")
            for version, need in needs.items():
                self._world.replicas[version] = max(self._world.replicas.get(version, 0), need)
        return dict.fromkeys(needs, 1.0)

    def reduce(self, endpoint: StackConfig, keeps: Mapping[str, int]) -> None:
        with self._world.effect("reduce"):
            assert self._is_held(endpoint), "another command can give a version traffic while it is scaled down"
            for version, keep in keeps.items():
                assert keep or not self._world.weights.get(version), "a version with weight keeps a replica"
                self._world.replicas[version] = min(self._world.replicas.get(version, 0), keep)

    def _is_held(self, endpoint: StackConfig) -> bool:
        try:
            with self._world.project.holding(endpoint):
                return False
        except BusyError:
            return True


class _Metrics:
    """Stands in for a Sampler: constant load, spread by the weights."""

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self, versions: Sequence[str]) -> Look:
        world = self._world
        at = world.clock.now().timestamp()
        weights = world.weights if world.readable else {}
        if not world.metrics:
            return Look(at, 1.0, weights=weights, problem="the metrics server does not answer")
        whole = sum(world.weights.values())
        world.looks += bool(world.weights.get(NEW))
        counts: dict[str, Counts] = {}
        for version in versions:
            requests = RATE * world.weights.get(version, 0) // whole
            counts[version] = Counts(requests, errors=round(requests * world.errors.get(version, 0.0)))
        return Look(at, 1.0, counts, weights=weights)


class _Judge:
    """Stands in for `Judge`: more errors than one in a hundred fail, once there are enough requests."""

    def __init__(self, world: World, candidates: Sequence[str]) -> None:
        self._world = world
        self._candidates = candidates
        self._seen: dict[str, list[int]] = {}

    def begin_step(self, index: int) -> None:
        self._seen = {version: [0, 0] for version in self._candidates}

    def see(self, look: Look) -> None:
        for version in self._candidates:
            counts = look.counts.get(version, Counts())
            self._seen[version][0] += counts.requests
            self._seen[version][1] += counts.errors

    def verdicts(self) -> list[Verdict]:
        return [self._verdict(version, *seen) for version, seen in self._seen.items()]

    def _verdict(self, version: str, requests: int, errors: int) -> Verdict:
        bad = errors > 0.01 * requests
        word = "inconclusive" if requests < _ENOUGH else "fail" if bad else "pass"
        return Verdict("error-ratio", version, word, f"{errors} of {requests} failed", requests, _ENOUGH)

    def winner(self) -> str | None:
        return self._world.winner

    def scores(self) -> dict[str, float]:
        return self._world.scores


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def _config(kind: str, **document: Any) -> dict[str, Any]:
    return {"config": {f"lepton:{kind}": document}}


_PROBLEMS: Mapping[str, Exception] = {
    "up": StackError(f"{ENDPOINT}: no space left on device"),
    "verify": NotVerifiedError(f"{ENDPOINT}: asked for other weights"),
    "hook": HookError("hook 1 (true) ended with exit status 1"),
    "warm up": NotWarmError("request 1 got 500"),
    "shift": ObservationError("the router does not answer"),
}
