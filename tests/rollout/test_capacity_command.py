"""`lepton capacity`, and the room of `lepton rollout plan`, where the nodes are this file's own: what they say, what
they give as JSON, how they end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cli.main import app
from infra.contracts import Amount, Held, NodeInventory, ObservationError, Room

GIB = 2**30
H100 = "NVIDIA-H100-80GB-HBM3"
ENDPOINT = "diagnostics/prod.scan"


class Nodes:
    """Stands in for an environment's `Observer`: nodes that hold what a test puts there."""

    def __init__(self) -> None:
        self.nodes: list[NodeInventory] = []

    def add(self, name: str, pool: str = "h100", *, gpus: dict[str, int] | None = None, ready: bool = True) -> None:
        whole = {"nvidia.com/gpu": 8} if gpus is None else gpus
        self.nodes.append(
            {
                "name": name,
                "pool": pool,
                "product": H100 if whole else None,
                "ready": ready,
                "cpu": 96.0,
                "memory": 1024 * GIB,
                "gpus": whole,
                "held": [],
            }
        )

    def hold(self, node: str, holder: str, replicas: int, gpu: int, priority: str = "serving") -> None:
        held: Held = {
            "holder": holder,
            "replicas": replicas,
            "priority": priority,
            "cpu": 8.0 * replicas,
            "memory": 64 * GIB * replicas,
            "gpus": {"nvidia.com/gpu": gpu * replicas},
        }
        next(each for each in self.nodes if each["name"] == node)["held"].append(held)

    def inventory(self) -> list[NodeInventory]:
        return self.nodes

    def room(self) -> Room:
        held = [each for node in self.nodes for each in node["held"]]
        return {"total": _sum(self.nodes), "reserved": _sum(held)}

    def query(self, promql: str) -> Any:
        raise ObservationError("nobody has metrics here")


def _sum(parts: Sequence[NodeInventory] | Sequence[Held]) -> Amount:
    return {
        "cpu": sum(each["cpu"] for each in parts),
        "memory": sum(each["memory"] for each in parts),
        "gpu": sum(sum(each["gpus"].values()) for each in parts),
    }


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """A project with two versions of 2 replicas of 4 GPUs, the first in service, and two nodes of 8 GPUs."""
    (tmp_path / "Pulumi.yaml").write_text("name: lepton\nruntime: python\nmain: stacks/platform\n")
    platform = tmp_path / "stacks" / "platform"
    platform.mkdir(parents=True)
    _write(platform / "Pulumi.prod.yaml", {"lepton:platform": {"environment": "prod", "mode": "single-node"}})
    team = tmp_path / "stacks" / "diagnostics"
    team.mkdir()
    (team / "Pulumi.yaml").write_text("name: diagnostics\nruntime: python\n")
    for version in ("1.0.0", "2.0.0"):
        document = {
            "environment": "prod",
            "model": "scan",
            "version": version,
            "replicas": 2,
            "resources": {"cpu": 8, "memory": "64Gi", "gpu": 4},
        }
        _write(team / f"Pulumi.prod.scan-{version}.yaml", {"lepton:version": document})
    variants = [{"version": "1.0.0", "weight": 1}]
    endpoint = {"environment": "prod", "model": "scan", "variants": variants, "rollout": {"strategy": "blue-green"}}
    _write(team / "Pulumi.prod.scan.yaml", {"lepton:endpoint": endpoint})
    found = Nodes()
    for name in ("gpu-1", "gpu-2"):
        found.add(name)
        found.hold(name, f"{ENDPOINT}-1.0.0", 1, 4)
    monkeypatch.chdir(tmp_path)
    releases = {"platform": lambda _: {"mode": "single-node"}, "observer": lambda _: found}
    monkeypatch.setattr("cli.context.releases", lambda *_: SimpleNamespace(**releases))
    monkeypatch.setattr("infra.contracts.observer_of", lambda _: found)
    return found


def _write(file: Path, config: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump({"config": config}))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["capacity", *arguments])


def rollout(nodes: Nodes, *more: str) -> dict[str, Any]:
    """The strategies that `--json` tells of, by name."""
    found = run("--for", ENDPOINT, "--to", "2.0.0", "--json", *more)
    return {each["strategy"]: each for each in json.loads(found.stdout)["strategies"]}


def test_an_environment_is_shown_pool_by_pool(nodes: Nodes) -> None:
    nodes.add("cpu-1", "", gpus={})
    found = run("prod")
    lines = [line.split() for line in found.stdout.splitlines()]
    assert found.exit_code == 0
    assert ["h100", H100, "2", "cores", "192", "16", "176", "88"] in lines
    assert ["nvidia.com/gpu", "16", "8", "8", "4"] in lines
    assert ["-", "-", "1", "cores", "96", "0", "96", "96"] in lines
    assert "note: h100: of 8 free nvidia.com/gpu, 8 can't serve requests of 8" in found.stdout


def test_holders_are_shown_with_what_they_hold(nodes: Nodes) -> None:
    lines = [line.split() for line in run("prod").stdout.splitlines()]
    assert [f"{ENDPOINT}-1.0.0", "serving", "2", "16", "137.4", "GB", "8", "gpu", "2"] in lines


def test_a_node_that_takes_nothing_new_is_named(nodes: Nodes) -> None:
    nodes.add("gpu-3", ready=False)
    assert "note: node gpu-3 is not ready" in run("prod").stdout


def test_the_json_of_an_environment_has_every_node(nodes: Nodes) -> None:
    found = json.loads(run("prod", "--json").stdout)
    assert [each["name"] for each in found["nodes"]] == ["gpu-1", "gpu-2"]
    assert found["fragmentation"] == [
        {
            "pool": "h100",
            "resource": "nvidia.com/gpu",
            "total": 16,
            "free": 8,
            "free_on_one_node": 4,
            "stranded": {"2": 0, "4": 0, "8": 8},
        }
    ]


def test_a_rollout_that_fits_says_so(nodes: Nodes) -> None:
    found = run("--for", ENDPOINT, "--to", "2.0.0")
    assert found.exit_code == 0
    assert "blue-green fits." in found.stdout
    assert rollout(nodes)["blue-green"]["peak"] == {"1.0.0": 2, "2.0.0": 2}


def test_a_rollout_without_room_says_which_pool_lacks_what(nodes: Nodes) -> None:
    nodes.hold("gpu-2", "diagnostics/prod.other-1.0.0", 1, 2, "serving-critical")
    found = run("--for", ENDPOINT, "--to", "2.0.0")
    assert found.exit_code == 1
    assert (
        "blue-green does not fit: 1 of diagnostics/prod.scan-2.0.0 (new): pool h100 lacks 4 GPUs on one node (2 free, "
        "at most 2 together)." in found.stdout
    )
    assert "Would fit: rolling" in found.stdout
    assert "Nothing that may be moved, pre-empted or shrunk makes room for it." in found.stdout


def test_batch_that_would_make_room_is_named_and_left_alone(nodes: Nodes) -> None:
    nodes.hold("gpu-2", "night-job", 1, 2, "batch")
    found = run("--for", ENDPOINT, "--to", "2.0.0")
    assert found.exit_code == 1
    assert "What would make blue-green fit (the least that does):" in found.stdout
    assert "  pre-empt 1 of night-job (batch) on gpu-2" in found.stdout


def test_a_move_that_would_make_room_is_named(nodes: Nodes) -> None:
    """Of three nodes, two have 2 GPUs free and one 6: once one new replica is there, the other needs 2 GPUs more."""
    document = {"environment": "prod", "model": "small", "version": "1.0.0", "resources": {"gpu": 2}}
    _write(Path("stacks/diagnostics/Pulumi.prod.small-1.0.0.yaml"), {"lepton:version": document})
    nodes.add("gpu-3")
    nodes.hold("gpu-1", "diagnostics/prod.small-1.0.0", 1, 2)
    nodes.hold("gpu-2", "other", 1, 2)
    nodes.hold("gpu-3", "other", 1, 2)
    changes = rollout(nodes)["blue-green"]["changes"]
    assert (changes["preempt"], changes["shrink"]) == ([], [])
    assert changes["move"] == [
        {"demand": "diagnostics/prod.small-1.0.0", "from": "gpu-1", "to": "gpu-3", "pods": 1, "ends_first": False}
    ]
    assert (
        "  move 1 of diagnostics/prod.small-1.0.0 from gpu-1 to gpu-3" in run("--for", ENDPOINT, "--to", "2.0.0").stdout
    )


def test_the_peak_of_rolling_without_a_surge_is_what_runs(nodes: Nodes) -> None:
    nodes.hold("gpu-1", "other", 1, 4)
    nodes.hold("gpu-2", "other", 1, 4)
    least = rollout(nodes)["rolling with max_surge 0 and max_unavailable 1"]
    assert least["fits"]
    assert least["gpus"] == 8


def test_a_strategy_that_can_not_do_it_says_why(nodes: Nodes) -> None:
    found = run("--for", ENDPOINT, "--to", "2.0.0")
    assert "note: ab: ab compares versions" in found.stdout


def test_for_and_to_go_together(nodes: Nodes) -> None:
    found = run("--for", ENDPOINT)
    assert found.exit_code == 2
    assert "go together" in found.stderr


def test_an_environment_that_is_not_the_endpoints_is_refused(nodes: Nodes) -> None:
    found = run("dev", "--for", ENDPOINT, "--to", "2.0.0")
    assert found.exit_code == 2
    assert "is in prod, and not in dev" in found.stderr


def test_the_plan_of_a_rollout_asks_for_room_on_one_node(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GPUs are free, 2 on each of four nodes, and a replica needs 4."""
    nodes.hold("gpu-1", "other", 1, 2)
    nodes.hold("gpu-2", "other", 1, 2)
    for name in ("gpu-3", "gpu-4"):
        nodes.add(name)
        nodes.hold(name, "other", 1, 6)
    monkeypatch.setattr("rollout.planning.plan.running_replicas", lambda *_: {"1.0.0": 2, "2.0.0": 0})

    found = CliRunner().invoke(app, ["rollout", "plan", ENDPOINT, "--to", "2.0.0"])
    assert found.exit_code == 1
    assert (
        "It does not fit: it lacks a place for 2 of diagnostics/prod.scan-2.0.0 (new): pool h100 lacks 4 GPUs on one "
        "node (8 free, at most 2 together). Would fit: rolling with max_surge 0 and max_unavailable 1." in found.stdout
    )
    plan = json.loads(CliRunner().invoke(app, ["rollout", "plan", ENDPOINT, "--to", "2.0.0", "--json"]).stdout)
    assert (plan["fits"], plan["lacking"]) == (False, {})
    assert plan["without_place"][0]["replicas"] == 2
