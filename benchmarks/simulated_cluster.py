"""A cluster of a benchmark's own that only says it runs Pods: a real control plane and a real gateway, nodes by kwok.

All its Pods have this machine's address, where one server stands for every version: it answers 404, as a server does
that doesn't know what it is asked, and which version it is nobody can tell. So an endpoint is reached through the
gateway as anywhere, and its weights are read from its route.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import BenchmarkError, MissingToolError
from infra.cluster.live.api import Api
from infra.cluster.names import HTTP_PORT
from tests.cluster.control_plane import COMMANDS, ControlPlane
from tests.cluster.daemon import missing
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.registry import RegistryServer

ROOT = Path(__file__).resolve().parents[1]
PODS_OF_A_NODE = 400
_ADDRESS_OF_A_POD = re.compile(r"\{\{ with \$podIPs \}\}.*?\{\{ end \}\}\s*\{\{ end \}\}", re.DOTALL)
_PASSING = ("Event", "Lease", "ComponentStatus")
_STORED = re.compile(r"^apiserver_storage_size_bytes\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class SimulatedCluster:
    control_plane: ControlPlane
    gateway: GatewayClass
    store: str
    """The location of its artifact store, a registry."""

    def objects(self) -> int:
        """How many there are, of all kinds but those that come and go by themselves."""
        api = Api({"kubeconfig": str(self.control_plane.kubeconfig), "context": None, "document": None})
        groups = [group["preferredVersion"]["groupVersion"] for group in api.get("/apis")["groups"]]
        count = 0
        for path in ["/api/v1", *(f"/apis/{group}" for group in groups)]:
            for kind in api.get(path)["resources"]:
                if "list" in kind["verbs"] and kind["kind"] not in _PASSING:
                    page = api.get(f"{path}/{kind['name']}", limit="1")
                    count += len(page["items"]) + page["metadata"].get("remainingItemCount", 0)
        return count

    def etcd_mib(self) -> float:
        """What etcd has on disk."""
        return sum(map(float, _STORED.findall(self._metrics()))) / 2**20

    def _metrics(self) -> str:
        folder = self.control_plane.folder
        trusted = ssl.create_default_context(cafile=str(self.control_plane.certificate_authority))
        trusted.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        return httpx.get(f"{self.control_plane.url}/metrics", verify=trusted, timeout=60).raise_for_status().text


@contextlib.contextmanager
def simulated_cluster(folder: Path, pods: int) -> Iterator[SimulatedCluster]:
    """With nodes enough for so many Pods; it leaves nothing behind.

    Raises:
        MissingToolError: when a command that it needs isn't there.
        BenchmarkError: when the port that its servers need is taken.
    """
    _put_tools_on_path()
    if gone := missing(*COMMANDS, "kwok", "traefik", "registry", "pulumi"):
        raise MissingToolError(f"no {', '.join(gone)} on PATH: `make tools` builds them")
    control_plane = ControlPlane(folder / "control-plane")
    control_plane.folder.mkdir(parents=True)
    with contextlib.ExitStack() as ending:
        ending.callback(control_plane.stop)
        control_plane.start()
        registry = RegistryServer(folder)
        ending.callback(registry.stop)
        registry.start()
        gateway = GatewayClass(control_plane)
        gateway.start()
        ending.enter_context(_server(control_plane.address))
        nodes = _NodesAtOneAddress(control_plane)
        nodes.start()
        for number in range(-(-pods // PODS_OF_A_NODE)):
            nodes.add(f"node-{number}", pods=PODS_OF_A_NODE)
        yield SimulatedCluster(control_plane, gateway, registry.store)


def _put_tools_on_path() -> None:
    entries = [str(Path(sys.prefix) / "bin"), str(ROOT / ".tools" / "bin")]
    given = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*(entry for entry in entries if entry not in given), *given])


class _NodesAtOneAddress(KwokNodes):
    def _stages(self) -> list[dict[str, Any]]:
        address = self._control_plane.address
        stages = super()._stages()
        (ready,) = (stage["spec"]["next"] for stage in stages if stage["metadata"]["name"] == "pod-ready")
        ready["statusTemplate"], found = _ADDRESS_OF_A_POD.subn(
            f'podIP: "{address}"\npodIPs:\n- ip: "{address}"', ready["statusTemplate"]
        )
        if not found:
            raise BenchmarkError("kwok's stage pod-ready says no more where a Pod's address is")
        return stages


class _KnowsNothing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response_only(404)
        self.send_header("content-length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def _server(address: str) -> Iterator[None]:
    """What stands for the server of every version."""
    try:
        server = _Server((address, HTTP_PORT), _KnowsNothing)
    except OSError as error:
        raise BenchmarkError(f"{address}:{HTTP_PORT}, where every Pod is to answer: {error.strerror}") from None
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
