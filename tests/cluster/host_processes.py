"""Processes of this machine behind versions' Services, where there is no kubelet: they serve in their Pods' place.

Pods are simulated and have no address, so a Service has no endpoint but the process that is put behind it here.
"""

from __future__ import annotations

import subprocess
import threading
from typing import Any

from infra.cluster.names import ENVIRONMENT_LABEL, SERVER
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.gateway import put_behind
from tests.plugins import oip_server
from tests.plugins.kubernetes.api import ApiError

_LOOK_SECONDS = 0.1


class HostProcesses:
    """While it is open, every version of an environment that has a ready Pod has a server of its own here."""

    def __init__(self, control_plane: ControlPlane, environment: str) -> None:
        self._control_plane = control_plane
        self._labels = f"{ENVIRONMENT_LABEL}={environment}"
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._slices: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> HostProcesses:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for server in self._servers.values():
            server.kill()
            server.wait()

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                deployments = self._control_plane.list("apps/v1", "Deployment", labels=self._labels)
            except ApiError:
                continue
            ready = {found["metadata"]["namespace"]: found for found in deployments if _is_ready(found)}
            for namespace in self._servers.keys() - ready.keys():
                server = self._servers.pop(namespace)
                server.kill()
                server.wait()
                self._control_plane.delete(
                    "discovery.k8s.io/v1", "EndpointSlice", self._slices.pop(namespace), namespace
                )
            for namespace in ready.keys() - self._servers.keys():
                self._serve(namespace, ready[namespace])

    def _serve(self, namespace: str, deployment: dict[str, Any]) -> None:
        (port,) = free_ports(1)
        # Beyond its executable, and where it listens.
        _, *arguments = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
        replaced = {"--host": self._control_plane.address, "--http-port": str(port)}
        for option, value in replaced.items():
            arguments[arguments.index(option) + 1] = value
        self._servers[namespace] = subprocess.Popen([oip_server.build(), *arguments], stderr=subprocess.DEVNULL)
        self._slices[namespace] = put_behind(self._control_plane, namespace, SERVER, port, name="http")


def _is_ready(deployment: dict[str, Any]) -> bool:
    return deployment["metadata"]["name"] == SERVER and bool(deployment.get("status", {}).get("readyReplicas"))
