"""The tests' Kubernetes is a real one: it schedules, controls, routes, comes back, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.control_plane import ControlPlane, own_address
from tests.cluster.gateway import CLASS, GatewayClass, put_behind
from tests.cluster.kwok_nodes import NEVER_READY, KwokNodes
from tests.deadline import until
from tests.plugins.kubernetes.api import Api, ApiError, Connection

_REPOSITORY = Path(__file__).parents[2]
_CLUSTER_OF_ITS_OWN = """
import os
from tests.cluster.control_plane import ControlPlane
control_plane = ControlPlane.in_new_folder()
control_plane.start()
print(control_plane.folder, flush=True)
input()
"""


def deployment(name: str, namespace: str, *, image: str = "example.com/server", gpus: int = 0) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "server", "image": image}
    if gpus:
        container |= {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def available(control_plane: ControlPlane, name: str, namespace: str) -> int:
    found = control_plane.get("apps/v1", "Deployment", name, namespace) or {}
    return (found.get("status") or {}).get("availableReplicas", 0)


def test_a_deployment_with_gpus_becomes_available_on_a_node_of_that_product(
    control_plane: ControlPlane, kwok_nodes: KwokNodes
) -> None:
    namespace = control_plane.namespace("gpus")
    control_plane.apply(deployment("a", namespace, gpus=3))
    until(lambda: available(control_plane, "a", namespace) == 2, what="both replicas being available")
    pods = control_plane.list("v1", "Pod", namespace)
    nodes = [control_plane.get("v1", "Node", pod["spec"]["nodeName"]) for pod in pods]
    assert {node["metadata"]["labels"]["nvidia.com/gpu.product"] for node in nodes if node} == {"NVIDIA-H100-80GB-HBM3"}


def test_a_pod_that_wants_more_gpus_than_any_node_has_is_not_placed(
    control_plane: ControlPlane, kwok_nodes: KwokNodes
) -> None:
    namespace = control_plane.namespace("too-many-gpus")
    control_plane.apply(deployment("a", namespace, gpus=9))

    def reasons() -> list[str]:
        pods = control_plane.list("v1", "Pod", namespace)
        return [condition["message"] for pod in pods for condition in pod["status"].get("conditions", [])]

    until(lambda: any("Insufficient nvidia.com/gpu" in reason for reason in reasons()), what="the scheduler's reason")


def test_a_pod_of_a_marked_image_never_becomes_ready(control_plane: ControlPlane, kwok_nodes: KwokNodes) -> None:
    namespace = control_plane.namespace("stuck")
    control_plane.apply(deployment("a", namespace, image=f"example.com/{NEVER_READY}"))

    def waiting() -> set[str]:
        statuses = [pod["status"] for pod in control_plane.list("v1", "Pod", namespace)]
        states = [container["state"] for status in statuses for container in status.get("containerStatuses", [])]
        return {state["waiting"]["reason"] for state in states}

    until(lambda: waiting() == {"CrashLoopBackOff"}, what="the containers' state")
    assert available(control_plane, "a", namespace) == 0


def test_an_unknown_field_is_refused(control_plane: ControlPlane) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(ApiError, match="prots"):
        control_plane.apply(service, dry_run=True)


def test_a_pod_that_breaks_its_namespaces_security_standard_is_refused(control_plane: ControlPlane) -> None:
    namespace = control_plane.namespace("strict", **{"pod-security.kubernetes.io/enforce": "restricted"})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "namespace": namespace},
        "spec": {"containers": [{"name": "c", "image": "example.com/c", "securityContext": {"privileged": True}}]},
    }
    with pytest.raises(ApiError, match="violates PodSecurity"):
        control_plane.apply(pod, dry_run=True)


def test_kinds_that_the_product_needs_are_served(control_plane: ControlPlane) -> None:
    kinds = [
        ("resource.k8s.io/v1", "ResourceClaimTemplate"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("scheduling.k8s.io/v1", "PriorityClass"),
    ]
    assert [control_plane.api.resource(*kind).path for kind in kinds] == [f"/apis/{version}" for version, _ in kinds]


def test_a_user_without_rights_is_refused(control_plane: ControlPlane) -> None:
    kubeconfig = control_plane.credentials("nobody-in-particular", ["visitors"])
    api = Api(Connection.of(kubeconfig.read_text(), None))
    with pytest.raises(ApiError, match='User "nobody-in-particular" cannot list resource "secrets"'):
        api.list("v1", "Secret")


def test_traffic_is_split_between_host_processes_by_weight(
    control_plane: ControlPlane, gateway_class: GatewayClass
) -> None:
    namespace = control_plane.namespace("split")
    with _answering("one") as one, _answering("two") as two:
        for name, port in (("one", one), ("two", two)):
            service = {"ports": [{"port": 80}]}
            metadata = {"name": name, "namespace": namespace}
            control_plane.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
            put_behind(control_plane, namespace, name, port)
        listener = {"name": "web", "protocol": "HTTP", "port": gateway_class.port, "hostname": "split.example.com"}
        backends = [{"name": "one", "port": 80, "weight": 3}, {"name": "two", "port": 80, "weight": 1}]
        for kind, spec in (
            ("Gateway", {"gatewayClassName": CLASS, "listeners": [listener]}),
            ("HTTPRoute", {"parentRefs": [{"name": "a"}], "rules": [{"backendRefs": backends}]}),
        ):
            metadata = {"name": "a", "namespace": namespace}
            control_plane.apply(
                {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
            )

        headers = {"Host": "split.example.com"}
        with httpx.Client(base_url=gateway_class.url, headers=headers) as client:
            until(lambda: client.get("/").status_code == 200, 30, what="the route being served")
            answers = [client.get("/").text for _ in range(40)]
    # The gateway takes turns, and the first answers may be of a turn that had begun.
    assert set(answers) == {"one", "two"}
    assert abs(answers.count("one") - 30) <= 1
    metrics = httpx.get(f"http://{gateway_class.metrics_address}/metrics").text
    assert f"{namespace}-one-http-80@kubernetesgateway" in metrics


def test_the_class_says_what_it_can_do(gateway_class: GatewayClass) -> None:
    assert "HTTPRouteSchemeRedirect" in gateway_class.features


def test_the_api_server_comes_back_with_all_that_it_had(own_control_plane: ControlPlane) -> None:
    own_control_plane.namespace("kept")
    own_control_plane.stop_api_server()
    with pytest.raises(ApiError) as caught:
        own_control_plane.get("v1", "Namespace", "kept")
    assert caught.value.code == 0
    own_control_plane.start_api_server()
    assert own_control_plane.get("v1", "Namespace", "kept")


def test_a_lost_node_becomes_not_ready(own_control_plane: ControlPlane) -> None:
    nodes = KwokNodes(own_control_plane)
    nodes.start()
    name = nodes.add("lost")
    nodes.lose(name)
    until(lambda: not nodes.is_ready(name), 60, what="the node being found lost")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_its_test_process_is_killed(end: signal.Signals) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    command = [sys.executable, "-c", _CLUSTER_OF_ITS_OWN]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=_REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        folder = process.stdout.readline().strip()
        assert len(_working_on(folder)) == 8, "four programs, and what ends each with the test process"
        process.send_signal(end)
    until(lambda: not _working_on(folder), what="everything having ended")
    shutil.rmtree(folder)


def test_nothing_is_left_when_it_is_stopped() -> None:
    found = ControlPlane.in_new_folder()
    found.start()
    assert len(_working_on(str(found.folder))) == 8
    found.stop()
    assert _working_on(str(found.folder)) == []
    assert not found.folder.exists()


def _working_on(folder: str) -> list[str]:
    return [" ".join(p.info["cmdline"]) for p in psutil.process_iter(["cmdline"]) if folder in str(p.info["cmdline"])]


@contextmanager
def _answering(text: str) -> Iterator[int]:
    """A server on this machine that answers everything so; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not worth a line."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET
        daemon_threads = True

    with Server((own_address(), 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
