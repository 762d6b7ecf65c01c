"""An environment whose versions are host processes behind Services, and whose endpoints a real Gateway serves."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from infra.cluster.manifests.gateway import gateway
from infra.cluster.manifests.routes import Backend, endpoint_routes
from infra.cluster.manifests.teams import team_facts, team_objects
from infra.cluster.names import (
    GRPC_PORT,
    HTTP_PORT,
    SERVER,
    version_annotations,
    version_labels,
    version_namespace,
)
from infra.contracts import PlatformExports
from infra.settings import EndpointSettings
from infra.settings.cluster import GatewaySettings, TeamSettings
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon
from tests.cluster.envoy_gateway import EnvoyGatewayClass
from tests.cluster.gateway import GatewayClass, put_behind
from tests.deadline import until

MODEL = "tumour"


class EndpointWorld:
    """One environment and one team, of names that no other test's have."""

    def __init__(
        self, control_plane: ControlPlane, gateway_class: GatewayClass | EnvoyGatewayClass, server: Path
    ) -> None:
        self.control_plane = control_plane
        unique = uuid.uuid4().hex[:8]
        self.environment, self.team = f"env-{unique}", f"team-{unique}"
        self._server = server
        self._folder = Path(tempfile.mkdtemp(dir=control_plane.folder))
        self._servers: dict[str, Daemon] = {}
        self.ports: dict[str, int] = {}
        """Of the versions' servers, on every address."""
        self._namespace = control_plane.namespace(f"platform-{unique}")
        control_plane.apply_all(*team_objects(self.environment, self.team))
        settings = GatewaySettings(class_name=gateway_class.name, port=gateway_class.port)
        control_plane.apply(gateway(self.environment, self._namespace, [self.team], settings))
        self.platform = cast(
            "PlatformExports",
            {
                "mode": "cluster",
                "environment": self.environment,
                "endpoint_base_url": gateway_class.url,
                "metrics_url": "http://127.0.0.1:9",
                "internals": {
                    "environment": self.environment,
                    "namespace": self._namespace,
                    "connection": {"kubeconfig": str(control_plane.kubeconfig), "context": None, "document": None},
                    "gateway": {
                        "name": "lepton",
                        "namespace": self._namespace,
                        "class_name": gateway_class.name,
                        "controller": gateway_class.controller,
                        "features": gateway_class.features,
                        "listeners": {self.team: "http"},
                        "hostnames": {},
                        "pods_namespace": None,
                    },
                    "teams": {self.team: team_facts(self.environment, self.team, TeamSettings())},
                    "images": {"server": None, "puller": None, "pull_secrets": []},
                    "pools": [],
                    "features": [],
                    "monitoring_namespace": None,
                },
            },
        )

    @property
    def url(self) -> str:
        return f"{self.platform['endpoint_base_url']}/{self.team}/{MODEL}"

    def namespace(self, version: str) -> str:
        return version_namespace(self.environment, self.team, MODEL, version)

    def backends(self, *versions: str, grpc: bool = False) -> dict[str, Backend]:
        return {
            version: {"namespace": self.namespace(version), "protocol": "oip-v2", "grpc": grpc} for version in versions
        }

    def serve(self, *versions: str) -> None:
        """Versions that answer."""
        for version in versions:
            self.make_room(version)
            (port,) = free_ports(1)
            daemon = Daemon(f"server-{version}", self._folder)
            daemon.start(
                *(str(self._server), "--host", "0.0.0.0", "--http-port", str(port)),
                *("--model", MODEL, "--version", version, "--quiet"),
            )
            self._servers[version] = daemon
            self.ports[version] = port
            until(lambda daemon=daemon: "listening" in daemon.log.read_text(), what=f"{version} listening")
            put_behind(self.control_plane, self.namespace(version), SERVER, port, name="http")

    def make_room(self, version: str) -> None:
        """What a version has but what answers."""
        labels = version_labels(self.environment, self.team, MODEL, version)
        metadata = {"labels": labels, "annotations": version_annotations(self.environment, self.team, MODEL, version)}
        own = metadata | {"name": SERVER, "namespace": self.namespace(version)}
        ports = [
            {"name": "http", "port": HTTP_PORT, "appProtocol": "http"},
            {"name": "grpc", "port": GRPC_PORT, "appProtocol": "kubernetes.io/h2c"},
        ]
        team_namespace = self.platform["internals"]["teams"][self.team]["namespace"]
        grant = {
            "from": [
                {"group": "gateway.networking.k8s.io", "kind": kind, "namespace": team_namespace}
                for kind in ("HTTPRoute", "GRPCRoute")
            ],
            "to": [{"group": "", "kind": "Service", "name": SERVER}],
        }
        self.control_plane.apply_all(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata | {"name": self.namespace(version)}},
            # Of its selector's Pods there are none, so an empty EndpointSlice is made for it.
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": own,
                "spec": {"ports": ports, "selector": {"app": "none"}},
            },
            {
                "apiVersion": "gateway.networking.k8s.io/v1beta1",
                "kind": "ReferenceGrant",
                "metadata": own,
                "spec": grant,
            },
        )

    def stop(self) -> None:
        for daemon in self._servers.values():
            daemon.stop()

    def route(self, weights: Mapping[str, int], *, grpc: bool = False, **settings: Any) -> None:
        """Applies the endpoint's routes."""
        document = endpoint_settings(weights, environment=self.environment, **settings)
        facts, backends = self.platform["internals"]["gateway"], self.backends(*document.versions, grpc=grpc)
        self.control_plane.apply_all(*endpoint_routes(self.team, facts, document, backends))


def endpoint_settings(weights: Mapping[str, int], **settings: Any) -> EndpointSettings:
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    return EndpointSettings.model_validate({"environment": "dev", "model": MODEL, "variants": variants} | settings)
