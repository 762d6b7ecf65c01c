"""An endpoint's component under `pulumi up`: its routes follow its settings, and what can't be is refused first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cluster.manifests.claims import CLAIM
from infra.cluster.manifests.isolation import REFERENCE_GRANT
from infra.cluster.names import team_namespace
from infra.cluster.observe import Observer
from infra.contracts import ObservationError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.endpoint_world import MODEL, EndpointWorld
from tests.cluster.gateway import GatewayClass
from tests.deadline import until

V1, V2 = "1.0.0", "2.0.0"
REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json
from pathlib import Path
import pulumi
from infra.cluster.endpoint import Endpoint
from infra.contracts import Stack
from infra.errors import UserError
from infra.settings import EndpointSettings

given = json.loads(Path("given.json").read_text())
try:
    settings = EndpointSettings.model_validate(given["settings"])
    stack = Stack(given["team"], pulumi.get_stack(), str(Path.cwd()))
    endpoint = Endpoint(stack, settings, given["platform"], given["versions"])
except UserError as error:
    raise pulumi.RunError(str(error)) from None
for name, value in endpoint.exports.items():
    pulumi.export(name, value)
"""


class EndpointStack:
    """The stack of one endpoint in a project of its own."""

    def __init__(self, world: EndpointWorld, folder: Path) -> None:
        self.world, self.folder = world, folder
        (folder / "backend").mkdir()
        (folder / "__main__.py").write_text(PROGRAM)
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump({"name": world.team, "runtime": "python"}))
        self.run("stack", "init", "endpoint")

    def write(self, weights: Mapping[str, int], **settings: Any) -> None:
        variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
        document = {"environment": self.world.environment, "model": MODEL, "variants": variants} | settings
        versions = {version: {"backend": backend} for version, backend in self.world.backends(*weights).items()}
        given = {
            "team": self.world.team,
            "settings": document,
            "platform": self.world.platform,
            "versions": versions,
        }
        (self.folder / "given.json").write_text(json.dumps(given))

    def up(self, weights: Mapping[str, int], **settings: Any) -> str:
        """Raises AssertionError with what Pulumi says where it fails."""
        self.write(weights, **settings)
        return self.run("up", "--yes", "--skip-preview", "--refresh")

    def run(self, *command: str) -> str:
        outcome = subprocess.run(
            ["pulumi", *command, "--non-interactive"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said = outcome.stdout + outcome.stderr
        assert outcome.returncode == 0, said
        return outcome.stdout

    @property
    def _environment(self) -> dict[str, str]:
        folders = [Path(sys.prefix) / "bin", REPOSITORY / ".tools" / "bin", REPOSITORY / "tests/plugins/kubernetes"]
        return os.environ | {
            "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'backend'}",
            "PULUMI_CONFIG_PASSPHRASE": "tests",
            "PULUMI_HOME": str(self.folder / "home"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }


@pytest.fixture
def world(control_plane: ControlPlane, gateway_class: GatewayClass, model_server: Path) -> Iterator[EndpointWorld]:
    found = EndpointWorld(control_plane, gateway_class, model_server)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def stack(world: EndpointWorld, tmp_path: Path) -> EndpointStack:
    return EndpointStack(world, tmp_path)


def observed(world: EndpointWorld) -> dict[str, int]:
    try:
        return Observer(world.platform).traffic(world.team, MODEL)["weights"]
    except ObservationError:
        return {}


def claims(world: EndpointWorld, *versions: str) -> list[str]:
    return [v for v in versions if world.control_plane.get(*REFERENCE_GRANT, CLAIM, world.namespace(v))]


def test_routes_follow_the_settings_and_go_without_a_trace(world: EndpointWorld, stack: EndpointStack) -> None:
    world.serve(V1, V2)
    stack.up({V1: 1})
    until(lambda: observed(world) == {V1: 1}, 30, what="the first version's weight")
    assert claims(world, V1, V2) == [V1]

    stack.up({V1: 9, V2: 1})
    until(lambda: observed(world) == {V1: 9, V2: 1}, 30, what="both versions' weights")
    assert claims(world, V1, V2) == [V1, V2]
    assert json.loads(stack.run("stack", "output", "--json")) == {
        "url": world.url,
        "weights": {V1: 9, V2: 1},
        "baseline": V1,
    }

    stack.up({V2: 1})
    until(lambda: observed(world) == {V2: 1}, 30, what="the second version's weight alone")
    assert claims(world, V1, V2) == [V2]

    stack.run("destroy", "--yes", "--skip-preview")
    namespace = team_namespace(world.environment, world.team)
    assert world.control_plane.list("gateway.networking.k8s.io/v1", "HTTPRoute", namespace) == []
    assert claims(world, V1, V2) == []


def test_a_version_without_a_ready_replica_gets_no_weight_and_nothing_is_touched(
    world: EndpointWorld, stack: EndpointStack
) -> None:
    world.serve(V1)
    world.make_room(V2)
    stack.up({V1: 1})
    until(lambda: observed(world) == {V1: 1}, 30, what="the first version's weight")
    with pytest.raises(AssertionError, match=r"2\.0\.0 has no ready replica, so it can't be given weight 1"):
        stack.up({V1: 1, V2: 1})
    assert observed(world) == {V1: 1}
    assert claims(world, V1, V2) == [V1]


def test_a_guard_that_somebody_took_away_is_put_back_without_a_refresh(
    world: EndpointWorld, stack: EndpointStack
) -> None:
    """As a deleted namespace takes it along, and Pulumi's state still has it; rollouts don't refresh."""
    world.serve(V1, V2)
    stack.up({V1: 1, V2: 0})
    until(lambda: observed(world) == {V1: 1, V2: 0}, 30, what="the weights")
    world.control_plane.delete(*REFERENCE_GRANT, CLAIM, world.namespace(V1))
    assert claims(world, V1, V2) == [V2]
    stack.write({V1: 1, V2: 1})
    stack.run("up", "--yes", "--skip-preview")
    assert claims(world, V1, V2) == [V1, V2]
    stack.up({V2: 1})
    assert claims(world, V1, V2) == [V2]


def test_versions_that_speak_grpc_in_vain_are_warned_of(world: EndpointWorld, stack: EndpointStack) -> None:
    stack.write({V1: 1})
    given = json.loads((stack.folder / "given.json").read_text())
    given["versions"][V1]["backend"]["grpc"] = True
    (stack.folder / "given.json").write_text(json.dumps(given))
    assert "is not reached by gRPC" not in stack.run("preview")
    given["platform"]["internals"]["gateway"]["hostnames"] = {world.team: "diagnostics.example.com"}
    (stack.folder / "given.json").write_text(json.dumps(given))
    said = stack.run("preview")
    assert "is not reached by gRPC, though its versions speak it" in said
    assert "host name diagnostics.example.com" in said


def test_what_the_gateway_class_cannot_do_is_an_error_at_preview(world: EndpointWorld, stack: EndpointStack) -> None:
    world.serve(V1)
    stack.write({V1: 1}, retries=5)
    with pytest.raises(AssertionError, match=r"lepton:endpoint\.retries: GatewayClass traefik doesn't say"):
        stack.run("preview")


def test_a_team_that_the_platform_does_not_know_is_refused(world: EndpointWorld, stack: EndpointStack) -> None:
    world.serve(V1)
    stack.write({V1: 1})
    given = json.loads((stack.folder / "given.json").read_text())
    (stack.folder / "given.json").write_text(json.dumps(given | {"team": "strangers"}))
    with pytest.raises(AssertionError, match="team strangers is not among the teams of"):
        stack.run("preview")


def test_somebodys_edit_of_a_weight_is_undone(world: EndpointWorld, stack: EndpointStack) -> None:
    world.serve(V1, V2)
    stack.up({V1: 9, V2: 1})
    until(lambda: observed(world) == {V1: 9, V2: 1}, 30, what="the weights")
    namespace = team_namespace(world.environment, world.team)
    route: Any = world.control_plane.get("gateway.networking.k8s.io/v1", "HTTPRoute", MODEL, namespace)
    rules = route["spec"]["rules"]
    rules[-1]["backendRefs"][0]["weight"] = 1
    world.control_plane.api.patch(
        "gateway.networking.k8s.io/v1", "HTTPRoute", MODEL, namespace, {"spec": {"rules": rules}}
    )
    until(lambda: observed(world) == {V1: 1, V2: 1}, 30, what="the edit")
    stack.up({V1: 9, V2: 1})
    until(lambda: observed(world) == {V1: 9, V2: 1}, 30, what="the weights again")
