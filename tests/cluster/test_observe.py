"""What an Observer says of a cluster: who holds what, what keeps a version from being ready, and its metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from infra.cluster.internals import PoolFacts
from infra.cluster.live.api import Api
from infra.cluster.live.nodes import inventory, pod_requests, room, shortage
from infra.cluster.live.symptoms import unready_because
from infra.cluster.manifests.priorities import priority_class_name, priority_classes
from infra.cluster.names import SERVER, version_annotations, version_labels
from infra.cluster.observe import Observer
from infra.contracts import NodeInventory, ObservationError, QueryError
from infra.monitoring.querying import PATH, BadExpressionError, RefusedError, instant_vector
from tests.cluster.control_plane import ControlPlane, own_address
from tests.cluster.endpoint_world import MODEL, EndpointWorld
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import NEVER_READY, KwokNodes
from tests.deadline import until

Json = dict[str, Any]

V1 = "1.0.0"
GPU = "nvidia.com/gpu"
H100: PoolFacts = {
    "name": "h100",
    "labels": {"gpu": "h100"},
    "gpu_resource": GPU,
    "product": "NVIDIA-H100-80GB-HBM3",
    "tolerations": [],
}


def node(
    name: str,
    *,
    ready: str = "True",
    labels: Json | None = None,
    spec: Json | None = None,
    resources: dict[str, str] | None = None,
) -> Json:
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec or {},
        "status": {
            "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110", **(resources or {})},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def pod(namespace: str, on: str | None, priority: str = "", phase: str = "Running", **requests: str) -> Json:
    return {
        "metadata": {"name": "server-1", "namespace": namespace},
        "spec": {
            "nodeName": on,
            "priorityClassName": priority,
            "containers": [{"resources": {"requests": requests}}],
        },
        "status": {"phase": phase},
    }


def namespace_of(version: str, name: str = "tumour-1") -> Json:
    return {
        "metadata": {
            "name": name,
            "labels": version_labels("dev", "diagnostics", "tumour", version),
            "annotations": version_annotations("dev", "diagnostics", "tumour", version),
        }
    }


# -- inventory


def test_an_inventory_says_what_each_node_has_and_who_holds_what() -> None:
    gpus = {GPU: "8", "nvidia.com/mig-1g.10gb": "0"}
    nodes = [
        node("b", labels={"gpu": "h100", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, resources=gpus),
        node("a", spec={"unschedulable": True}),
    ]
    serving = priority_class_name("lepton", "serving")
    version = "1.0.0-" + "long." * 20 + "1"
    pods = [
        pod("tumour-1", "b", serving, cpu="500m", memory="1Gi", **{GPU: "2"}),
        pod("tumour-1", "b", serving, cpu="1500m", memory="1Gi", **{GPU: "2"}),
        pod("kube-system", "b", "system-node-critical", cpu="100m"),
        pod("tumour-1", "b", serving, phase="Succeeded", cpu="4"),
        pod("tumour-1", None, serving, phase="Pending", cpu="4"),
    ]
    a, b = inventory(nodes, pods, [namespace_of(version)], [H100], "lepton")
    assert (a["name"], a["pool"], a["product"], a["ready"], a["gpus"]) == ("a", "", None, False, {})
    assert (b["pool"], b["product"], b["ready"]) == ("h100", "NVIDIA-H100-80GB-HBM3", True)
    assert (b["cpu"], b["memory"], b["gpus"]) == (8.0, 32 * 2**30, {GPU: 8})
    assert b["held"] == [
        {
            "holder": f"diagnostics/dev.tumour-{version}",
            "replicas": 2,
            "priority": "serving",
            "cpu": 2.0,
            "memory": 2**31,
            "gpus": {GPU: 4},
        },
        {
            "holder": "kube-system",
            "replicas": 1,
            "priority": "system-node-critical",
            "cpu": 0.1,
            "memory": 0,
            "gpus": {},
        },
    ]


def test_room_is_what_others_leave_on_ready_nodes() -> None:
    nodes = [node("a", resources={GPU: "8"}), node("lost", ready="Unknown", resources={GPU: "8"})]
    pods = [
        pod("tumour-1", "a", cpu="2", memory="4Gi", **{GPU: "3"}),
        pod("kube-system", "a", cpu="500m", memory="1Gi", **{GPU: "1"}),
    ]
    found = inventory(nodes, pods, [namespace_of(V1)], [], "lepton")
    assert room(found, frozenset({"diagnostics/dev.tumour-1.0.0"})) == {
        "total": {"cpu": 7.5, "memory": 31 * 2**30, "gpu": 7},
        "reserved": {"cpu": 2.0, "memory": 4 * 2**30, "gpu": 3},
    }


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"limits": {"cpu": "2"}}}]}, 3),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [{"resources": {"requests": {"cpu": "5"}}}],
            },
            5,
        ),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [
                    {"restartPolicy": "Always", "resources": {"requests": {"cpu": "2"}}},
                    {"resources": {"requests": {"cpu": "2"}}},
                ],
                "overhead": {"cpu": "250m"},
            },
            4.25,
        ),
        ({"containers": [{"resources": {}}], "resources": {"requests": {"cpu": "6"}}}, 6),
        ({"containers": [{}]}, 0),
    ],
    ids=["sum", "init", "sidecar and overhead", "whole pod", "nothing"],
)
def test_a_pod_is_promised_what_kubernetes_counts(spec: Json, cpu: float) -> None:
    assert float(pod_requests({"spec": spec}).get("cpu", 0)) == cpu


def free_on(pool: str, *free: int) -> list[NodeInventory]:
    return [
        {
            "name": f"{pool}-{number}",
            "pool": pool,
            "product": None,
            "ready": True,
            "cpu": 8.0,
            "memory": 2**30,
            "gpus": {GPU: 8},
            "held": [{"holder": "x", "replicas": 1, "priority": "", "cpu": 0.0, "memory": 0, "gpus": {GPU: 8 - gpus}}],
        }
        for number, gpus in enumerate(free)
    ]


def test_a_shortage_says_which_pool_lacks_what() -> None:
    assert shortage(free_on("h100", 2, 2, 1), GPU, 4) == (
        "pool h100 lacks 4 nvidia.com/gpu on one node: 5 are free, at most 2 together"
    )
    assert shortage(free_on("h100", 2, 4), GPU, 4) == ""
    assert shortage([], GPU, 4) == "no node that is ready has nvidia.com/gpu"


def test_a_shortage_of_cores_or_memory_is_said_alike() -> None:
    nodes = free_on("cpus", 0, 0)
    nodes[0]["held"][0]["cpu"] = 6.5
    assert shortage(nodes, "cpu", 64) == "pool cpus lacks 64 cpu on one node: 9500m are free, at most 8 together"
    assert shortage(nodes, "cpu", 8) == ""
    assert shortage(nodes, "memory", 3 * 2**30) == (
        "pool cpus lacks 3Gi memory on one node: 2Gi are free, at most 1Gi together"
    )
    assert shortage(nodes, "memory", 2**30) == ""


def unplaced(requests: dict[str, str], selector: dict[str, str]) -> Json:
    found = pod("tumour-1", None, phase="Pending", **requests)
    found["spec"]["nodeSelector"] = selector
    found["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]
    return found


def test_cores_are_lacked_only_by_nodes_that_have_the_gpus_too() -> None:
    """Of other nodes it would not help to know."""
    without_gpus = free_on("cpus", 0)
    without_gpus[0]["gpus"] = {}
    asks = unplaced({"cpu": "64", GPU: "1"}, {})
    found = unready_because([], [asks], [*without_gpus, *free_on("h100", 4)], [])
    assert found[1:] == ["pool h100 lacks 64 cpu on one node: 8 are free, at most 8 together"]


def test_a_selector_that_no_ready_node_has_is_named() -> None:
    found = unready_because([], [unplaced({"cpu": "1"}, {"pool": "h100"})], [], [])
    assert found[1:] == ["no node that is ready has the labels pool=h100"]


def test_a_claim_names_its_device_class() -> None:
    asks = unplaced({}, {})
    asks["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]
    exactly = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 2}
    template = {"metadata": {"name": "gpu"}, "spec": {"spec": {"devices": {"requests": [{"exactly": exactly}]}}}}
    (_, said) = unready_because([], [asks], [], [], [template])
    assert said.startswith("it claims 2 of DeviceClass gpu.nvidia.com on one node")


# -- symptoms


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}},
            ["Pod a, container server waits: ImagePullBackOff: not found"],
        ),
        ({"state": {"waiting": {"reason": "ContainerCreating"}}}, []),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            },
            [
                "Pod a, container server waits: CrashLoopBackOff: back-off",
                "Pod a, container server ended before with exit code 137: OOMKilled",
            ],
        ),
        (
            {"state": {"terminated": {"exitCode": 3, "reason": "Error", "message": "wrong digest"}}},
            ["Pod a, container server ended with exit code 3: Error: wrong digest"],
        ),
        (
            {"state": {"running": {}}, "started": True},
            ["Pod a, container server runs, and does not answer its readiness probe"],
        ),
        ({"state": {"running": {}}, "started": True, "ready": True}, []),
    ],
    ids=["image", "starting", "crashing", "ended", "not ready", "ready"],
)
def test_a_containers_state_is_put_into_words(state: Json, said: list[str]) -> None:
    status = {"name": "server", "ready": False, **state}
    found = {"metadata": {"name": "a"}, "spec": {"containers": []}, "status": {"containerStatuses": [status]}}
    assert unready_because([], [found], [], []) == said


# -- in a real cluster


@pytest.fixture
def world(control_plane: ControlPlane, gateway_class: GatewayClass, model_server: Path) -> Iterator[EndpointWorld]:
    found = EndpointWorld(control_plane, gateway_class, model_server)
    try:
        yield found
    finally:
        found.stop()


def deployment(
    world: EndpointWorld,
    *,
    image: str = "example.com/server",
    gpus: int = 0,
    requests: dict[str, str] | None = None,
    priority: str = "",
    **selector: str,
) -> Json:
    labels = {"app": "some"}
    container: Json = {"name": SERVER, "image": image}
    if gpus:
        container["resources"] = {"limits": {GPU: str(gpus)}}
    if requests:
        container["resources"] = {"requests": requests}
    spec = {"containers": [container], "nodeSelector": selector, "priorityClassName": priority}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": SERVER, "namespace": world.namespace(V1)},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {k: v for k, v in spec.items() if v}},
        },
    }


def reasons(world: EndpointWorld) -> str:
    return "\n".join(Observer(world.platform).why_not_ready(world.team, MODEL, V1))


def test_gpus_that_no_node_has_are_named_with_the_pool_that_lacks_them(
    world: EndpointWorld, kwok_nodes: KwokNodes
) -> None:
    pool = world.environment
    kwok_nodes.add(f"{pool}-0", gpu="NVIDIA-H100-80GB-HBM3", gpus=8, labels={"pool": pool})
    world.platform["internals"]["pools"] = [H100 | {"name": pool, "labels": {"pool": pool}}]
    world.make_room(V1)
    world.control_plane.apply(deployment(world, gpus=9, pool=pool))
    wanted = f"pool {pool} lacks 9 nvidia.com/gpu on one node: 8 are free, at most 8 together"
    until(lambda: wanted in reasons(world), 30, what="the shortage")
    assert "has no node: 0/" in reasons(world)
    kwok_nodes.remove(f"{pool}-0")


def test_cores_and_memory_that_no_node_has_are_named_with_the_pool_that_lacks_them(
    world: EndpointWorld, kwok_nodes: KwokNodes
) -> None:
    pool = world.environment
    kwok_nodes.add(f"{pool}-0", labels={"pool": pool}, cpu=8, memory="32Gi")
    world.platform["internals"]["pools"] = [H100 | {"name": pool, "labels": {"pool": pool}, "gpu_resource": None}]
    world.make_room(V1)
    world.control_plane.apply(deployment(world, requests={"cpu": "64", "memory": "64Gi"}, pool=pool))
    wanted = f"pool {pool} lacks 64 cpu on one node: 8 are free, at most 8 together"
    until(lambda: wanted in reasons(world), 30, what="the shortage")
    assert f"pool {pool} lacks 64Gi memory on one node: 32Gi are free, at most 32Gi together" in reasons(world)
    kwok_nodes.remove(f"{pool}-0")


def test_a_claim_that_no_node_can_meet_is_named_with_its_device_class(
    world: EndpointWorld, kwok_nodes: KwokNodes
) -> None:
    world.make_room(V1)
    device_class = f"{world.environment}.example.com"
    exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": 2}
    template = {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}
    metadata = {"name": "gpu", "namespace": world.namespace(V1)}
    version = "resource.k8s.io/v1"
    world.control_plane.apply_all(
        {"apiVersion": version, "kind": "DeviceClass", "metadata": {"name": device_class}, "spec": {}},
        {"apiVersion": version, "kind": "ResourceClaimTemplate", "metadata": metadata, "spec": template},
    )
    made = deployment(world)
    spec = made["spec"]["template"]["spec"]
    spec["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]
    spec["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
    world.control_plane.apply(made)
    until(lambda: f"it claims 2 of DeviceClass {device_class}" in reasons(world), 30, what="the claim being named")


def test_held_gpus_are_in_the_inventory_and_the_room(world: EndpointWorld, kwok_nodes: KwokNodes) -> None:
    name, platform_namespace = world.environment, world.platform["internals"]["namespace"]
    kwok_nodes.add(name, gpu="NVIDIA-H100-80GB-HBM3", gpus=8, labels={"pool": name})
    world.platform["internals"]["pools"] = [H100 | {"name": name, "labels": {"pool": name}}]
    world.make_room(V1)
    world.control_plane.apply_all(*priority_classes(platform_namespace))
    priority = priority_class_name(platform_namespace, "serving-critical")
    world.control_plane.apply(deployment(world, gpus=3, priority=priority, pool=name))
    observer = Observer(world.platform)

    def found() -> NodeInventory:
        return next(entry for entry in observer.inventory() if entry["name"] == name)

    until(lambda: sum(held["replicas"] for held in found()["held"]) == 2, 30, what="both replicas being placed")
    (held,) = found()["held"]
    assert held["holder"] == f"{world.team}/{world.environment}.{MODEL}-{V1}"
    assert (held["priority"], held["gpus"]) == ("serving-critical", {GPU: 6})
    assert (found()["pool"], found()["product"]) == (name, "NVIDIA-H100-80GB-HBM3")
    reserved = observer.room()["reserved"]
    assert reserved["gpu"] == 6
    assert observer.room()["total"]["gpu"] >= 8
    kwok_nodes.remove(name)


def test_a_container_that_crashes_is_named(world: EndpointWorld, kwok_nodes: KwokNodes) -> None:
    world.make_room(V1)
    world.control_plane.apply(deployment(world, image=f"example.com/{NEVER_READY}"))
    until(lambda: "container server waits: CrashLoopBackOff" in reasons(world), 30, what="the crash")


def test_a_quota_that_refuses_pods_is_named(world: EndpointWorld) -> None:
    world.make_room(V1)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": world.namespace(V1)},
        "spec": {"hard": {"pods": "0"}},
    }
    world.control_plane.apply(quota)
    world.control_plane.apply(deployment(world))
    until(lambda: "no Pod can be made: " in reasons(world), 30, what="the refusal")
    assert "exceeded quota: none" in reasons(world)


def test_a_version_whose_namespace_is_gone_is_said_to_be(world: EndpointWorld) -> None:
    assert "is not there; `lepton deploy` makes it" in reasons(world)


# -- Prometheus


@contextmanager
def prometheus(host: str = "127.0.0.1") -> Iterator[str]:
    """Stands in for Prometheus; yields HOST:PORT. It answers `up` and refuses all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = urlsplit(self.path)
            up = target.path == PATH and parse_qs(target.query)["query"] == ["up"]
            sample = {"metric": {"job": "a"}, "value": [0, "1"]}
            body = {"data": {"resultType": "vector", "result": [sample]}} if up else {"error": "parse error"}
            self.send_response(200 if up else 400)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def queried(world: EndpointWorld, metrics_url: str, promql: str) -> list[tuple[dict[str, str], float]]:
    platform: Any = world.platform | {"metrics_url": metrics_url}
    return Observer(platform).query(promql)


def test_prometheus_is_asked_at_its_url(world: EndpointWorld) -> None:
    with prometheus() as address:
        assert queried(world, f"http://{address}", "up") == [({"job": "a"}, 1.0)]
        with pytest.raises(QueryError, match=r"Prometheus refused 'up\{': parse error"):
            queried(world, f"http://{address}", "up{")


def put_in_place_of_a_pod(world: EndpointWorld, namespace: str, service: str, host: str, port: int) -> None:
    """What listens there becomes the Service's only endpoint: the API server's proxy goes to Pods' addresses alone."""
    metadata = {"name": service, "namespace": namespace}
    spec = {"schedulerName": "nobody", "containers": [{"name": "a", "image": "example.com/a"}]}
    address = {"ip": host, "targetRef": {"kind": "Pod", **metadata}}
    subset = {"addresses": [address], "ports": [{"name": "web", "port": port}]}
    world.control_plane.apply_all(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]},
    )
    status = {"status": {"podIP": host, "podIPs": [{"ip": host}]}}
    Api(world.platform["internals"]["connection"]).patch(
        f"/api/v1/namespaces/{namespace}/pods/{service}/status", status
    )


def test_prometheus_is_asked_through_the_api_server(world: EndpointWorld) -> None:
    namespace = world.platform["internals"]["namespace"]
    service = {"ports": [{"name": "web", "port": 9090}]}
    metadata = {"name": "prometheus", "namespace": namespace}
    world.control_plane.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    url = f"kubernetes://{namespace}/prometheus:9090"
    with pytest.raises(ObservationError, match=r"the API server answers 404 to GET /api/v1/namespaces/"):
        queried(world, url, "up")
    with prometheus(own_address()) as address:
        host, _, port = address.rpartition(":")
        put_in_place_of_a_pod(world, namespace, "prometheus", host, int(port))

        def answered() -> list[tuple[dict[str, str], float]]:
            try:
                return queried(world, url, "up")
            except ObservationError:
                return []

        assert until(answered, 30, what="Prometheus answering through the API server") == [({"job": "a"}, 1.0)]
        with pytest.raises(QueryError, match=r"Prometheus refused 'up\{': parse error"):
            queried(world, url, "up{")


def test_a_prometheus_that_is_not_there_cannot_be_asked(world: EndpointWorld) -> None:
    with pytest.raises(ObservationError, match=r"Prometheus at http://127\.0\.0\.1:9 does not answer"):
        queried(world, "http://127.0.0.1:9", "up")


def test_an_answer_of_another_type_or_of_no_prometheus_is_told_apart() -> None:
    with pytest.raises(BadExpressionError, match="gives a scalar"):
        instant_vector("1", 200, b'{"data": {"resultType": "scalar", "result": [0, "1"]}}')
    with pytest.raises(RefusedError, match="no Prometheus"):
        instant_vector("up", 200, b"<html>")
    with pytest.raises(RefusedError, match="overloaded"):
        instant_vector("up", 503, b"overloaded")
