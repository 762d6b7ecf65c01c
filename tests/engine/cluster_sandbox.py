"""A project with one environment of mode `cluster`, driven as a user drives it, in a cluster that sandboxes share."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.cluster.live.api import Api, NotFoundError
from infra.cluster.names import version_namespace
from model_packaging.stores import Store, open_store
from tests.cluster import images
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import CLASS, GatewayClass
from tests.cluster.host_processes import HostProcesses
from tests.cluster.images import Image
from tests.cluster.real_node import REAL_NODES, TOLERATION, RealNode
from tests.cluster.registry import RegistryServer
from tests.engine.sandbox import Outcome, Sandbox
from tests.plugins import oip_server
from tests.plugins.kubernetes import with_plugin

POOL = "real"
"""The pool of the nodes where versions serve."""

_STAND_IN = "/oip-server"
_UNIMPORTANT = ("Event", "Lease", "ComponentStatus")
"""Kinds of what comes and goes by itself."""


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


class ClusterSandbox(Sandbox):
    """Its environment, its team and its platform's namespace are its own, so that no two sandboxes meet."""

    def __init__(self, cluster: Cluster, **settings: Any) -> None:
        """`settings` are of `lepton:platform.cluster`."""
        self.unique = uuid.uuid4().hex[:6]
        self.name = f"e{self.unique}"
        self.team = f"team-{self.unique}"
        self.cluster = cluster
        image = cluster.image.reference
        self._settings: dict[str, Any] = {
            "existing": {"kubeconfig": str(cluster.control_plane.kubeconfig)},
            "namespace": f"lepton-{self.unique}",
            "teams": {self.team: {}},
            "gateway": {"class_name": CLASS, "port": cluster.gateway.port, "url": cluster.gateway.url},
            "images": {"server": image, "puller": image},
            "monitoring": {"kind": "external", "url": cluster.metrics_url},
            "pools": [{"name": POOL, "labels": REAL_NODES, "tolerations": [TOLERATION | {"operator": "Equal"}]}],
        } | settings
        self._closing = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="lepton-registry-"))
        self._closing.callback(shutil.rmtree, folder)
        self.registry = RegistryServer(folder)
        self.registry.start()
        self._closing.callback(self.registry.stop)
        if cluster.node is None:
            self._closing.enter_context(HostProcesses(cluster.control_plane, self.name))
        super().__init__()
        self.url = cluster.gateway.url

    # -- what a user writes

    def write_platform(self, *, ports: str = "", **changes: Any) -> None:
        """`changes` are of `lepton:platform.cluster`; a cluster has no ports to give away."""
        self._settings |= changes
        document = {"environment": self.name, "mode": "cluster", "store": self.registry.store}
        self._write("platform", self.name, "platform", document | {"cluster": self._settings})

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
    def artifact_store(self) -> Store:
        return open_store(self.registry.store)

    @property
    def stand_in_server(self) -> str:
        return _STAND_IN

    # -- what a user runs

    @property
    def environment(self) -> dict[str, str]:
        return with_plugin(super().environment)

    def up(self) -> Outcome:
        return self.must("up", self.name, "--requests", "0")

    # -- what is there

    @property
    def control_plane(self) -> ControlPlane:
        return self.cluster.control_plane

    def namespace(self, model: str, version: str) -> str:
        """The version's own."""
        return version_namespace(self.name, self.team, model, version)

    def object(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        found = self.control_plane.get(api_version, kind, name, namespace)
        assert found, f"there is no {kind} {name} in {namespace}"
        return found

    def objects(self) -> list[str]:
        """Every object in the cluster that is of this environment, or names it: its kind, namespace and name."""
        api = Api({"kubeconfig": str(self.control_plane.kubeconfig), "context": None, "document": None})
        found: list[str] = []
        for kind, path in _lists(api):
            try:
                items = api.items(path)
            except NotFoundError:
                # Its definition was another test's, and has gone.
                continue
            for item in items:
                metadata = {**item["metadata"], "managedFields": None}
                if self.unique in json.dumps(item | {"metadata": metadata}):
                    found.append(f"{kind} {metadata.get('namespace', '-')}/{metadata['name']}")
        return sorted(found)

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        return self.wait_until(condition, seconds, what)

    def close(self) -> None:
        """Takes down what is up, and says what that leaves."""
        down = self.lepton("down", self.name)
        with self._closing:
            super().close()
        assert down.status == 0, down


def _lists(api: Api) -> list[tuple[str, str]]:
    """Kind and path of all that can be listed, each in the version that the API server prefers."""
    groups = api.get("/apis")["groups"]
    paths = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    return [
        (resource["kind"], f"{path}/{resource['name']}")
        for path in paths
        for resource in api.get(path)["resources"]
        if "list" in resource["verbs"] and resource["kind"] not in _UNIMPORTANT
    ]
