"""What a data plane counts, as PromQL: all in which modes and gateways differ. The rules make the catalogue of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.monitoring.catalogue import VERSION_LABELS
from infra.monitoring.promql import fresh_rate

COUNTED = (*VERSION_LABELS, "instance")
"""Labels of a version's counters: `instance` says who counted."""

CLIENT, SHADOW = "client", "shadow"
"""Values of the label `source`."""


@dataclass(frozen=True)
class Copies:
    """What is counted of the requests that a shadow variant gets."""

    requests: str
    """Counter by team, model, version: copies of requests."""
    errors: str
    """Counter by team, model, version: those that the version did not answer well."""
    buckets: str
    """Counter by team, model, version, le: copies that took at most so many milliseconds."""


@dataclass(frozen=True)
class Resources:
    """What machines and servers use."""

    version_cpu_seconds: str
    """Counter by team, model, version."""
    version_cpu_cores: str
    """Gauge by team, model, version: over 1m."""
    version_memory_bytes: str
    """Gauge by team, model, version."""
    replicas_desired: str
    """Gauge by team, model, version."""
    replicas_ready: str
    """Gauge by team, model, version."""
    node_cpu_ratio: str
    """Gauge by instance: over 1m. So are the other ratios."""
    node_memory_ratio: str
    node_disk_ratio: str
    node_gpu_ratio: str
    """Gauge by instance, gpu."""
    node_gpu_memory_ratio: str
    """Gauge by instance, gpu."""


def _of_versions(window: str) -> str:
    return fresh_rate("version:latency_ms:bucket", window)


def _of_clients(window: str) -> str:
    return fresh_rate(f'version:latency_ms:bucket{{source="{CLIENT}"}}', window)


@dataclass(frozen=True)
class DataPlane:
    """What a data plane counts, as PromQL. Counters keep the label `instance` of whoever counted.

    They keep the label of whatever may go while others stay, too: a sum whose parts go looks like one that began anew.
    """

    requests: str
    """Counter by team, model, version: requests of a version's share."""
    errors: str
    """Counter by team, model, version: those that the version did not answer well."""
    endpoint_errors: str
    """Counter by team, model: those that failed for the client."""
    buckets: str
    """Counter by team, model, version, le: requests that took at most so many milliseconds, without those that other
    versions answered."""
    in_flight: str
    """Gauge by team, model, version: requests that servers are at."""
    resources: Resources
    copies: Copies | None = None
    """None: shadows can't be had, or are not counted."""
    version_latency: Callable[[str], str] = _of_versions
    """Rates over a window of a histogram by team, model, version, le in milliseconds, shadows' among them."""
    endpoint_latency: Callable[[str], str] = _of_clients
    """Rates over a window of a histogram by team, model, le in milliseconds: what clients have waited."""
