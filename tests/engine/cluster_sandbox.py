"""A project with one environment of mode `cluster`, whose versions and endpoints really serve."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.cluster.names import version_namespace
from tests.cluster import images
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import CLASS, GatewayClass
from tests.cluster.host_processes import HostProcesses
from tests.cluster.images import Image
from tests.cluster.real_node import REAL_NODES, TOLERATION, RealNode
from tests.cluster.registry import RegistryServer
from tests.cluster.sandbox import ClusterSandbox
from tests.plugins import oip_server

POOL = "real"
"""The pool of the nodes where versions serve."""

_STAND_IN = "/oip-server"


@dataclass(frozen=True)
class Cluster:
    """What sandboxes share."""

    control_plane: ControlPlane
    gateway: GatewayClass
    metrics_url: str
    """A Prometheus's, with the metrics of the catalogue."""
    node: RealNode | None
    """None where host processes serve in the place of real Pods."""

    @property
    def image(self) -> Image:
        """With MLServer and this project, as every image of the node has them, and the stand-in server."""
        return images.build("server", {_STAND_IN: oip_server.build().read_bytes()})


class ServingSandbox(ClusterSandbox):
    """Its versions come from a registry of its own."""

    def __init__(self, cluster: Cluster, **settings: Any) -> None:
        """`settings` are of `lepton:platform.cluster`."""
        self.cluster = cluster
        image = cluster.image.reference
        usual: dict[str, Any] = {
            "gateway": {"class_name": CLASS, "port": cluster.gateway.port, "url": cluster.gateway.url},
            "images": {"server": image, "puller": image},
            "monitoring": {"kind": "external", "url": cluster.metrics_url},
            "pools": [{"name": POOL, "labels": REAL_NODES, "tolerations": [TOLERATION | {"operator": "Equal"}]}],
        }
        self._closing = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="lepton-registry-"))
        self._closing.callback(shutil.rmtree, folder)
        registry = RegistryServer(folder)
        registry.start()
        self._closing.callback(registry.stop)
        super().__init__(cluster.control_plane, cluster.gateway, store=registry.store, **usual | settings)
        self.url = cluster.gateway.url
        if cluster.node is None:
            self._closing.enter_context(HostProcesses(cluster.control_plane, self.name))

    # -- what a user writes

    def write_version(
        self, model: str, version: str, *arguments: str, package: bool = True, team: str | None = None, **settings: Any
    ) -> str:
        usual = {"pool": POOL, "ready_timeout": "60s", "drain_timeout": "1s"}
        return super().write_version(model, version, *arguments, package=package, team=team, **usual | settings)

    def add_team(self, name: str) -> None:
        """A second team's folder; the platform has to be told of it too."""
        folder = self.root / "stacks" / name
        shutil.copytree(self.root / "stacks" / self.team, folder, ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
        project = yaml.safe_load((folder / "Pulumi.yaml").read_text())
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"name": name}))

    @property
    def stand_in_server(self) -> str:
        return _STAND_IN

    # -- what is there

    def namespace(self, model: str, version: str) -> str:
        """The version's own."""
        return version_namespace(self.name, self.team, model, version)

    def object(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        found = self.control_plane.get(api_version, kind, name, namespace)
        assert found, f"there is no {kind} {name} in {namespace}"
        return found

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        return self.wait_until(condition, seconds, what)

    def close(self) -> None:
        with self._closing:
            super().close()
