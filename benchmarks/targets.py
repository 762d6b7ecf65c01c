"""What the load goes to: backends that answer as fast as can be, and before them Envoy, HAProxy, nginx or nothing.

Every router does the same for a request: it finds the endpoint by its path, cuts the path's prefix, draws a version by
weight, keeps its connections to the backends open, and names the version on the answer. Each has one worker and no
access log. Envoy's configuration is the product's own, with all that it does besides: pinning, failover, health checks,
outlier ejection, retries, metrics.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.processes import (
    SEARCHED,
    BenchmarkError,
    Cores,
    find,
    free_ports,
    running,
    version_of,
    wait_for_port,
    wait_until,
)
from infra.names import VERSION_HEADER, version_id
from infra.settings.endpoint import EndpointSettings
from infra.settings.version import VersionSettings, mlserver
from infra.single_node.endpoint import EndpointRoutes
from infra.single_node.machine import envoy
from infra.single_node.machine.node import Node
from infra.single_node.machine.router import Router
from infra.single_node.machine.stats import VARIANT, cluster_name
from infra.single_node.routing import Backend, ReplicaAddress, version_clusters
from tests.plugins import oip_server

TEAM, MODEL = "diagnostics", "tumour"
PREFIX = f"/{TEAM}/{MODEL}"
INFER = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Target:
    name: str
    port: int
    path: str
    process: psutil.Process | None
    """The router's, for its CPU time; None where there is no router."""
    software: str
    splits: bool = True
    """Whether it divides the requests by weight."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


@dataclass(frozen=True)
class Backends:
    ports: dict[str, int]
    """By version."""
    software: str


# -- backends


@contextlib.contextmanager
def backends(versions: list[str], cores: Cores, directory: Path, delay_ms: int = 0) -> Iterator[Backends]:
    """A backend for each version: nginx with a ready answer, or the tests' stand-in server.

    The stand-in reads requests as a server does and answers a third as many a second, so that a fast router would wait
    for it: it serves where there is no nginx, or where an answer is to take `delay_ms`.
    """
    ports = dict(zip(versions, free_ports(len(versions)), strict=True))
    with contextlib.ExitStack() as stack:
        nginx = shutil.which("nginx", path=SEARCHED)
        if nginx is None or delay_ms:
            software = "the stand-in server"
            _start_stand_ins(ports, cores, directory, stack, delay_ms)
        else:
            software = version_of([nginx, "-v"])
            servers = "\n".join(
                f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; "
                f"return 200 '{_answer(version)}'; }} }}"
                for version, port in ports.items()
            )
            stack.enter_context(_nginx(nginx, "backends", servers, cores.load, directory))
        yield Backends(ports, software)


def _start_stand_ins(
    ports: Mapping[str, int], cores: Cores, directory: Path, stack: contextlib.ExitStack, delay_ms: int
) -> None:
    find("go", "golang")
    binary = str(oip_server.build())
    for version, port in ports.items():
        log = directory / f"backend-{version}.log"
        command = [binary, "--http-port", str(port), "--model", MODEL, "--version", version, "--quiet"]
        stack.enter_context(running(command, cores.load, log))
        wait_for_port(port, log)
        httpx.post(f"http://127.0.0.1:{port}/faults", json={"delay_ms": delay_ms}).raise_for_status()


def _answer(version: str) -> str:
    output = {"name": "version", "shape": [1], "datatype": "BYTES", "data": [version]}
    return json.dumps({"model_name": MODEL, "model_version": version, "id": "7", "outputs": [output]})


@contextlib.contextmanager
def _nginx(command: str, name: str, servers: str, cores: tuple[int, ...], directory: Path) -> Iterator[psutil.Process]:
    home, log = directory / f"nginx-{name}", directory / f"nginx-{name}.log"
    home.mkdir()
    temporary = "\n".join(f"{kind}_temp_path {home}/{kind};" for kind in _NGINX_TEMPORARY)
    configuration = home / "nginx.conf"
    configuration.write_text(
        f"""
        daemon off;
        worker_processes 1;
        pid {home}/nginx.pid;
        error_log stderr error;
        events {{ worker_connections 4096; }}
        http {{
          access_log off;
          keepalive_requests 1000000000;
          {temporary}
          {servers}
        }}
        """
    )
    with running([command, "-e", "stderr", "-c", str(configuration)], cores, log) as process:
        wait_until((home / "nginx.pid").exists, f"nginx for {name}", log)
        yield process


_NGINX_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


# -- routers


def direct(to: Backends) -> Target:
    """No router: the first version's backend, at the path where it has the model."""
    return Target("direct", next(iter(to.ports.values())), INFER, None, to.software, splits=False)


@contextlib.contextmanager
def nginx_router(to: Backends, weights: Mapping[str, int], cores: Cores, directory: Path) -> Iterator[Target]:
    command, (port,) = find("nginx", "nginx"), free_ports(1)
    answering = " ".join(f"127.0.0.1:{to.ports[version]} {version};" for version in weights)
    upstream = " ".join(f"server 127.0.0.1:{to.ports[version]} weight={weight};" for version, weight in weights.items())
    servers = f"""
        map $upstream_addr $answering {{ {answering} }}
        upstream variants {{ {upstream} keepalive 256; keepalive_requests 1000000000; }}
        server {{
          listen 127.0.0.1:{port};
          location {PREFIX}/ {{
            proxy_pass http://variants/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            add_header {VERSION_HEADER} $answering always;
          }}
        }}
    """
    with _nginx(command, "router", servers, cores.router, directory) as process:
        yield Target("nginx", port, PREFIX + INFER, process, version_of([command, "-v"]))


@contextlib.contextmanager
def haproxy_router(to: Backends, weights: Mapping[str, int], cores: Cores, directory: Path) -> Iterator[Target]:
    command, (port,) = find("haproxy", "haproxy"), free_ports(1)
    configuration, log = directory / "haproxy.cfg", directory / "haproxy.log"
    servers = "\n".join(
        f"    server {version} 127.0.0.1:{to.ports[version]} weight {weight} check inter 1s"
        for version, weight in weights.items()
    )
    configuration.write_text(
        f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend ingress
    bind 127.0.0.1:{port}
    use_backend variants if {{ path_beg {PREFIX}/ }}
backend variants
    balance random
    option httpchk GET /v2/health/ready
    http-request set-path %[path,regsub(^{PREFIX},)]
    http-response set-header {VERSION_HEADER} %s
{servers}
"""
    )
    with running([command, "-db", "-f", str(configuration)], cores.router, log) as process:
        wait_for_port(port, log)
        yield Target("HAProxy", port, PREFIX + INFER, process, version_of([command, "-v"]))


@contextlib.contextmanager
def bare_envoy_router(to: Backends, weights: Mapping[str, int], cores: Cores, directory: Path) -> Iterator[Target]:
    """The least that Envoy can be: one route to the first version, and no statistics. It does less than the others."""
    del weights
    command, (port,) = envoy.find_envoy(), free_ports(1)
    configuration, log = directory / "bare-envoy.json", directory / "bare-envoy.log"
    configuration.write_text(json.dumps(_bare_envoy(port, next(iter(to.ports.values())))))
    arguments = ["-c", str(configuration), "--disable-hot-restart", "--concurrency", str(len(cores.router))]
    with running([command, *arguments, "--log-level", "warning"], cores.router, log) as process:
        wait_for_port(port, log)
        yield Target("bare Envoy", port, PREFIX + INFER, process, _version_of_envoy(command), splits=False)


def _bare_envoy(port: int, backend_port: int) -> dict[str, object]:
    def address(port: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": f"{PREFIX}/"}, "route": {"prefix_rewrite": "/", "cluster": "backend"}}
    http = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": http}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(backend_port)}}]}]
    return {
        "static_resources": {
            "listeners": [{"name": "ingress", "address": address(port), "filter_chains": [{"filters": [manager]}]}],
            "clusters": [
                {
                    "name": "backend",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "backend", "endpoints": endpoints},
                }
            ],
        },
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


def _version_of_envoy(command: str) -> str:
    return version_of([command, "--version"]).rpartition("version: ")[2]


class EnvoyTarget:
    """A node's Envoy without the rest of the node: the product's bootstrap, clusters and routes."""

    def __init__(self, to: Backends, directory: Path) -> None:
        self.node = Node(directory / "node")
        self.router = Router(self.node)
        self.port, self.stats_port = free_ports(2)
        self._to = to
        version = VersionSettings(environment="bench", model=MODEL, version="0.0.0")
        self._health, self._ready_path = version.health, mlserver().ready_path

    @contextlib.contextmanager
    def started(self, settings: EndpointSettings, cores: Cores) -> Iterator[Target]:
        self.node.create()
        self.router.initialise()
        program = envoy.program(self.node, "127.0.0.1", self.port, self.stats_port, workers=len(cores.router))
        for file, content in program.files.items():
            file.write_text(content)
        log = self.node.logs / f"{envoy.PROGRAM}.log"
        with running(program.command, cores.router, log) as process:
            wait_until(self.router.is_live, "Envoy", log)
            names = [self._put_version(version, port) for version, port in self._to.ports.items()]

            def all_healthy() -> bool:
                healthy = self.router.healthy_replicas()
                return all(healthy.get(name) == 1 for name in names)

            wait_until(all_healthy, "Envoy's opinion that the backends are healthy", log)
            self.route(settings)
            yield Target("Envoy", self.port, PREFIX + INFER, process, _version_of_envoy(program.command[0]))

    def _put_version(self, version: str, port: int) -> str:
        replica = ReplicaAddress(host="127.0.0.1", http_port=port, grpc_port=None)
        clusters = version_clusters(TEAM, MODEL, version, [replica], self._health, self._ready_path, grpc=False)
        self.router.put_clusters(version_id(TEAM, MODEL, version), clusters)
        return cluster_name(VARIANT, TEAM, MODEL, version)

    def route(self, settings: EndpointSettings) -> None:
        """Makes these the endpoint's settings, as an update of its stack does; Envoy runs them on return."""
        EndpointRoutes.driver.create(
            {
                "directory": str(self.node.directory),
                "team": TEAM,
                "endpoint": settings.model_dump(mode="json"),
                "backends": dict.fromkeys(self._to.ports, asdict(Backend("oip-v2", grpc=False))),
            }
        )


def endpoint_settings(weights: Mapping[str, int], **more: object) -> EndpointSettings:
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    return EndpointSettings.model_validate({"environment": "bench", "model": MODEL, "variants": variants, **more})


def check_weights(target: Target, weights: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Refuses a router that sends nothing where it should, as then it has less to do than the others.

    Raises:
        BenchmarkError: when a version with a weight got no request.
    """
    missing = [version for version, weight in weights.items() if weight and not counts.get(version)]
    if missing:
        raise BenchmarkError(f"{target.name} sent nothing to {', '.join(missing)}: {dict(counts)}")
