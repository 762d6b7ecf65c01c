"""Files of a node that were edited by hand: found by the drivers' read, and put right by their update."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.names import endpoint_id, version_id
from infra.settings.endpoint import EndpointSettings
from infra.settings.version import ServerSettings
from infra.single_node.endpoint import EndpointRoutes
from infra.single_node.machine import envoy, metrics
from infra.single_node.machine.node import NodeError
from infra.single_node.platform import NodeMetrics, NodeRouter, NodeSupervisor
from infra.single_node.resource import Driver, Properties
from infra.single_node.version import ModelServers
from model_packaging.build import build_artifact
from model_packaging.stores.layout import Layout
from tests.deadline import until
from tests.single_node.running_node import QUICK, TEAM, RunningNode, new_model


def endpoint(node: RunningNode, model: str, weights: dict[str, int], **more: Any) -> Properties:
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    settings = EndpointSettings.model_validate({"environment": "dev", "model": model, "variants": variants} | more)
    return {
        "directory": str(node.node.directory),
        "team": TEAM,
        "endpoint": settings.model_dump(mode="json"),
        "backends": {version: {"protocol": "oip-v2", "grpc": False} for version in settings.versions},
    }


def version(node: RunningNode, store: Layout, model: str, **more: Any) -> Properties:
    """A version that serves, beside the stand-in server, what its artifact says."""
    folder = store.path.parent / model
    folder.mkdir(exist_ok=True)
    (folder / "package.yaml").write_text(
        json.dumps(
            {
                "framework": {"name": "none", "version": "1"},
                "training_data": "none",
                "licence": "Apache-2.0",
                "samples": [{"prompt": "hello"}],
            }
        )
    )
    (folder / "weights.txt").write_text(f"weights of {model}")
    server = node.spec(model).server.command
    command = ["sh", "-c", 'cat "$0/weights.txt"; echo; exec "$@"', "{model_dir}", *server]
    return {
        "node": {
            "directory": str(node.node.directory),
            "ports": list(node.port_range),
            "gpus": [],
            "runtime": "process",
        },
        "store": str(store.path),
        "team": TEAM,
        "model": model,
        "version": "1.0.0",
        "digest": build_artifact(folder, model, "1.0.0", store).digest,
        "server": ServerSettings(command=command).model_dump(mode="json"),
        "env": {},
        "replicas": 1,
        "gpus": 0,
        "health": QUICK.model_dump(mode="json"),
        "ready_seconds": 20,
        "drain_seconds": 5,
        "runtime": "process",
    } | more


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def drift(driver: Driver, props: Properties) -> str:
    """What a preview would show."""
    found = driver.read(props)
    assert found is not None
    problems = found.pop("drift", [])
    assert problems or found == props
    return "\n".join(problems)


def replaced(file: Path, old: str, new: str) -> None:
    content = file.read_text()
    assert old in content
    edited = file.with_suffix(".edited")
    edited.write_text(content.replace(old, new))
    edited.replace(file)


def test_an_edited_timeout_in_the_file_that_envoy_watches_is_found_and_put_right(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    props = endpoint(node, model, {"1.0.0": 90, "1.1.0": 10}, timeouts={"per_try": "12345ms"})
    driver = EndpointRoutes.driver
    driver.create(props)
    assert drift(driver, props) == ""
    file = envoy.routes_file(node.node)
    before = json.loads(file.read_text())["resources"]
    replaced(file, "12.345s", "0.001s")
    assert drift(driver, props) == "router/routes.json does not hold what its owners' files say"
    driver.update(props, props)
    assert drift(driver, props) == ""
    assert json.loads(file.read_text())["resources"] == before
    assert node.count(model, 20)


def test_edited_weights_and_shadow_are_told_as_envoy_has_them(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    props = endpoint(node, model, {"1.0.0": 90, "1.1.0": 10}, shadow={"version": "1.1.0", "percent": 25})
    driver = EndpointRoutes.driver
    driver.create(props)
    assert drift(driver, props) == ""
    file = envoy.routes_file(node.node)
    replaced(file, '"numerator": 250000', '"numerator": 500000')
    replaced(file, '"weight": 90', '"weight": 5')
    until(lambda: node.router.traffic(endpoint_id(TEAM, model))[0]["1.0.0"] == 5, what="the edit's effect")
    said = drift(driver, props)
    assert "weights in Envoy: 1.0.0=5 1.1.0=10; configured: 1.0.0=90 1.1.0=10" in said
    assert "shadow in Envoy: 1.1.0=50.0; configured: 1.1.0=25.0" in said
    driver.update(props, props)
    assert drift(driver, props) == ""
    assert node.router.traffic(endpoint_id(TEAM, model)) == ({"1.0.0": 90, "1.1.0": 10}, {"1.1.0": 25})


@pytest.mark.parametrize("kind", ["routes", "clusters"])
def test_an_edited_part_of_an_endpoint_is_found_and_put_right(node: RunningNode, model: str, kind: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    props = endpoint(node, model, {"1.0.0": 90, "1.1.0": 10})
    driver = EndpointRoutes.driver
    driver.create(props)
    file = node.node.router / kind / f"{endpoint_id(TEAM, model)}.json"
    replaced(file, "lepton", "other")
    assert f"router/{kind}/{file.name} is not as configured" in drift(driver, props)
    driver.update(props, props)
    assert drift(driver, props) == ""


def test_a_part_that_is_no_json_any_more_is_written_anew(own_node: RunningNode) -> None:
    model, other = new_model(), new_model()
    for name in (model, other):
        own_node.serve(name, "1.0.0")
        EndpointRoutes.driver.create(endpoint(own_node, name, {"1.0.0": 1}))
    props = endpoint(own_node, model, {"1.0.0": 1})
    file = own_node.node.router / "routes" / f"{endpoint_id(TEAM, model)}.json"
    file.write_text("{")
    with pytest.raises(NodeError, match=rf"{file.name} is not JSON: run `lepton up`"):
        EndpointRoutes.driver.create(endpoint(own_node, other, {"1.0.0": 2}))
    assert EndpointRoutes.driver.read(props) is None
    EndpointRoutes.driver.create(props)
    assert drift(EndpointRoutes.driver, props) == ""
    assert own_node.count(other, 5) == own_node.count(model, 5) == {"1.0.0": 5}


def test_without_an_answer_from_envoy_an_endpoint_can_be_read_and_removed(own_node: RunningNode) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0")
    props = endpoint(own_node, model, {"1.0.0": 1})
    EndpointRoutes.driver.create(props)
    own_node.supervisor._call("stopProcess", envoy.PROGRAM)
    assert "the router's admin interface does not answer" in drift(EndpointRoutes.driver, props)
    EndpointRoutes.driver.delete(props)
    assert EndpointRoutes.driver.read(props) is None


def part_of(node: RunningNode, model: str) -> Path:
    return node.node.router / "clusters" / f"{version_id(TEAM, model, '1.0.0')}.json"


def program_of(node: RunningNode, model: str, suffix: str) -> Path:
    (file,) = node.node.programs.glob(f"{version_id(TEAM, model, '1.0.0')}_*{suffix}")
    return file


def targets_of(node: RunningNode, model: str) -> Path:
    return node.node.metrics / "targets" / "server" / f"{version_id(TEAM, model, '1.0.0')}.json"


VERSION_EDITS = [
    (part_of, '"connect_timeout": "1s"', '"connect_timeout": "2s"'),
    (lambda node, model: program_of(node, model, ".json"), '"stop_seconds": 5', '"stop_seconds": 6'),
    (lambda node, model: program_of(node, model, ".conf"), "startsecs=1", "startsecs=2"),
    (targets_of, "[]", '[{"targets": ["127.0.0.1:1"]}]'),
]


@pytest.mark.parametrize(("file_of", "old", "new"), VERSION_EDITS, ids=["part", "specification", "program", "targets"])
def test_an_edited_file_of_a_version_is_found_and_put_right(
    node: RunningNode,
    model: str,
    store: Layout,
    file_of: Callable[[RunningNode, str], Path],
    old: str,
    new: str,
) -> None:
    driver, props = ModelServers.driver, version(node, store, model)
    props = driver.create(props)
    assert drift(driver, props) == ""
    file = file_of(node, model)
    replaced(file, old, new)
    assert f"{file.name} is not as configured" in drift(driver, props)
    driver.update(props, props)
    assert drift(driver, props) == ""
    driver.delete(props)


def test_a_tampered_artifact_is_unpacked_anew_and_what_ran_on_it_is_replaced(
    node: RunningNode, model: str, store: Layout
) -> None:
    driver, props = ModelServers.driver, version(node, store, model)
    props = driver.create(props)
    file = node.node.models / props["digest"].removeprefix("sha256:") / "weights.txt"
    good = file.read_text()
    file.write_text(good.upper())
    before = program_of(node, model, ".conf").stem
    driver.update(props, props | {"ready_seconds": 21})
    after = program_of(node, model, ".conf").stem
    assert file.read_text() == good
    assert after != before
    assert node.supervisor.log_tail(after).startswith(good)
    driver.delete(props)


def test_an_artifact_is_removed_with_the_last_version_that_uses_it(
    node: RunningNode, model: str, store: Layout
) -> None:
    driver, props = ModelServers.driver, version(node, store, model)
    folder = node.node.models / props["digest"].removeprefix("sha256:")
    other = props | {"team": "others"}
    for each in (props, other):
        driver.create(each)
    driver.delete(props)
    assert folder.exists()
    driver.delete(other)
    assert not folder.exists()
    assert props["digest"] not in (node.node.models / "users.json").read_text()


def test_the_artifact_of_a_version_that_never_came_up_is_removed(node: RunningNode, model: str, store: Layout) -> None:
    props = version(node, store, model, ready_seconds=1, server=ServerSettings(command=["false"]).model_dump())
    with pytest.raises(NodeError):
        ModelServers.driver.create(props)
    assert not (node.node.models / props["digest"].removeprefix("sha256:")).exists()


def test_edited_files_of_the_nodes_own_services_are_found_and_put_right(own_node: RunningNode) -> None:
    first, _ = own_node.port_range
    common = {"directory": str(own_node.node.directory), "service_ports": list(own_node.port_range)}
    router = common | {"address": "127.0.0.1", "port": own_node.port}
    prometheus = {"port": first + 150, "scrape_interval_seconds": 1, "retention_seconds": 3600}
    drivers: list[tuple[Driver, Properties]] = [
        (NodeSupervisor.driver, {"directory": str(own_node.node.directory)}),
        (NodeRouter.driver, router),
        (NodeMetrics.driver, common | prometheus),
    ]
    for driver, props in drivers:
        driver.create(props)
    supervisor, its_router, its_metrics = drivers
    edits = [
        (supervisor, "run/supervisord.conf", "silent=true", "silent=false"),
        (its_router, "router/bootstrap.json", "use_remote_address", "skip_xff_append"),
        (its_router, f"programs/{envoy.PROGRAM}.json", "warning", "debug"),
        (its_router, f"programs/{envoy.PROGRAM}.conf", "startsecs=1", "startsecs=3"),
        (its_router, "metrics/targets/router/node.json", "127.0.0.1", "127.0.0.2"),
        (its_metrics, "metrics/prometheus.yml", "1000ms", "9000ms"),
        (its_metrics, "metrics/rules.yml", "expr", "expression"),
        (its_metrics, f"programs/{metrics.PROGRAM}.json", "3600000ms", "60000ms"),
        (its_metrics, "programs/exporter.json", "--port", "--ports"),
        (its_metrics, "metrics/targets/node/node.json", "127.0.0.1", "127.0.0.2"),
    ]
    for (driver, props), name, old, new in edits:
        assert drift(driver, props) == "", name
        file = own_node.node.directory / name
        before = file.read_text()
        replaced(file, old, new)
        assert drift(driver, props) == f"{name} is not as configured"
        driver.update(props, props)
        assert drift(driver, props) == ""
        assert file.read_text() == before
