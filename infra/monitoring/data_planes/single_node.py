"""The single node's Envoy, with the statistics of `infra/single_node/machine/stats.py`, and the node's own exporter."""

from __future__ import annotations

from infra.monitoring.catalogue import ENDPOINT_LABELS, GPU_LABELS, NODE_LABELS, VERSION_LABELS
from infra.monitoring.data_plane import COUNTED, Copies, DataPlane, Resources
from infra.monitoring.promql import fresh_rate, sum_by
from infra.single_node.machine.stats import ERRORS, LATENCY, SHADOW, VARIANT

# Paths without an endpoint are the router's own to answer, and have no version.
_ENDED = f'{LATENCY}_count{{version!=""}}'
_BUCKETS = f'{LATENCY}_bucket{{version!=""}}'
_SERIES = f"on ({', '.join(VERSION_LABELS)}, answered_by)"
# One element for each version, labelled as the series of what it answered itself.
_OWN = f'label_replace(group by ({", ".join(VERSION_LABELS)}) ({_ENDED}), "answered_by", "$1", "version", "(.+)")'
_COPIES = f'role="{SHADOW}"'
_COPIES_COUNTED = (*COUNTED, "protocol")
_COPIES_BUCKETS = f"envoy_cluster_upstream_rq_time_bucket{{{_COPIES}}}"


def _version_latency(window: str) -> str:
    return f"({fresh_rate(_BUCKETS, window)} and {_SERIES} {_OWN}) or {fresh_rate(_COPIES_BUCKETS, window)}"


def _endpoint_latency(window: str) -> str:
    # Whoever answered.
    return fresh_rate(_BUCKETS, window)


def _used_ratio(what: str, labels: tuple[str, ...]) -> str:
    used = sum_by(labels, f'lepton_node_{what}_bytes{{state="used"}}')
    return f"{used} / {sum_by(labels, f'lepton_node_{what}_bytes')}"


def _cpu_ratio() -> str:
    idle = sum_by(NODE_LABELS, fresh_rate('lepton_node_cpu_seconds_total{mode=~"idle|iowait"}', "1m"))
    every = sum_by(NODE_LABELS, fresh_rate("lepton_node_cpu_seconds_total", "1m"))
    return f"clamp_min(1 - {idle} / ({every} > 0), 0)"


def _servers(metric: str) -> str:
    # A server that speaks both protocols is in a cluster of each.
    return f'max by ({", ".join(VERSION_LABELS)}) (envoy_cluster_membership_{metric}{{role="{VARIANT}"}})'


SINGLE_NODE = DataPlane(
    requests=sum_by(COUNTED, _ENDED),
    errors=sum_by(COUNTED, f"({ERRORS} and {_SERIES} {_OWN}) or ({_ENDED} unless {_SERIES} {_OWN})"),
    endpoint_errors=sum_by((*ENDPOINT_LABELS, "instance"), f'{ERRORS}{{version!=""}}'),
    buckets=sum_by((*COUNTED, "le"), f"{_BUCKETS} and {_SERIES} {_OWN}"),
    in_flight=f'envoy_cluster_upstream_rq_active{{role="{VARIANT}"}}',
    copies=Copies(
        requests=sum_by(_COPIES_COUNTED, f"envoy_cluster_upstream_rq_completed{{{_COPIES}}}"),
        errors=sum_by(_COPIES_COUNTED, f'envoy_cluster_upstream_rq_xx{{{_COPIES}, envoy_response_code_class="5"}}'),
        buckets=sum_by((*_COPIES_COUNTED, "le"), _COPIES_BUCKETS),
    ),
    version_latency=_version_latency,
    endpoint_latency=_endpoint_latency,
    resources=Resources(
        version_cpu_seconds=sum_by(COUNTED, "lepton_version_cpu_seconds_total"),
        version_cpu_cores=sum_by(VERSION_LABELS, fresh_rate("lepton_version_cpu_seconds_total", "1m")),
        version_memory_bytes=sum_by(VERSION_LABELS, "lepton_version_memory_bytes"),
        replicas_desired=_servers("total"),
        replicas_ready=_servers("healthy"),
        node_cpu_ratio=_cpu_ratio(),
        node_memory_ratio=_used_ratio("memory", NODE_LABELS),
        node_disk_ratio=_used_ratio("disk", NODE_LABELS),
        node_gpu_ratio=sum_by(GPU_LABELS, "lepton_node_gpu_utilisation_ratio"),
        node_gpu_memory_ratio=_used_ratio("gpu_memory", GPU_LABELS),
    ),
)
