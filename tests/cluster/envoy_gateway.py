"""A second Gateway API data plane, which does what Traefik can't: Envoy Gateway, outside the cluster that it follows.

It makes a Deployment of Envoys for each Gateway; in the place of their simulated Pods one real Envoy runs here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.cluster.features import class_features
from infra.single_node.machine.claims import is_port_free
from infra.single_node.machine.envoy import find_envoy
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon, missing
from tests.cluster.gateway import has_condition
from tests.deadline import until

CLASS = "envoy"
CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"
HOW_TO_GET_IT = "`python tools/install.py envoy-gateway` builds it, which takes some minutes"

_SHARE = Path(__file__).parents[2] / ".tools" / "share"
_CRDS = (_SHARE / "gateway-api-experimental", _SHARE / "envoy-gateway")
_GATEWAY_API = "gateway.networking.k8s.io/v1"
_OWN_API = "gateway.envoyproxy.io/v1alpha1"
_NAMESPACE = "envoy-gateway-system"
_OWNER = "gateway.envoyproxy.io/owning-gateway"
_XDS_PORT = 18000
_FIXED_PORTS = (8080, 8081, _XDS_PORT, 18002)
"""That it listens on, at every address, whatever its configuration says: its controllers' metrics, its health, its
configuration of Envoys, its Wasm modules.
"""
_FREE_SECONDS = 20
_READY_SECONDS = 90


class EnvoyGatewayClass:
    """The GatewayClass `envoy` of a control plane that has no other Gateway API. A Gateway's listener must be on
    `port`; `serve` makes it answer.
    """

    name = CLASS
    controller = CONTROLLER

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self._root = control_plane.folder / "envoy-gateway"
        self._daemon = Daemon("envoy-gateway", control_plane.folder)
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def features(self) -> list[str]:
        """What the product takes the class to do."""
        return class_features(self.found)

    @property
    def found(self) -> dict[str, Any]:
        """The GatewayClass as it is."""
        return self.control_plane.get(_GATEWAY_API, "GatewayClass", CLASS) or {}

    @staticmethod
    def require() -> None:
        """Skips the test where it isn't installed."""
        if missing("envoy-gateway") or not all(folder.exists() for folder in _CRDS):
            pytest.skip(f"no envoy-gateway on PATH, or not its resources in {_SHARE}: {HOW_TO_GET_IT}")
        if subprocess.run(["unshare", "--map-root-user", "--root=/", "true"], check=False).returncode:
            pytest.skip("this machine lets nobody have a root folder of their own (`unshare --map-root-user`)")

    @staticmethod
    def require_ports() -> None:
        """Skips the test where somebody else has ports that Envoy Gateway can't do without."""
        deadline = time.monotonic() + _FREE_SECONDS
        while taken := [port for port in _FIXED_PORTS if not is_port_free(port, "0.0.0.0")]:
            if time.monotonic() > deadline:
                pytest.skip(f"Envoy Gateway listens on these ports, which others have here: {taken}")
            time.sleep(0.5)

    def start(self) -> None:
        self._install_resources()
        (self._root / "certs").mkdir(parents=True)
        shutil.copy(str(shutil.which("envoy-gateway")), self._root / "envoy-gateway")
        (self._root / "kubeconfig").write_text(self._kubeconfig())
        (self._root / "config.yaml").write_text(yaml.safe_dump(self._config()))
        # It reads /certs, wherever it runs.
        environment = {"KUBECONFIG": "/kubeconfig", "ENVOY_GATEWAY_NAMESPACE": _NAMESPACE}
        root = ("unshare", "--map-root-user", f"--root={self._root}", "--wd=/", "/envoy-gateway")
        certificates = [*root, "certgen", "--disable-topology-injector"]
        done = subprocess.run(
            certificates, env=dict(os.environ) | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self._write_secret("envoy-gateway", self._root / "certs")
        self._write_secret("envoy", self._root / "envoy-certs")
        self._daemon.start(*root, "server", "--config-path=/config.yaml", env=environment)
        until(self._is_accepted, _READY_SECONDS, what=f"GatewayClass {CLASS} being accepted")

    def stop(self) -> None:
        self._daemon.stop()

    def serve(self, namespace: str, gateway: str) -> EnvoyProxy:
        """The Envoy of a Gateway, once it answers."""
        labels = f"{_OWNER}-namespace={namespace},{_OWNER}-name={gateway}"
        deployments = until(
            lambda: self.control_plane.list("apps/v1", "Deployment", _NAMESPACE, labels=labels),
            _READY_SECONDS,
            what=f"a Deployment for Gateway {namespace}/{gateway}",
        )
        (container, *_) = deployments[0]["spec"]["template"]["spec"]["containers"]
        folder = self.control_plane.folder / f"envoy-of-{namespace}"
        proxy = EnvoyProxy(folder, container["args"], self._root / "envoy-certs", self.port)
        proxy.start()
        return proxy

    def _install_resources(self) -> None:
        documents = [yaml.safe_load(file.read_text()) for folder in _CRDS for file in sorted(folder.glob("*.yaml"))]
        self.control_plane.define(documents)
        own = {"namespace": self.control_plane.namespace(_NAMESPACE), "name": CLASS}
        self.control_plane.apply_all(
            {"apiVersion": _OWN_API, "kind": "EnvoyProxy", "metadata": own, "spec": _PROXY},
            {
                "apiVersion": _GATEWAY_API,
                "kind": "GatewayClass",
                "metadata": {"name": CLASS},
                "spec": {
                    "controllerName": CONTROLLER,
                    "parametersRef": {"group": _OWN_API.partition("/")[0], "kind": "EnvoyProxy", **own},
                },
            },
        )

    def _config(self) -> dict[str, Any]:
        (admin,) = free_ports(1)
        return {
            "apiVersion": _OWN_API,
            "kind": "EnvoyGateway",
            "gateway": {"controllerName": CONTROLLER},
            "provider": {
                "type": "Kubernetes",
                "kubernetes": {"leaderElection": {"disable": True}, "proxyTopologyInjector": {"disabled": True}},
            },
            "admin": {"address": {"host": "127.0.0.1", "port": admin}},
            "telemetry": {"metrics": {"prometheus": {"disable": True}}},
        }

    def _kubeconfig(self) -> str:
        """The administrator's, without a path in it."""
        document = yaml.safe_load(self.control_plane.kubeconfig.read_text())
        for part in (document["clusters"][0]["cluster"], document["users"][0]["user"]):
            for key in ("certificate-authority", "client-certificate", "client-key"):
                if path := part.pop(key, None):
                    part[f"{key}-data"] = base64.b64encode(Path(path).read_bytes()).decode()
        return yaml.safe_dump(document)

    def _write_secret(self, name: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        secret = self.control_plane.get("v1", "Secret", name, _NAMESPACE) or {}
        for key, value in secret["data"].items():
            (folder / key).write_bytes(base64.b64decode(value))

    def _is_accepted(self) -> bool:
        assert self._daemon.running, f"envoy-gateway ended:\n{self._daemon.last_words()}"
        return has_condition(self.found, "Accepted")


class EnvoyProxy:
    """An Envoy with the arguments that Envoy Gateway gives it, but for addresses that are of a cluster."""

    def __init__(self, folder: Path, arguments: list[str], certificates: Path, port: int) -> None:
        self._folder = folder
        self._arguments = list(arguments)
        self._certificates = certificates
        self._port = port
        self._admin, self._stats = free_ports(2)
        self._daemon = Daemon("envoy", folder)

    def start(self) -> None:
        self._folder.mkdir()
        # It would count the CPUs of a Pod.
        arguments = [argument for argument in self._arguments if argument != "--cpuset-threads"]
        at = arguments.index("--config-yaml") + 1
        arguments[at] = json.dumps(self._bootstrap(yaml.safe_load(arguments[at])))
        arguments[arguments.index("--service-node") + 1] = self._folder.name
        self._daemon.start(find_envoy(), *arguments, "--use-dynamic-base-id", "--concurrency", "2")
        until(self._listens, _READY_SECONDS, what=f"Envoy listening on {self._port}")

    def stop(self) -> None:
        self._daemon.stop()

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return httpx.get(f"http://127.0.0.1:{self._stats}/stats/prometheus").raise_for_status().text

    def routes(self) -> list[dict[str, Any]]:
        """As it was told, of all host names."""
        dump = httpx.get(f"http://127.0.0.1:{self._admin}/config_dump?resource=dynamic_route_configs")
        return [
            route
            for config in dump.raise_for_status().json().get("configs", [])
            for host in config["route_config"]["virtual_hosts"]
            for route in host["routes"]
        ]

    def _listens(self) -> bool:
        assert self._daemon.running, f"Envoy ended:\n{self._daemon.last_words()}"
        return _is_taken(self._port)

    def _bootstrap(self, document: dict[str, Any]) -> dict[str, Any]:
        document["admin"]["address"]["socket_address"]["port_value"] = self._admin
        static = document["static_resources"]
        for listener in static["listeners"]:
            listener["address"]["socket_address"]["port_value"] = self._stats
        clusters = {cluster["name"]: cluster for cluster in static["clusters"]}
        _address(clusters["prometheus_stats"])["port_value"] = self._admin
        _address(clusters["xds_cluster"]).update(address="127.0.0.1", port_value=_XDS_PORT)
        context = clusters["xds_cluster"]["transport_socket"]["typed_config"]["common_tls_context"]
        certificate = self._secret("xds_certificate", tls_certificate=self._own_certificate())
        context["tls_certificate_sds_secret_configs"][0]["sds_config"]["path_config_source"] = certificate
        authority = self._secret("xds_trusted_ca", validation_context=self._authority())
        context["validation_context_sds_secret_config"]["sds_config"]["path_config_source"] = authority
        return document

    def _secret(self, name: str, **secret: Any) -> dict[str, str]:
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps({"resources": [{"@type": kind, "name": name, **secret}]}))
        return {"path": str(path)}

    def _own_certificate(self) -> dict[str, Any]:
        return {
            "certificate_chain": {"filename": str(self._certificates / "tls.crt")},
            "private_key": {"filename": str(self._certificates / "tls.key")},
        }

    def _authority(self) -> dict[str, Any]:
        names = [{"san_type": "DNS", "matcher": {"exact": "envoy-gateway"}}]
        return {
            "trusted_ca": {"filename": str(self._certificates / "ca.crt")},
            "match_typed_subject_alt_names": names,
        }


_PROXY = {
    "provider": {"type": "Kubernetes", "kubernetes": {"envoyService": {"type": "ClusterIP"}}},
    "telemetry": {"metrics": {"enablePerEndpointStats": True}},
}
"""A ClusterIP is an address, where nobody gives a load balancer one; and the metrics are as docs/monitoring.md asks."""


def _address(cluster: dict[str, Any]) -> dict[str, Any]:
    endpoints = cluster["load_assignment"]["endpoints"][0]
    return endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
