"""Prometheus on the node: its configuration, and the scrape targets that each stack owns a file of.

Reference: https://prometheus.io/docs/prometheus/latest/configuration/configuration/
"""

from __future__ import annotations

import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from infra.files import salvage_json, write_json
from infra.monitoring import querying
from infra.monitoring.alerts import alerts_text
from infra.monitoring.data_planes.single_node import SINGLE_NODE
from infra.monitoring.rules import rules_text
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.program import Program

PROGRAM = "prometheus"


class BadQueryError(NodeError):
    """An expression that Prometheus can't answer, whatever is there."""


def find_prometheus() -> str:
    """Path of the Prometheus binary.

    Raises:
        NodeError: when it isn't on PATH.
    """
    found = shutil.which("prometheus")
    if found is None:
        raise NodeError("no Prometheus on PATH: install it, or run `make tools`, which builds it")
    return found


def program(node: Node, port: int, scrape_interval_seconds: float, retention_seconds: float) -> Program:
    """The program that is the node's Prometheus."""
    file = node.metrics / "prometheus.yml"
    rules = {node.metrics / "rules.yml": rules_text(SINGLE_NODE), node.metrics / "alerts.yml": alerts_text()}
    configuration = {
        "global": {
            "scrape_interval": _duration(scrape_interval_seconds),
            "scrape_timeout": _duration(scrape_interval_seconds),
            "evaluation_interval": _duration(scrape_interval_seconds),
        },
        "rule_files": [str(rules_file) for rules_file in rules],
        "scrape_configs": [
            {"job_name": PROGRAM, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
            *(
                {
                    "job_name": job,
                    "metrics_path": path,
                    "file_sd_configs": [{"files": [str(_targets(node, job) / "*.json")], "refresh_interval": "5s"}],
                }
                for job, path in (("router", "/stats/prometheus"), ("node", "/metrics"), ("server", "/metrics"))
            ),
        ],
    }
    command = [
        find_prometheus(),
        f"--config.file={file}",
        f"--storage.tsdb.path={node.metrics / 'data'}",
        f"--storage.tsdb.retention.time={_duration(retention_seconds)}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    return Program(
        PROGRAM,
        command,
        files={file: yaml.safe_dump(configuration, sort_keys=False), **rules},
    )


def make_target_folders(node: Node) -> None:
    """Prometheus watches folders that are there when it starts."""
    for job in ("router", "node", "server"):
        _targets(node, job).mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Targets:
    """What is scraped at these loopback ports: one of the node's own services, or the servers of a version."""

    node: Node
    job: Literal["router", "node", "server"]
    owner: str
    ports: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    """Default: the job's."""

    def write(self) -> None:
        write_json(self._file, self._groups)

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)

    def drift(self) -> list[str]:
        """The file, if it says anything else."""
        if salvage_json(self._file) == self._groups:
            return []
        return [f"{self._file.relative_to(self.node.directory)} is not as configured"]

    @property
    def _file(self) -> Path:
        return _targets(self.node, self.job) / f"{self.owner}.json"

    @property
    def _groups(self) -> list[dict[str, Any]]:
        labels = self.labels | ({"__metrics_path__": self.path} if self.path else {})
        targets = [f"127.0.0.1:{port}" for port in self.ports]
        return [{"targets": targets, "labels": labels}] if targets else []


def query(base_url: str, promql: str, timeout_seconds: float = 10) -> list[tuple[dict[str, str], float]]:
    """Instant vector of a PromQL expression: labels and value of each sample.

    Raises:
        BadQueryError: when Prometheus can't read the expression, or it is of another type.
        NodeError: when Prometheus doesn't answer, or answers with another error.
    """
    url = f"{base_url}{querying.PATH}?{urllib.parse.urlencode({'query': promql})}"
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:  # noqa: S310 - our own http:// URL
            status, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    except OSError as error:
        raise NodeError(f"Prometheus at {base_url} does not answer: {error}") from None
    try:
        return querying.instant_vector(promql, status, body)
    except querying.BadExpressionError as error:
        raise BadQueryError(str(error)) from None
    except querying.RefusedError as error:
        raise NodeError(str(error)) from None


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def _targets(node: Node, job: str) -> Path:
    return node.metrics / "targets" / job


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
