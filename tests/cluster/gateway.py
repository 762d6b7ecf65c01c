"""A real Gateway API data plane: Traefik, which runs outside the cluster and follows its Gateways and routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon, missing
from tests.deadline import until

CLASS = "traefik"
CONTROLLER = "traefik.io/gateway-controller"

_CRDS = Path(__file__).parents[2] / ".tools" / "share" / "gateway-api"
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_READY_SECONDS = 60


class GatewayClass:
    """The GatewayClass `traefik` of a control plane, with its data plane. A Gateway's listeners must be on `port`, or
    with TLS on `tls_port`.
    """

    name = CLASS
    controller = CONTROLLER

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._daemon = Daemon("traefik", control_plane.folder)
        self._facts = control_plane.folder / "gateway.json"

    @property
    def port(self) -> int:
        return self._ports["web"]

    @property
    def tls_port(self) -> int:
        return self._ports["websecure"]

    @property
    def url(self) -> str:
        """Where plain HTTP requests go."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_address(self) -> str:
        """HOST:PORT with `/metrics` for Prometheus, reachable from Pods too."""
        return f"{self._control_plane.address}:{self._ports['metrics']}"

    @property
    def _ports(self) -> dict[str, int]:
        return json.loads(self._facts.read_text())

    def start(self) -> None:
        if missing("traefik") or not _CRDS.exists():
            pytest.skip(f"no traefik on PATH, or no resources of the Gateway API in {_CRDS}: `make tools` has both")
        self.install_resources()
        self._control_plane.apply(
            {
                "apiVersion": _GATEWAY_API,
                "kind": "GatewayClass",
                "metadata": {"name": CLASS},
                "spec": {"controllerName": CONTROLLER},
            }
        )
        names = ("web", "websecure", "metrics")
        self._facts.write_text(json.dumps(dict(zip(names, free_ports(len(names)), strict=True))))
        self._daemon.start(
            "traefik",
            "--global.checknewversion=false",
            "--providers.kubernetesgateway",
            f"--providers.kubernetesgateway.statusaddress.ip={self._control_plane.address}",
            "--providers.providersthrottleduration=100ms",
            # Servers on uvicorn, as MLServer is, end a connection that was idle for 5 s; one that is used again just
            # then costs a request that nobody may send twice.
            "--serverstransport.forwardingtimeouts.idleconntimeout=4s",
            *(f"--entrypoints.{name}.address=:{port}" for name, port in self._ports.items()),
            "--metrics.prometheus",
            "--metrics.prometheus.entrypoint=metrics",
            "--metrics.prometheus.addserviceslabels",
            "--metrics.prometheus.addrouterslabels",
            env={"KUBECONFIG": str(self._control_plane.kubeconfig)},
        )
        until(self._is_accepted, _READY_SECONDS, what=f"GatewayClass {CLASS} being accepted")

    def stop(self) -> None:
        self._daemon.stop()

    def start_again(self) -> None:
        self._daemon.start_again()

    def install_resources(self) -> None:
        """The Gateway API's CustomResourceDefinitions, once the API server serves them."""
        documents: list[dict[str, Any]] = [yaml.safe_load(file.read_text()) for file in sorted(_CRDS.glob("*.yaml"))]
        self._control_plane.define(documents)

    @property
    def features(self) -> list[str]:
        """What the class says that it can do."""
        found = self._control_plane.get(_GATEWAY_API, "GatewayClass", CLASS) or {}
        return [feature["name"] for feature in (found.get("status") or {}).get("supportedFeatures") or []]

    def _is_accepted(self) -> bool:
        assert self._daemon.running, f"traefik ended:\n{self._daemon.last_words()}"
        found = self._control_plane.get(_GATEWAY_API, "GatewayClass", CLASS) or {}
        return has_condition(found, "Accepted") and bool(self.features)


def put_behind(
    control_plane: ControlPlane, namespace: str, service: str, port: int, *, name: str = "", protocol: str = "TCP"
) -> str:
    """A process of this machine as an endpoint of a Service, and its EndpointSlice's name.

    It listens on `port` of every address, or of the control plane's. `name` is the Service's port that it serves.
    Where the Service selects Pods too, its traffic goes to both.
    """
    slice_name = f"{service}-host-{port}"
    control_plane.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": slice_name,
                "namespace": namespace,
                "labels": {
                    "kubernetes.io/service-name": service,
                    "endpointslice.kubernetes.io/managed-by": "lepton-tests",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [control_plane.address], "conditions": {"ready": True}}],
            "ports": [{"name": name, "port": port, "protocol": protocol}],
        }
    )
    return slice_name


def has_condition(found: dict[str, Any], condition: str) -> bool:
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(entry["type"] == condition and entry["status"] == "True" for entry in conditions)
