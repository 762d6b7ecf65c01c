"""Changes what Envoy routes, one owner's part at a time, and reads back what it does.

Each version and each endpoint owns one file of rendered Envoy config. The files of a kind are put together into the
one that Envoy watches, and that is replaced by a rename. A change is done when Envoy says that it runs it, and only
then becomes its owner's file: one that Envoy rejects, or whose writer is killed, can break neither the owner's last
good config nor another's.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from infra.files import salvage_json, write_atomically, write_json
from infra.single_node.machine import envoy
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.routing import RouteFragment, route_table, weights_in, with_weights

_APPLY_SECONDS = 15
_LOG_SECONDS = 2
_POLL_SECONDS = 0.01

T = TypeVar("T")


class RouterUnreachableError(NodeError):
    """Envoy doesn't answer."""


class RouterRejectedError(NodeError):
    """Envoy refused a config; what it had before still stands."""


class Router:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._log = node.logs / f"{envoy.PROGRAM}.log"

    # -- changes

    def initialise(self) -> None:
        """Writes the files that Envoy starts from, unless they say what the owners' files say."""
        for kind in (_CLUSTERS, _ROUTES):
            with self._node.locked("router"):
                self._restore(kind)

    def put_clusters(self, owner: str, clusters: list[dict[str, Any]]) -> None:
        """Makes these the clusters of `owner`, and returns when Envoy runs them.

        Raises:
            RouterRejectedError: with Envoy's words.
            RouterUnreachableError: when Envoy doesn't answer.
        """
        self._apply(_CLUSTERS, owner, clusters)

    def put_routes(self, owner: str, fragment: RouteFragment) -> None:
        """Makes these the routes of `owner`, and returns when Envoy runs them. Raises as `put_clusters`."""
        self._apply(_ROUTES, owner, fragment)

    def put_endpoint(self, owner: str, clusters: list[dict[str, Any]], fragment: RouteFragment) -> None:
        """Makes these the clusters and routes of an endpoint, so that no request meets one without the other.

        Raises as `put_clusters`.
        """
        names = {cluster["name"] for cluster in clusters}
        leaving = [cluster for cluster in self.clusters(owner) or [] if cluster["name"] not in names]
        # Before the routes that need them, and again after, less those that no route needs any more.
        self.put_clusters(owner, [*clusters, *leaving])
        self.put_routes(owner, fragment)
        self.put_clusters(owner, clusters)

    def put_weights(self, owner: str, weights: Mapping[str, int]) -> None:
        """Gives the variants of an endpoint these weights, all of them, and returns when Envoy runs them.

        Raises:
            NodeError: when the endpoint has no routes, or other variants.
            RouterRejectedError, RouterUnreachableError: as `put_clusters`.
        """
        with self._node.locked("router"):
            self._change(_ROUTES, owner, with_weights(self.routes_of(owner, weights), weights))

    def remove_clusters(self, owner: str) -> None:
        self._withdraw(_CLUSTERS, owner)

    def remove_routes(self, owner: str) -> None:
        self._withdraw(_ROUTES, owner)

    # -- what was asked for

    def clusters(self, owner: str) -> list[dict[str, Any]] | None:
        """None where the owner has none that can be read; so `routes`."""
        return salvage_json(self._part(_CLUSTERS, owner))

    def routes(self, owner: str) -> RouteFragment | None:
        return salvage_json(self._part(_ROUTES, owner))

    def routes_of(self, owner: str, versions: Collection[str]) -> RouteFragment:
        """The routes of an endpoint that has these variants and no other. Raises NodeError."""
        fragment = self.routes(owner)
        if fragment is None:
            raise NodeError(f"{owner} has no routes on this node; bring it up with `lepton deploy`")
        variants, _ = weights_in(fragment["virtual_host"])
        if set(versions) != variants.keys():
            raise NodeError(
                f"{owner} has the variants {', '.join(variants)}, and weights were given for "
                f"{', '.join(versions) or 'none'}; give each of them one, and no other"
            )
        return fragment

    def endpoints_using(self, cluster: str) -> list[str]:
        """Owners of the routes that may send a request to `cluster`."""
        needle = json.dumps(cluster)
        return sorted(path.stem for path in self._folder(_ROUTES).glob("*.json") if needle in path.read_text())

    # -- what is

    def is_live(self) -> bool:
        try:
            return self._get("/ready").strip() == "LIVE"
        except RouterUnreachableError:
            return False

    def drift(self, owner: str, clusters: list[dict[str, Any]], fragment: RouteFragment | None = None) -> list[str]:
        """Where the owner's config is another than this: in its own files, in those Envoy watches, in Envoy.

        What Envoy runs is told by the version of the file it took it from: its own words for it are normalised.
        """
        wanted: list[tuple[_Kind, object]] = [(_CLUSTERS, clusters)]
        if fragment is not None:
            wanted.append((_ROUTES, fragment))
        with self._node.locked("router"):
            found = [self._drift(kind, owner, content) for kind, content in wanted]
        return [problem for problem in found if problem]

    def traffic(self, owner: str) -> tuple[dict[str, int], dict[str, float]]:
        """Weights and shadow percentages that Envoy runs now for the endpoint `owner`; both empty if it has none."""
        dump = json.loads(self._get("/config_dump?resource=dynamic_route_configs"))
        for entry in dump.get("configs", []):
            for virtual_host in entry["route_config"].get("virtual_hosts", []):
                if virtual_host["name"] == owner:
                    return weights_in(virtual_host)
        return {}, {}

    def replicas(self, cluster: str) -> dict[int, bool]:
        """The replicas that Envoy runs a cluster with, by port: whether it would send a request there."""
        status = json.loads(self._get("/clusters?format=json"))
        return {
            host["address"]["socket_address"]["port_value"]: _is_healthy(host["health_status"])
            for entry in status.get("cluster_statuses", [])
            if entry["name"] == cluster
            for host in entry.get("host_statuses", [])
        }

    def healthy_replicas(self) -> dict[str, int]:
        """Hosts that Envoy would send a request to, by cluster."""
        status = json.loads(self._get("/clusters?format=json"))
        return {
            entry["name"]: sum(_is_healthy(host["health_status"]) for host in entry.get("host_statuses", []))
            for entry in status.get("cluster_statuses", [])
        }

    # -- inside

    def _apply(self, kind: _Kind, owner: str, content: object | None) -> None:
        with self._node.locked("router"):
            self._change(kind, owner, content)

    def _change(self, kind: _Kind, owner: str, content: object | None) -> None:
        """`_apply` for who holds the lock."""
        try:
            self._publish(kind, self._contents(kind, {owner: content}))
        except RouterRejectedError:
            self._publish(kind, self._contents(kind))
            raise
        except BaseException:
            self._restore(kind)
            raise
        self._commit(kind, owner, content)

    def _withdraw(self, kind: _Kind, owner: str) -> None:
        if not self._part(kind, owner).exists():
            return
        if self.is_live():
            self._apply(kind, owner, None)
            return
        # An Envoy that doesn't run has nothing to be told: it will start from the files.
        with self._node.locked("router"):
            self._commit(kind, owner, None)
            self._restore(kind)

    def _drift(self, kind: _Kind, owner: str, wanted: object) -> str | None:
        part, file = self._part(kind, owner), kind.file(self._node)
        # As JSON, which knows no tuples.
        if salvage_json(part) != json.loads(json.dumps(wanted)):
            return f"{part.relative_to(self._node.directory)} is not as configured"
        version, written = self._written(kind)
        if written != self._contents(kind):
            return f"{file.relative_to(self._node.directory)} does not hold what its owners' files say"
        try:
            running = self._progress(kind).version
        except RouterUnreachableError as error:
            return str(error)
        return None if running == version else f"Envoy does not run {file.relative_to(self._node.directory)}"

    def _commit(self, kind: _Kind, owner: str, content: object | None) -> None:
        if content is None:
            self._part(kind, owner).unlink(missing_ok=True)
        else:
            write_json(self._part(kind, owner), content)

    def _restore(self, kind: _Kind) -> None:
        """Has the file that Envoy watches say what the owners' files say, without waiting for Envoy."""
        resources = self._contents(kind)
        if self._written(kind)[1] != resources:
            self._write(kind, resources)

    def _publish(self, kind: _Kind, resources: list[dict[str, Any]]) -> None:
        """Has Envoy run these resources."""
        before = self._until(lambda: self._progress(kind))
        version, written = self._written(kind)
        if before.version == version and written == resources:
            return
        log_position = self._log.stat().st_size if self._log.exists() else 0
        version = self._write(kind, resources)

        def settled() -> str | None:
            now = self._progress(kind)
            if now.version == version:
                return "running"
            # An Envoy that was started since counts from 0.
            rejected = before.rejected if now.attempts >= before.attempts else 0
            return "rejected" if now.rejected > rejected else None

        if self._until(settled) == "rejected":
            raise RouterRejectedError(
                f"Envoy rejected the {kind.name}, and keeps those it had: {self._rejection(log_position)}"
            )

    def _contents(self, kind: _Kind, changes: Mapping[str, object | None] | None = None) -> list[dict[str, Any]]:
        """The resources of all owners together, with some owners' parts changed; None takes a part out."""
        contents = dict(changes or {})
        for path in self._folder(kind).glob("*.json"):
            if path.stem not in contents:
                contents[path.stem] = salvage_json(path)
                if contents[path.stem] is None:
                    raise NodeError(f"{path} is not JSON: run `lepton up`, which writes it anew, or remove it")
        return kind.resources([content for _, content in sorted(contents.items()) if content is not None])

    def _written(self, kind: _Kind) -> tuple[str | None, list[dict[str, Any]] | None]:
        """Version and resources in the file that Envoy watches."""
        document = salvage_json(kind.file(self._node)) or {}
        return document.get("version_info"), document.get("resources")

    def _write(self, kind: _Kind, resources: list[dict[str, Any]]) -> str:
        """Replaces the file that Envoy watches. Every writing has a version of its own, to be told from all others."""
        version = secrets.token_hex(8)
        write_atomically(kind.file(self._node), json.dumps({"version_info": version, "resources": resources}))
        return version

    def _progress(self, kind: _Kind) -> _Progress:
        lines = self._get(f"/stats?filter={quote(kind.stats_pattern)}").splitlines()
        stats = dict(line.split(": ", 1) for line in lines if ": " in line)
        found = {name.rsplit(".", 1)[1]: value for name, value in stats.items()}
        return _Progress(
            found.get("version_text", "").strip('"'),
            int(found.get("update_attempt", 0)),
            int(found.get("update_rejected", 0)),
        )

    def _until(self, found: Callable[[], T | None]) -> T:
        """Asks until there is an answer, also while Envoy is just being restarted."""
        deadline = time.monotonic() + _APPLY_SECONDS
        while True:
            try:
                result = found()
            except RouterUnreachableError as error:
                result, problem = None, str(error)
            else:
                problem = "it has neither taken nor rejected the change"
            if result is not None:
                return result
            if time.monotonic() > deadline:
                raise RouterUnreachableError(
                    f"the router did not settle within {_APPLY_SECONDS} s: {problem}. "
                    f"Its last log lines:\n{self._words(0)}"
                )
            time.sleep(_POLL_SECONDS)

    def _rejection(self, since: int) -> str:
        """What Envoy logged of a rejection; its log reaches the file by way of Supervisor, a little later."""
        deadline = time.monotonic() + _LOG_SECONDS
        while "rejected" not in (words := self._words(since)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return words

    def _words(self, since: int) -> str:
        if not self._log.exists():
            return "(it has no log)"
        with self._log.open(errors="replace") as log:
            log.seek(since)
            lines = log.read().strip().splitlines()
        return "\n".join(lines[-10:]) or "(it logged nothing)"

    def _get(self, path: str) -> str:
        connection = _UnixConnection(str(envoy.admin_socket(self._node)))
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise RouterUnreachableError(f"the router's admin interface does not answer: {error}") from None
        finally:
            connection.close()

    def _folder(self, kind: _Kind) -> Path:
        folder = self._node.router / kind.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _part(self, kind: _Kind, owner: str) -> Path:
        return self._folder(kind) / f"{owner}.json"


class _Progress(NamedTuple):
    """How far Envoy is with the file of a kind."""

    version: str
    """The version that it runs."""
    attempts: int
    """How often it has read the file since it was started."""
    rejected: int


class _Kind:
    """One of the two kinds of resource that Envoy watches a file for."""

    def __init__(
        self,
        name: str,
        file: Callable[[Node], Path],
        stats_pattern: str,
        resources: Callable[[list[Any]], list[dict[str, Any]]],
    ) -> None:
        self.name = name
        self.file = file
        self.stats_pattern = stats_pattern
        self.resources = resources


_CLUSTERS = _Kind(
    "clusters",
    envoy.clusters_file,
    r"^cluster_manager\.cds\.(version_text|update_attempt|update_rejected)$",
    lambda parts: [
        {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", **cluster}
        for part in parts
        for cluster in part
    ],
)
_ROUTES = _Kind(
    "routes",
    envoy.routes_file,
    rf"^http\.{envoy.STAT_PREFIX}\.rds\.{envoy.ROUTES}\.(version_text|update_attempt|update_rejected)$",
    lambda parts: [
        {
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            **route_table(envoy.ROUTES, parts),
        }
    ],
)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("router", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _is_healthy(status: dict[str, Any]) -> bool:
    return not any(value is True for key, value in status.items() if key.startswith(("failed_", "pending_")))
