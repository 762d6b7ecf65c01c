"""The node's guard under load: what it drops, what it takes back, what it leaves alone, and what a kill -9 changes."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from infra.single_node.machine import envoy
from infra.single_node.machine.claims import ports_of
from infra.single_node.machine.supervisor import Supervisor
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import TEAM, Sandbox
from tests.plugins import oip_server

ERRORS = {"error_ratio": 0.05, "lasting": "3s"}
LINE = re.compile(r"\S+Z (?P<kind>[a-z ]+): (?P<endpoint>\S+/\S+): (?P<text>.*)")


class Told(NamedTuple):
    """One line of the guard's log."""

    kind: str
    endpoint: str
    text: str


class NodeGuard:
    """The guard that the node keeps running."""

    def __init__(self, project: Sandbox) -> None:
        self._project = project

    def told(self, endpoint: str, kind: str) -> list[Told]:
        lines = (self._project.node.logs / "guard.log").read_text().splitlines()
        found = [Told(**match.groupdict()) for line in lines if (match := LINE.fullmatch(line))]
        return [each for each in found if (each.endpoint, each.kind) == (endpoint, kind)]

    def wait_for(self, endpoint: str, kind: str, count: int = 1) -> Told:
        """The last of so many things of a kind that it has told of an endpoint."""
        try:
            self._project.wait_until(lambda: len(self.told(endpoint, kind)) >= count, 60, f"{kind} of {endpoint}")
        except AssertionError as error:
            log = (self._project.node.logs / "guard.log").read_text()
            raise AssertionError(f"{error}\n{log}") from None
        return self.told(endpoint, kind)[-1]

    def kill(self) -> None:
        psutil.Process(pid_of(self._project, "guard")).kill()


def pid_of(project: Sandbox, program: str) -> int:
    pid = Supervisor(project.node).pid(program)
    assert pid is not None
    return pid


@pytest.fixture(scope="module")
def node() -> Iterator[Sandbox]:
    project = Sandbox()
    try:
        for model in ("several", "back"):
            for version in ("1.0.0", "2.0.0"):
                project.write_version(model, version)
        project.write_version("several", "3.0.0", server={"command": mortal(project)})
        rules = [{"ready": 1, "lasting": "2s"}, ERRORS]
        weights = {"1.0.0": 60, "2.0.0": 20, "3.0.0": 20}
        project.write_endpoint("several", weights, guard={"rules": rules, "cooldown": "1s", "max_actions": 2})
        rules = [ERRORS | {"action": "rollback"}]
        project.write_endpoint("back", {"1.0.0": 1}, guard={"rules": rules, "cooldown": "1s"})
        project.must("up", "dev", "--requests", "0")
        yield project
    finally:
        project.close()


@pytest.fixture
def guard(node: Sandbox) -> NodeGuard:
    return NodeGuard(node)


def mortal(project: Sandbox) -> list[str]:
    """A server that doesn't come back once it is killed and `grave` lies there."""
    server = [str(oip_server.build()), "--host", "{host}", "--http-port", "{http_port}"]
    server += ["--model", "{model}", "--version", "{version}"]
    return ["sh", "-c", f'test ! -e {grave(project)} && exec "$@"', "sh", *server]


def grave(project: Sandbox) -> Path:
    return project.root / "grave"


def drops_of(project: Sandbox, endpoint: str, count: int) -> list[dict[str, Any]]:
    """The endpoint's revisions that the guard made, once there are so many."""

    def found() -> list[dict[str, Any]]:
        revisions = project.must("history", endpoint, "--json").json
        return [revision for revision in revisions if revision["message"].startswith("guard: drop")]

    project.wait_until(lambda: len(found()) >= count, 60, f"{count} drops")
    return found()


def fail(project: Sandbox, model: str, version: str, **faults: object) -> None:
    (program,) = project.node.programs.glob(f"{TEAM}.{model}-{version}_*.conf")
    request = urllib.request.Request(
        f"http://127.0.0.1:{ports_of(project.node, program.stem)['http']}/faults", data=json.dumps(faults).encode()
    )
    with urllib.request.urlopen(request, timeout=5):
        pass


def test_dead_and_failing_variants_are_dropped_though_the_guard_is_killed_and_no_more_often_than_allowed(
    node: Sandbox, guard: NodeGuard
) -> None:
    endpoint = f"{TEAM}/dev.several"
    guard.wait_for(endpoint, "watching")
    with Load(infer_url(node.url, "several"), 50) as load:
        grave(node).touch()
        for pid in node.server_pids("several", "3.0.0"):
            psutil.Process(pid).kill()
        guard.wait_for(endpoint, "acting")
        # The action goes on without it.
        guard.kill()
        drops_of(node, endpoint, 1)
        assert node.observed(endpoint) == {"1.0.0": 75, "2.0.0": 25, "3.0.0": 0}
        assert not load.lost(), "of requests to a dead server, which fail over"

        fail(node, "several", "2.0.0", error_ratio=0.5)
        node.wait_until(lambda: "2.0.0" in guard.wait_for(endpoint, "beyond").text, 60, "harm found")
        guard.kill()
        first, second = drops_of(node, endpoint, 2)
        dropped = len(load.answers)
        assert node.observed(endpoint) == {"1.0.0": 100, "2.0.0": 0, "3.0.0": 0}
        assert first["message"].startswith("guard: drop 3.0.0 (3.0.0: ")
        assert second["message"].startswith("guard: drop 2.0.0 (2.0.0: ")
        assert first["by"] == second["by"] == "guard"
        node.wait_until(lambda: len(load.answers) > dropped + 20, 20, "answers after it")
        assert not [answer for answer in list(load.answers)[dropped:] if answer.version == "2.0.0"]

        # Somebody gives it weight again, and it fails by turns.
        node.must("traffic", "set", endpoint, "1.0.0=80", "2.0.0=20")
        with alternating(node, "several", "2.0.0"):
            node.wait_until(lambda: "within an hour" in guard.wait_for(endpoint, "held back").text, 60, "the limit")
        held = guard.wait_for(endpoint, "held back")
        assert "2 actions within an hour, and 2 may be" in held.text
        assert node.observed(endpoint) == {"1.0.0": 80, "2.0.0": 20, "3.0.0": 0}
    assert not load.lost(except_version="2.0.0")


def test_a_version_that_fails_is_rolled_back_and_never_forth(node: Sandbox, guard: NodeGuard) -> None:
    endpoint = f"{TEAM}/dev.back"
    node.must("traffic", "set", endpoint, "1.0.0=0", "2.0.0=1")
    with Load(infer_url(node.url, "back"), 50) as load:
        fail(node, "back", "2.0.0", error_ratio=0.5)
        guard.wait_for(endpoint, "done")
        assert node.observed(endpoint) == {"1.0.0": 1}
        node.wait_until(lambda: load.answers[-1].version == "1.0.0", 20, "an answer of the version before")
        assert not load.lost(except_version="2.0.0")

        # The version from before fails too, and back to the other the guard must not go.
        fail(node, "back", "1.0.0", error_ratio=0.5)
        held = guard.wait_for(endpoint, "held back")
        assert "revisions" in held.text
        assert node.observed(endpoint) == {"1.0.0": 1}
        assert len(guard.told(endpoint, "done")) == 1


def test_a_second_guard_says_that_there_is_one(node: Sandbox) -> None:
    outcome = node.lepton("guard", "dev")
    assert outcome.status == 1
    assert "another guard on this machine" in outcome.err


def test_a_look_prints_what_there_is_to_see(node: Sandbox) -> None:
    found = {each["endpoint"]: each for each in node.must("guard", "dev", "--once", "--json").json}
    variants = found[f"{TEAM}/dev.back"]["variants"]
    assert {each["version"]: each["ready"] for each in variants}["1.0.0"] == 1


def test_a_guard_that_is_told_to_end_does_so_at_once_also_while_the_router_hangs(
    node: Sandbox, guard: NodeGuard
) -> None:
    first = f"{TEAM}/dev.back"
    told = len(guard.told(first, "problem"))
    router = psutil.Process(pid_of(node, envoy.PROGRAM))
    process = psutil.Process(pid_of(node, "guard"))
    router.suspend()
    try:
        # By then it waits for what the router says of the second endpoint, for seconds.
        assert "does not answer" in guard.wait_for(first, "problem", told + 1).text
        process.terminate()
        process.wait(2)
    finally:
        router.resume()
    log = node.node.logs / "supervisord.log"
    node.wait_until(lambda: "guard (exit status 0" in log.read_text(), 10, "an end without an error")


@contextmanager
def alternating(project: Sandbox, model: str, version: str) -> Iterator[None]:
    """A fault that comes and goes each second."""
    stopping = threading.Event()

    def alternate() -> None:
        share = 0.0
        while not stopping.wait(1.0):
            share = 1.0 - share
            fail(project, model, version, error_ratio=share)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)
