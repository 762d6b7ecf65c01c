"""The tests' own node runs real Pods under the rules that production has, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster import images
from tests.cluster.control_plane import ControlPlane
from tests.cluster.real_node import REAL_NODES, TOLERATION, RealNode, alive
from tests.cluster.real_node_needs import lacking
from tests.cluster.registry import RegistryServer
from tests.deadline import until

REPOSITORY = Path(__file__).parents[2]
MODEL, VERSION = "tumour", "1.0.0"

_POD_SECONDS = 60
_FOREVER = ["/bin/sleep", "infinity"]
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane, real_node: RealNode | None) -> RealNode:
    """The run's node; only tests that can't do with host processes ask for it."""
    if real_node is None:
        pytest.skip(str(lacking()))
    return real_node


@pytest.fixture
def own_node(own_control_plane: ControlPlane, tmp_path: Path) -> Iterator[RealNode]:
    """A node of the test's own, ended whatever happens."""
    if reason := lacking():
        pytest.skip(reason)
    node = RealNode(own_control_plane, tmp_path / "node", name="own")
    try:
        node.start()
        yield node
    finally:
        if node.folder.exists():
            node.stop()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry that holds the example model."""
    server = RegistryServer(tmp_path_factory.mktemp("registry"))
    server.start()
    try:
        work = tmp_path_factory.mktemp("example")
        command = [sys.executable, "examples/tumour/build.py", "--store", server.store, "--work", str(work)]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        yield server
    finally:
        server.stop()


def test_a_restricted_pod_pulls_the_example_model_and_answers_on_its_own_address(
    control_plane: ControlPlane, node: RealNode, registry: RegistryServer
) -> None:
    namespace = control_plane.namespace("real-node-example", **_RESTRICTED)
    control_plane.apply(_example(namespace, node.import_image(images.build("server")), registry.store))
    address = _ready_address(control_plane, namespace, MODEL)

    request = {"inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP64", "data": [1.0] * 30}]}
    answer = httpx.post(f"http://{address}:8080/v2/models/{MODEL}/infer", json=request)

    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == VERSION
    control_plane.delete("v1", "Namespace", namespace)


def test_a_pod_of_nobody_reads_the_project_and_can_write_nothing_of_this_machine(
    control_plane: ControlPlane, node: RealNode
) -> None:
    namespace = control_plane.namespace("real-node-nobody", **_RESTRICTED)
    program = (
        "import getpass, os, pathlib, infra\n"
        "assert os.getuid() == 65532 and getpass.getuser() == 'nonroot'\n"
        "folders = [pathlib.Path(infra.__file__).parent, pathlib.Path('/usr'), pathlib.Path('/etc')]\n"
        "assert not any(os.access(folder, os.W_OK) for folder in folders)\n"
        "assert not pathlib.Path('/var/lib').exists()\n"
    )
    image = node.import_image(images.build("server"))
    pod = _pod(namespace, "nobody", [_container("nobody", image, ["python", "-c", program])])
    pod["spec"]["restartPolicy"] = "Never"
    control_plane.apply(pod)

    def ended() -> Any:
        status = (control_plane.get("v1", "Pod", "nobody", namespace) or {}).get("status", {})
        return status if status.get("phase") in ("Succeeded", "Failed") else None

    status = until(ended, _POD_SECONDS, what="the Pod's end")
    assert status["phase"] == "Succeeded", status
    control_plane.delete("v1", "Namespace", namespace)


def test_a_gpu_that_is_offered_is_given_to_one_pod_and_not_to_a_second(
    own_control_plane: ControlPlane, own_node: RealNode
) -> None:
    own_node.offer(**{"nvidia.com/gpu": 1})
    image = own_node.import_image(images.build("server"))
    namespace = own_control_plane.namespace("gpus", **_RESTRICTED)
    for name in ("first", "second"):
        container = _container(name, image, _FOREVER)
        container["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        own_control_plane.apply(_pod(namespace, name, [container]))
        if name == "first":
            _ready_address(own_control_plane, namespace, name)

    def refusal() -> str:
        pod = own_control_plane.get("v1", "Pod", "second", namespace) or {}
        conditions = pod.get("status", {}).get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled" and "message" in c), "")

    assert "Insufficient nvidia.com/gpu" in until(refusal, what="the scheduler's word on the second Pod")


def test_nothing_of_a_node_is_left_once_it_is_stopped(own_control_plane: ControlPlane, own_node: RealNode) -> None:
    namespace = own_control_plane.namespace("left", **_RESTRICTED)
    image = own_node.import_image(images.build("server"))
    own_control_plane.apply(_pod(namespace, "left", [_container("left", image, _FOREVER)]))
    _ready_address(own_control_plane, namespace, "left")
    processes, marks = own_node.processes(), own_node.marks
    assert {"kubelet", "containerd", "containerd-shim-runc-v2", "sleep"} <= {process.name() for process in processes}
    assert {trace.split()[0] for trace in _traces(marks)} == {"card", "group", "route"}

    own_node.stop()

    assert not any(alive(process) for process in processes)
    assert _traces(marks) == set()
    assert not own_node.folder.exists()


def _traces(marks: list[str]) -> set[str]:
    """What a node with these marks has outside its namespaces: mounts, network cards, routes, control groups."""
    found = {f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found |= {f"card {name}" for name in psutil.net_if_addrs()}
    found |= {f"group {path}" for pattern in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(pattern)}
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout
    found |= {f"route {line}" for line in routes.splitlines()}
    return {trace for trace in found if any(mark in trace for mark in marks)}


def _example(namespace: str, image: str, store: str) -> dict[str, Any]:
    """The example model on its server, as a restricted Pod that pulls the model itself."""
    model = {"name": "model", "mountPath": "/model"}
    pull = ["lepton", "package", "export", f"{MODEL}:{VERSION}", "--as", "folder", "--to", "/model/files"]
    init = _container("pull", image, [*pull, "--store", store])
    server = _container("server", image, ["mlserver", "start", "/model/files"])
    server["env"] = [
        {"name": name, "value": value}
        for name, value in {"MLSERVER_HOST": "0.0.0.0", "MLSERVER_PARALLEL_WORKERS": "0"}.items()
    ]
    server["readinessProbe"] = {"httpGet": {"path": "/v2/health/ready", "port": 8080}, "periodSeconds": 1}
    pod = _pod(namespace, MODEL, [server])
    pod["spec"]["initContainers"] = [init]
    pod["spec"]["volumes"].append({"name": "model", "emptyDir": {}})
    for container in (init, server):
        container["volumeMounts"].append(model)
    return pod


def _container(name: str, image: str, command: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _pod(namespace: str, name: str, containers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "nodeSelector": REAL_NODES,
            "tolerations": [TOLERATION],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": images.USER,
                "fsGroup": images.USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def _ready_address(control_plane: ControlPlane, namespace: str, name: str) -> str:
    def address() -> str | None:
        status = (control_plane.get("v1", "Pod", name, namespace) or {}).get("status", {})
        conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
        return status.get("podIP") if conditions.get("Ready") == "True" else None

    return until(address, _POD_SECONDS, what=f"Pod {namespace}/{name} being ready") or ""
