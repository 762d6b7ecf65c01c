"""An environment stays in its cluster, whatever a kubeconfig's current context has become: asked of two real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cluster.endpoint import Shifter
from infra.cluster.internals import Connection
from infra.cluster.live.api import Api, OtherClusterError
from infra.cluster.observe import Observer
from infra.contracts import ObservationError
from infra.names import PLATFORM_PROJECT
from tests.cluster.control_plane import ControlPlane
from tests.cluster.endpoint_world import MODEL, EndpointWorld
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.sandbox import ClusterSandbox

CALLS: list[Callable[[Api], object]] = [
    lambda api: api.get("/version"),
    lambda api: api.items("/api/v1/nodes"),
    lambda api: api.patch("/api/v1/namespaces/default", {"metadata": {"labels": {"patched": "yes"}}}),
    lambda api: api.service("default", "kubernetes", "https", "/"),
]


def connection(control_plane: ControlPlane, identity: str | None = None) -> Connection:
    found: Connection = {"kubeconfig": str(control_plane.kubeconfig), "context": None, "document": None}
    return {**found, "identity": identity} if identity else found


@pytest.fixture(scope="module")
def other() -> Iterator[ControlPlane]:
    """A cluster beside the one that the environment is in."""
    found = ControlPlane.in_new_folder()
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize("call", CALLS, ids=["get", "items", "patch", "service"])
def test_nothing_is_asked_of_another_cluster(
    control_plane: ControlPlane, other: ControlPlane, call: Callable[[Api], object]
) -> None:
    here, there = (Api(connection(each)).identity() for each in (control_plane, other))
    with pytest.raises(OtherClusterError) as refused:
        call(Api(connection(other, here)))
    assert str(refused.value).startswith(
        f"the current context of {other.kubeconfig} leads to another cluster than the platform is in: the UID of its "
        f"kube-system is {there}, and the platform's is {here}; "
    )
    assert "say lepton:platform.cluster.existing.context" in str(refused.value)
    assert "patched" not in Api(connection(other)).get("/api/v1/namespaces/default")["metadata"]["labels"]


class Recorded(Api):
    """Remembers what was asked of the API server."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.paths: list[str] = []

    def _sent(self, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        self.paths.append(path)
        return super()._sent(method, path, **more)


def test_a_cluster_is_asked_once_which_it_is(control_plane: ControlPlane) -> None:
    api = Recorded(connection(control_plane, Api(connection(control_plane)).identity()))
    assert api.get("/version") == api.get("/version")
    assert api.paths == ["/api/v1/namespaces/kube-system", "/version", "/version"]


def test_a_cluster_that_does_not_say_which_it_is_is_not_trusted(control_plane: ControlPlane) -> None:
    nobody = Api(
        {"kubeconfig": str(control_plane.credentials("nobody", [])), "context": None, "document": None, "identity": "x"}
    )
    with pytest.raises(ObservationError, match="answers 403 to GET /api/v1/namespaces/kube-system"):
        nobody.get("/version")


def test_nothing_is_observed_or_shifted_in_another_cluster(
    control_plane: ControlPlane, gateway_class: GatewayClass, other: ControlPlane, model_server: Path
) -> None:
    platform = EndpointWorld(control_plane, gateway_class, model_server).platform
    internals = platform["internals"]
    internals["connection"] = connection(other, Api(connection(control_plane)).identity())
    observer, shifter = Observer(platform), Shifter(platform)
    asked: list[Callable[[], object]] = [
        lambda: observer.traffic("team", MODEL),
        observer.room,
        lambda: observer.why_not_ready("team", MODEL, "1.0.0"),
        lambda: shifter.shift("team", MODEL, {"1.0.0": 1}),
    ]
    for ask in asked:
        with pytest.raises(OtherClusterError):
            ask()


@pytest.fixture
def sandbox(
    control_plane: ControlPlane, gateway_class: GatewayClass, kwok_nodes: KwokNodes
) -> Iterator[ClusterSandbox]:
    found = ClusterSandbox(control_plane, gateway_class)
    try:
        yield found
    finally:
        found.close()


def test_a_platform_is_not_made_anew_where_the_current_context_leads(
    sandbox: ClusterSandbox, control_plane: ControlPlane, other: ControlPlane
) -> None:
    """Two contexts of one kubeconfig: what is current changes between two updates."""
    kubeconfig = sandbox.root / "kubeconfig"
    documents = [yaml.safe_load(each.kubeconfig.read_text()) for each in (control_plane, other)]
    merged = documents[0] | {"contexts": [], "clusters": [], "users": []}
    for name, document in zip(("here", "there"), documents, strict=True):
        for key in ("clusters", "users"):
            merged[key].append(document[key][0] | {"name": name})
        merged["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})

    def lead(context: str) -> None:
        kubeconfig.write_text(yaml.safe_dump(merged | {"current-context": context}))

    lead("here")
    sandbox.write_platform(existing={"kubeconfig": str(kubeconfig)})
    up = sandbox.up()
    assert up.status == 0, up
    made = sandbox.objects()

    lead("there")
    preview = sandbox.pulumi("preview", "--stack", sandbox.name, team=PLATFORM_PROJECT)
    up = sandbox.lepton("up", sandbox.name)
    here, there = (Api(connection(each)).identity() for each in (control_plane, other))
    for refused in (preview, up):
        assert refused.status != 0, refused
        said = refused.out + refused.err
        assert "leads to another cluster than" in said, refused
        assert here in said
        assert there in said
        assert "Traceback" not in said
    assert sandbox.objects() == made
    assert other.get("v1", "Namespace", sandbox.home) is None

    lead("here")
    up = sandbox.up()
    assert up.status == 0, up
    assert sandbox.objects() == made


def test_a_platform_that_pulumi_was_told_to_forget_is_brought_up_anew(
    sandbox: ClusterSandbox, other: ControlPlane
) -> None:
    """By the words of the refusal. Another cluster is then taken for what it is, and what is there is taken over."""
    assert sandbox.up().status == 0
    made = sandbox.objects()
    forgotten = sandbox.pulumi(
        "stack", "rm", "--force", "--yes", "--preserve-config", sandbox.name, team=PLATFORM_PROJECT
    )
    assert forgotten.status == 0, forgotten

    here = sandbox.settings["existing"]
    sandbox.write_platform(existing={"kubeconfig": str(other.kubeconfig)})
    up = sandbox.lepton("up", sandbox.name)
    assert up.status != 0
    assert "the cluster can't serve this environment" in up.err, up
    assert "leads to another cluster" not in up.err

    sandbox.write_platform(existing=here)
    up = sandbox.up()
    assert up.status == 0, up
    assert sandbox.objects() == made
