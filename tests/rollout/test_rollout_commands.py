"""What the commands say and how they end: wrong usage, plans that can't be, and rollouts that nobody drives."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from cli.rollout import app
from cli.rollout.watching import follow
from infra.contracts import Amount, Held, NodeInventory, ObservationError, QueryError, Room
from rollout.analysis.samples import Look
from rollout.driving.progress import Progress, progress_of
from rollout.driving.starting import require_startable
from rollout.driving.state import RolloutState
from rollout.project import ROLLOUT_KEY, StackConfig, write_config
from rollout.records.record import Record
from rollout.release import Releases
from tests.rollout.world import ENDPOINT, NEW, OLD, World

QUERY = 'revenue{version="{version}"}'


class StandInReleases:
    """Stands in for `Releases`: a world's data plane and history, and metrics as a test says."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.gate: float | Exception | None = 1.0
        """What the gate's own query gives."""
        self.rate: float | Exception = 80.0
        self.memory = 2**34

    def pulumi(self, stack: StackConfig) -> Any:
        outputs = {"desired_replicas": 0} if stack.kind == "version" else self._world.outputs
        return SimpleNamespace(outputs=lambda: outputs, history=lambda: self._world.history)

    def observer(self, stack: StackConfig) -> StandInReleases:
        return self

    def traffic(self, team: str, model: str) -> dict[str, Any]:
        return {"weights": dict(self._world.weights), "shadow": {}}

    def room(self) -> Room:
        total = Amount(cpu=8.0, memory=self.memory, gpu=0)
        return {"total": total, "reserved": Amount(cpu=1.0, memory=2**33, gpu=0)}

    def inventory(self) -> list[NodeInventory]:
        reserved = self.room()["reserved"]
        held: Held = {
            "holder": "others",
            "replicas": 1,
            "priority": "serving",
            "cpu": reserved["cpu"],
            "memory": reserved["memory"],
            "gpus": {},
        }
        return [
            {
                "name": "node",
                "pool": "",
                "product": None,
                "ready": True,
                "cpu": 8.0,
                "memory": self.memory,
                "gpus": {},
                "held": [held],
            }
        ]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        found = self.gate if promql.startswith("revenue") else self.rate if ":requests:" in promql else None
        if isinstance(found, Exception):
            raise found
        return [] if found is None else [({}, found)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def releases(world: World, monkeypatch: pytest.MonkeyPatch) -> StandInReleases:
    """The commands run in the world's project, against these."""
    found = StandInReleases(world)
    monkeypatch.chdir(world.root)
    monkeypatch.setattr("cli.context.releases", lambda *_: found)
    monkeypatch.setattr("rollout.driving.means.Releases", lambda *_: found)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def settle(world: World, **settings: Any) -> None:
    """Gives the endpoint settings of rollouts."""
    write_config(world.endpoint, {"lepton:endpoint": world.endpoint.document() | {"rollout": settings}})


def under_way(world: World, phase: str, **changes: Any) -> RolloutState:
    state = world.rollout({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100}).model_copy(update={"phase": phase, **changes})
    write_config(world.endpoint, {ROLLOUT_KEY: state.document()})
    return state


@pytest.mark.parametrize("command", ["plan", "start"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", NEW, "--strategy", "canari"), "canari"),
        (("--to", NEW, "--bake", "2 moons"), "2 moons"),
        (("--to", NEW, "--steps", "50,25"), "steps"),
        (("--to", f"{NEW}=30"), "leaves open who has the rest"),
        (("--to", OLD), ""),
    ],
)
def test_wrong_usage_ends_with_2(command: str, options: tuple[str, ...], said: str, releases: StandInReleases) -> None:
    ended = run(command, ENDPOINT, *options)
    assert ended.exit_code == 2, ended.output
    assert said in words(ended.stderr)


def test_a_query_that_is_none_is_refused_with_its_gate(world: World, releases: StandInReleases) -> None:
    settle(world, gates=[{"metric": "promql", "name": "revenue", "query": QUERY}])
    releases.gate = QueryError("parse error: unclosed left brace")
    for command in ("plan", "start"):
        ended = run(command, ENDPOINT, "--to", NEW)
        assert ended.exit_code == 1
        assert "gate revenue: parse error" in words(ended.stderr)
    assert world.endpoint.rollout() is None


def test_a_query_without_a_value_is_a_note(world: World, releases: StandInReleases) -> None:
    settle(world, gates=[{"metric": "promql", "name": "revenue", "query": QUERY}])
    releases.gate = None
    ended = run("plan", ENDPOINT, "--to", NEW)
    assert ended.exit_code == 0, ended.output
    assert f"gate revenue: its query gives no values for {OLD} now" in words(ended.stdout)


def test_a_rate_is_said_with_the_time_that_it_is_of(releases: StandInReleases) -> None:
    assert "80 requests/s over the last 5 min" in run("plan", ENDPOINT, "--to", NEW).stdout


def test_metrics_that_do_not_answer_are_not_taken_for_no_requests(releases: StandInReleases) -> None:
    releases.rate = ObservationError("Prometheus does not answer")
    said = run("plan", ENDPOINT, "--to", NEW).stdout
    assert "Prometheus does not answer" in said
    assert "no requests were seen" not in said


def test_what_is_lacking_is_said_in_units(world: World, releases: StandInReleases) -> None:
    team = world.root / "stacks" / "diagnostics"
    document = {"environment": "dev", "model": "scan", "version": NEW, "resources": {"memory": "4Gi"}}
    (team / f"Pulumi.dev.scan-{NEW}.yaml").write_text(json.dumps({"config": {"lepton:version": document}}))
    releases.memory = 2**33
    ended = run("start", ENDPOINT, "--to", NEW)
    assert ended.exit_code == 1
    assert "at its peak it lacks 4.3 GB of memory" in words(ended.stderr)


def test_outputs_of_an_update_that_failed_hinder_no_rollout(world: World, releases: StandInReleases) -> None:
    world.outputs = world.outputs | {"weights": {OLD: 50, NEW: 50}}
    require_startable(cast("Releases", releases), world.project, world.endpoint)


def test_pausing_what_is_paused_is_no_error(world: World, releases: StandInReleases) -> None:
    state = under_way(world, "paused", reason="paused by ada")
    ended = run("pause", ENDPOINT)
    assert ended.exit_code == 0, ended.output
    assert f"rollout {state.id} is paused already" in ended.stdout
    assert world.endpoint.rollout() == state.document()


# -- what is shown


def progress(world: World) -> Progress:
    found = progress_of(world.project, world.means().releases, world.endpoint, world.clock)
    assert found is not None
    return found


def test_rates_of_a_rollout_that_nobody_looks_at_are_not_shown(world: World) -> None:
    world.clock.at(9.0, lambda: world.edit(request="pause", asked_by="ada"))
    state = world.start(world.rollout({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100}, bake="1m", max_bake="2m"))
    assert state.phase == "paused"
    assert progress(world).seen.keys() == {OLD, NEW}
    world.clock.sleep(30.0)
    assert progress(world).seen == {}
    assert Record.of(world.project, world.endpoint, state.id).looks()


def test_a_rollout_that_nobody_drives_is_not_waited_for_off_a_terminal(world: World) -> None:
    under_way(world, "baking")
    began, shown = world.clock.monotonic(), list[Progress]()
    last = follow(progress(world), lambda: progress(world), shown.append, world.clock, 1.0, alone=True)
    assert last is not None
    assert not last.driven
    assert not last.state.stopped
    assert world.clock.monotonic() - began == pytest.approx(10.0)


def test_watch_off_a_terminal_says_what_is_wrong_and_ends(
    world: World, releases: StandInReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = under_way(world, "baking")
    now = world.clock.now().timestamp()
    Record.of(world.project, world.endpoint, state.id).look(0, Look(now, 1.0, problem="the metrics server is away"))
    monkeypatch.setattr("rollout.clock.SystemClock", lambda: world.clock)
    ended = run("watch", ENDPOINT)
    assert ended.exit_code == 3
    assert "no process on this machine drives it · nothing to see: the metrics server is away" in ended.stdout
    assert f"lepton rollout resume {ENDPOINT}" in ended.stderr


def test_a_rollout_that_is_driven_is_followed_to_its_end(world: World) -> None:
    under_way(world, "baking")
    world.clock.at(60.0, lambda: world.edit(phase="held", reason="nobody can say"))
    with world.project.driving(world.endpoint):
        last = follow(progress(world), lambda: progress(world), lambda _: None, world.clock, 1.0, alone=True)
    assert last is not None
    assert last.state.phase == "held"


def test_on_a_terminal_a_rollout_that_nobody_drives_is_watched_on(world: World) -> None:
    under_way(world, "baking")
    world.clock.at(60.0, lambda: write_config(world.endpoint, {ROLLOUT_KEY: None}))
    looks = list[Progress]()

    def look() -> Progress | None:
        return progress_of(world.project, world.means().releases, world.endpoint, world.clock, in_file=True)

    assert follow(progress(world), look, looks.append, world.clock, 1.0, alone=False) is None
    assert len(looks) == 60
