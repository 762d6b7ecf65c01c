"""Reads a single node's data plane: Envoy for weights and readiness, Prometheus for metrics."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.contracts import Amount, NodeInventory, ObservationError, PlatformExports, QueryError, Room, Traffic
from infra.names import endpoint_id, version_stack
from infra.single_node.machine import metrics
from infra.single_node.machine.claims import holdings
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.router import Router
from infra.single_node.machine.stats import VARIANT, cluster_name

_GPU = "nvidia.com/gpu"


class Observer:
    """`infra.contracts.Observer` of a single node."""

    def __init__(self, platform: PlatformExports) -> None:
        self._node = Node(Path(platform["internals"]["directory"]))
        self._router = Router(self._node)
        self._environment = platform["environment"]
        self._gpus = len(platform["internals"]["gpus"])
        self._metrics_url = platform["metrics_url"]

    def confirm(self) -> None:
        """Nothing: this machine's node is in a folder of the project."""

    def traffic(self, team: str, model: str) -> Traffic:
        with _observing():
            weights, shadow = self._router.traffic(endpoint_id(team, model))
            return {"weights": weights, "shadow": shadow}

    def ready(self, team: str, model: str, versions: list[str]) -> dict[str, int]:
        with _observing():
            clusters = {version: cluster_name(VARIANT, team, model, version) for version in versions}
            healthy = self._router.healthy_replicas()
            return {version: healthy.get(cluster, 0) for version, cluster in clusters.items()}

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        with _observing():
            return metrics.query(self._metrics_url, promql)

    def room(self) -> Room:
        """The machine's processors and memory, whatever else runs on it, and the GPUs that the platform found."""
        with _observing():
            held = holdings(self._node).values()
        return {
            "total": self._total(),
            "reserved": {
                "cpu": sum(each.cpu for each in held),
                "memory": sum(each.memory for each in held),
                "gpu": sum(each.gpu for each in held),
            },
        }

    def inventory(self) -> list[NodeInventory]:
        total = self._total()
        with _observing():
            held = holdings(self._node)
        return [
            {
                "name": socket.gethostname(),
                "pool": "",
                "product": None,
                "ready": True,
                "cpu": total["cpu"],
                "memory": total["memory"],
                "gpus": _gpus(total["gpu"]),
                "held": [
                    {
                        "holder": f"{name.team}/{version_stack(self._environment, name.model, name.version)}",
                        "replicas": each.replicas,
                        "priority": "serving",
                        "cpu": each.cpu,
                        "memory": each.memory,
                        "gpus": _gpus(each.gpu),
                    }
                    for name, each in held.items()
                ],
            }
        ]

    def why_not_ready(self, team: str, model: str, version: str) -> list[str]:
        """Nothing: what keeps a replica from being ready stands in the error of its deploy, with its log."""
        return []

    def split(self, team: str, model: str, requests: int) -> dict[str, int] | None:
        """None: `traffic` is Envoy's own word."""
        return None

    def _total(self) -> Amount:
        return {
            "cpu": float(len(os.sched_getaffinity(0))),
            "memory": psutil.virtual_memory().total,
            "gpu": self._gpus,
        }


def _gpus(count: int) -> dict[str, int]:
    return {_GPU: count} if count else {}


@contextmanager
def _observing() -> Iterator[None]:
    try:
        yield
    except metrics.BadQueryError as error:
        raise QueryError(str(error)) from None
    except NodeError as error:
        raise ObservationError(str(error)) from None
