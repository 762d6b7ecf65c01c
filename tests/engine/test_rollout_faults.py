"""Rollouts in which something goes wrong for real, under constant load.

At the end of each: the right weights, as the data plane says, no request lost that the canary itself didn't fail, and
no process and no lock left. Rollouts of different models run side by side, as they would.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from infra.single_node.machine.supervisor import Supervisor
from rollout.analysis.samples import Sampler
from rollout.clock import SystemClock
from rollout.driving.driver import Driver, driver_name
from rollout.driving.means import means_of
from rollout.driving.starting import new_rollout
from rollout.driving.state import RolloutState
from rollout.planning.plan import make_plan
from rollout.project import Project
from rollout.release import Releases
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import Outcome, Sandbox

OLD, NEW = "1.0.0", "2.0.0"
BEFORE = {OLD: 100, NEW: 0}
AFTER = {OLD: 0, NEW: 100}
NEVER_READY = "3.0.0"
MODELS = ("errors", "slow", "hangs", "dies")
"""Named by what befalls their first rollouts; those that are whole after it serve again."""
NO_GATES: dict[str, Any] = {"gates": []}
"""For what has nothing to do with them: they would ask for more requests than there are in a few seconds."""
DISK_BYTES = 1 << 29
"""Of the project's state, which needs about a fifth."""


@dataclass(frozen=True)
class Rolled:
    """A rollout that is over, or has stopped."""

    outcome: Outcome
    """Of the last command that drove it."""
    load: Load
    observed: dict[str, int]
    """The data plane's weights in the end."""


class Rollout:
    """One rollout of a model from the old version to the new, under load."""

    def __init__(self, project: Sandbox, model: str, to: str = NEW) -> None:
        self.project, self.model, self.to = project, model, to
        self.endpoint = f"diagnostics/dev.{model}"
        self.load = Load(infer_url(project.url, model))

    def run(self, fault: Callable[[Rollout], None], steps: str = "20,100", bake: str = "3s") -> Rolled:
        """Starts it, and has the fault caused while it goes on."""
        with self.load:
            self.driver = self.lepton(
                "start", "--to", self.to, "--strategy", "canary", "--steps", steps, "--bake", bake
            )
            try:
                fault(self)
                outcome = self.project.finish(self.driver)
            finally:
                # One that never ends must not outlive its test.
                if self.driver.poll() is None:
                    self.driver.kill()
                    self.driver.communicate()
        return Rolled(outcome, self.load, self.project.observed(self.endpoint))

    def lepton(self, command: str, *options: str) -> subprocess.Popen[str]:
        return self.project.start("lepton", "rollout", command, self.endpoint, *options, "--json")

    def state(self) -> dict[str, Any] | None:
        """The rollout's, as the endpoint's config file has it."""
        file = self.project.config(f"dev.{self.model}")
        # Asked often: the slow loader would take the processor from what is tested.
        return yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["config"].get("lepton:rollout")

    def wait_for_traffic(self) -> None:
        """Until the canary has answered somebody."""
        self.project.wait_until(lambda: self.load.of(self.to) or self.driver.poll() is not None, 90, "traffic")
        assert self.load.of(self.to), self.project.finish(self.driver)

    def at(self, step: int, phase: str) -> bool:
        state = self.state()
        return state is not None and (state["step"], state["phase"]) == (step, phase)

    def wait_for(self, *phases: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            state = self.state()
            return state if state and state["phase"] in phases else None

        return self.project.wait_until(reached, 90, f"{self.model}: {phases}")

    def suffer(self, version: str, **faults: Any) -> None:
        """Has every server of a version suffer these faults from now on."""
        for pid in self.project.server_pids(self.model, version):
            command = psutil.Process(pid).cmdline()
            port = command[command.index("--http-port") + 1]
            httpx.post(f"http://127.0.0.1:{port}/faults", json=faults).raise_for_status()


class JumpingClock(SystemClock):
    """A clock whose time of day somebody sets."""

    offset = timedelta()

    def now(self) -> datetime:
        return super().now() + self.offset


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A small disk at `folder`, where one can be mounted here."""
    # Its mount point is there, and what is in it is out of reach meanwhile.
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def project() -> Iterator[Sandbox]:
    """A project on a small disk, with every model of this module up: the old version has the traffic."""
    sandbox = Sandbox()
    try:
        with small_disk(sandbox.root / ".state"):
            for model in MODELS:
                # Its own samples would give a canary away that fails by chance.
                warm_up = 0 if model == "errors" else 3
                sandbox.write_version(model, OLD, "--quiet")
                sandbox.write_version(model, NEW, "--quiet", warm_up=warm_up)
                # Of a dead canary there is nothing to judge.
                write_endpoint(sandbox, model, **({"max_bake": "8s"} if model == "dies" else {}))
            sandbox.write_version("errors", NEVER_READY, "--never-ready", replicas=0, ready_timeout="4s")
            try:
                sandbox.must("up", "dev", "--requests", "0")
                yield sandbox
            finally:
                # While its folder is there.
                Supervisor(sandbox.node).stop()
    finally:
        sandbox.close()


def write_endpoint(project: Sandbox, model: str, **rollout: Any) -> None:
    settings = {"bake": "3s", "max_bake": "60s", "on_inconclusive": "rollback"} | rollout
    project.write_endpoint(model, BEFORE, timeouts={"per_try": "1s", "total": "2s"}, rollout=settings)


# -- bad canaries, side by side


def errors(rollout: Rollout) -> None:
    rollout.suffer(NEW, error_ratio=0.05, seed=7)


def slow(rollout: Rollout) -> None:
    rollout.suffer(OLD, delay_ms=20)
    rollout.suffer(NEW, delay_ms=60)


def hangs(rollout: Rollout) -> None:
    rollout.wait_for_traffic()
    rollout.suffer(NEW, hang=True)


def dies(rollout: Rollout) -> None:
    """kill -9 of its server, and of each that is started in its place."""
    rollout.wait_for_traffic()
    supervisor = Supervisor(rollout.project.node)
    (program,) = (file.stem for file in rollout.project.node.programs.glob(f"diagnostics.{rollout.model}-{NEW}_*.conf"))
    while rollout.driver.poll() is None:
        if pid := supervisor.pid(program):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def bad(project: Sandbox) -> Iterator[dict[str, Future[Rolled]]]:
    faults = {"errors": errors, "slow": slow, "hangs": hangs, "dies": dies}
    with ThreadPoolExecutor(len(faults)) as pool:
        yield {model: pool.submit(Rollout(project, model).run, fault) for model, fault in faults.items()}


def assert_taken_back(rolled: Rolled) -> None:
    assert rolled.outcome.status == 1, rolled.outcome
    assert rolled.outcome.json["phase"] == "taken back"
    assert rolled.observed == BEFORE
    assert rolled.load.lost(except_version=NEW) == []
    assert rolled.load.of(OLD)


def test_a_canary_that_fails_a_twentieth_is_taken_back(bad: dict[str, Future[Rolled]]) -> None:
    rolled = bad["errors"].result()
    assert_taken_back(rolled)
    assert f"{NEW} failed gate error-ratio" in rolled.outcome.json["reason"]


def test_a_canary_that_is_three_times_slower_is_taken_back(bad: dict[str, Future[Rolled]]) -> None:
    rolled = bad["slow"].result()
    assert_taken_back(rolled)
    assert f"{NEW} failed gate latency-p95" in rolled.outcome.json["reason"]
    assert rolled.load.lost() == []


def test_a_canary_that_hangs_is_taken_back(bad: dict[str, Future[Rolled]]) -> None:
    rolled = bad["hangs"].result()
    assert_taken_back(rolled)
    assert f"{NEW} failed gate" in rolled.outcome.json["reason"]
    assert rolled.load.lost(), "nobody has met it"


def test_a_canary_that_dies_is_taken_back(bad: dict[str, Future[Rolled]]) -> None:
    rolled = bad["dies"].result()
    assert_taken_back(rolled)
    assert rolled.load.of(NEW), "it never had traffic"


# -- what drives it is killed, and what can't start, side by side


def drivers_killed(rollout: Rollout, boundaries: set[tuple[int, str]]) -> None:
    """kill -9 of the driver as soon as it is in another phase than the last was killed in, and the next takes over."""
    while rollout.driver.poll() is None:
        state = rollout.state()
        at = (state["step"], state["phase"]) if state else None
        if at is None or at in boundaries:
            time.sleep(0.02)
            continue
        boundaries.add(at)
        rollout.driver.kill()
        rollout.project.finish(rollout.driver)
        rollout.driver = rollout.lepton("resume")


def pulumi_killed(rollout: Rollout) -> None:
    """kill -9 of the `pulumi` that makes a step, when it holds the stack's lock."""
    rollout.wait_for("moving")
    lepton = psutil.Process(rollout.driver.pid)

    def updating() -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            children = lepton.children(recursive=True)
            return next((child for child in children if child.name() == "pulumi" and "up" in child.cmdline()), None)
        return None

    process = rollout.project.wait_until(updating, 30, "pulumi up")
    rollout.project.wait_until(lambda: rollout.project.locks(rollout.model), 30, "the lock")
    process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def boundaries() -> set[tuple[int, str]]:
    """Where a driver was killed: step and phase."""
    return set()


@pytest.fixture(scope="module")
def survived(
    bad: dict[str, Future[Rolled]], project: Sandbox, boundaries: set[tuple[int, str]]
) -> Iterator[dict[str, Future[Rolled]]]:
    wait_for_all(bad)
    for model in ("slow", "hangs"):
        write_endpoint(project, model, **NO_GATES)
    killed, locked, unready = (
        Rollout(project, "slow"),
        Rollout(project, "hangs"),
        Rollout(project, "errors", NEVER_READY),
    )
    locked.suffer(NEW, hang=False)
    with ThreadPoolExecutor(3) as pool:
        yield {
            "killed": pool.submit(killed.run, lambda rollout: drivers_killed(rollout, boundaries), "50,100"),
            "locked": pool.submit(locked.run, pulumi_killed, "50,100"),
            "unready": pool.submit(unready.run, nothing),
        }


def nothing(rollout: Rollout) -> None:
    """The fault is there from the start."""


def wait_for_all(rolled: dict[str, Future[Rolled]]) -> None:
    for each in rolled.values():
        each.exception()


def assert_completed(rolled: Rolled) -> None:
    assert rolled.outcome.status == 0, rolled.outcome
    assert rolled.observed == AFTER
    assert rolled.load.lost() == []


def test_a_driver_killed_at_every_boundary_is_followed_by_the_next(
    survived: dict[str, Future[Rolled]], boundaries: set[tuple[int, str]], project: Sandbox
) -> None:
    assert_completed(survived["killed"].result())
    assert boundaries >= {(step, phase) for step in (0, 1) for phase in ("preparing", "moving", "baking")}
    assert Rollout(project, "slow").state() is None


def test_the_lock_of_a_killed_pulumi_stops_no_rollout(survived: dict[str, Future[Rolled]], project: Sandbox) -> None:
    assert_completed(survived["locked"].result())
    assert project.locks("hangs") == []


def test_a_canary_that_never_becomes_ready_gets_no_traffic(
    survived: dict[str, Future[Rolled]], project: Sandbox
) -> None:
    rolled = survived["unready"].result()
    assert_taken_back(rolled)
    assert "was not ready within 4 s" in rolled.outcome.json["reason"]
    assert rolled.load.of(NEVER_READY) == rolled.load.lost() == []
    assert project.server_pids("errors", NEVER_READY) == []


# -- what it stands on goes, one after the other


@pytest.fixture
def alone(bad: dict[str, Future[Rolled]], survived: dict[str, Future[Rolled]]) -> None:
    """Nothing else goes on in the project."""
    wait_for_all(bad)
    wait_for_all(survived)


@pytest.mark.usefixtures("alone")
def test_without_metrics_no_step_passes(project: Sandbox) -> None:
    write_endpoint(project, "errors", max_bake="8s", on_inconclusive="hold")
    rollout, supervisor = Rollout(project, "errors"), Supervisor(project.node)
    rollout.suffer(NEW, error_ratio=0)

    def prometheus_stops(rollout: Rollout) -> None:
        rollout.wait_for("baking")
        supervisor._call("stopProcess", "prometheus")

    try:
        held = rollout.run(prometheus_stops, steps="50,100")
    finally:
        supervisor._call("startProcess", "prometheus")

    assert held.outcome.status == 3, held.outcome
    assert "inconclusive" in held.outcome.err
    assert held.observed == {OLD: 50, NEW: 50}
    assert held.load.lost() == []
    assert project.finish(rollout.lepton("abort")).status == 0
    assert project.observed(rollout.endpoint) == BEFORE


@pytest.mark.usefixtures("alone")
def test_a_full_disk_loses_nothing_and_is_survived(project: Sandbox) -> None:
    state = project.root / ".state"
    if not state.is_mount():
        pytest.skip("no disk can be mounted here")
    write_endpoint(project, "errors", **NO_GATES)
    rollout, stuffing = Rollout(project, "errors"), state / "stuffing"

    def disk_fills(rollout: Rollout) -> None:
        rollout.wait_for("baking")
        with stuffing.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        rollout.wait_for("taking back")
        assert shutil.disk_usage(state).free == 0
        assert rollout.load.of(NEW, since=time.monotonic() - 1), "a move of the traffic that nobody could record"
        stuffing.unlink()

    try:
        rolled = rollout.run(disk_fills, steps="50,100")
    finally:
        stuffing.unlink(missing_ok=True)

    assert_taken_back(rolled)
    assert rolled.load.lost() == []
    assert "No space left on device" in rolled.outcome.err or "no space left on device" in rolled.outcome.err


@pytest.mark.usefixtures("alone")
def test_a_clock_that_jumps_neither_ends_a_bake_nor_a_rollout(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_endpoint(project, "errors", **NO_GATES)
    monkeypatch.setenv("PATH", project.environment["PATH"])
    rollout, clock = Rollout(project, "errors"), JumpingClock()
    served = Project(project.root)

    def driven() -> RolloutState:
        releases, endpoint = Releases(served, print, clock), served.stack(rollout.endpoint)
        means = replace(
            means_of(served, print),
            releases=releases,
            sampler=lambda endpoint, state: Sampler(
                releases.observer(endpoint), endpoint.team, endpoint.endpoint.model, state.settings.gates, clock
            ),
            clock=clock,
        )
        settings = endpoint.endpoint.rollout.model_copy(update={"steps": (50.0, 100.0), "bake": 4.0})
        plan = make_plan(releases, served, endpoint, {OLD: 0, NEW: 1}, settings, clock)
        state = new_rollout(releases, served, endpoint, plan, settings, "somebody", clock.now())
        driver = Driver(means, rollout.endpoint, driver_name())
        driver.register(state)
        return driver.go_on()

    with rollout.load, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(driven)
        baked: list[float] = []
        for step, jump in enumerate((timedelta(days=2), timedelta(days=-4))):
            bakes = partial(rollout.at, step, "baking")
            project.wait_until(lambda bakes=bakes: ending.done() or bakes(), 60, f"the bake of step {step + 1}")
            began = time.monotonic()
            clock.offset += jump
            project.wait_until(lambda bakes=bakes: ending.done() or not bakes(), 60, "its end")
            baked.append(time.monotonic() - began)
        state = ending.result()

    assert state.phase == "succeeded", state
    assert project.observed(rollout.endpoint) == AFTER
    assert rollout.load.lost() == []
    assert all(3 < seconds < 30 for seconds in baked), baked


@pytest.mark.usefixtures("alone")
def test_nothing_is_left_of_it_all(project: Sandbox) -> None:
    # The engine doesn't wait for its language host's end; one that was left alone stays for minutes.
    project.wait_until(lambda: not project.leftovers(), 20, "the end of Pulumi's processes")
    assert project.locks() == []
    assert [model for model in MODELS if Rollout(project, model).state()] == []
