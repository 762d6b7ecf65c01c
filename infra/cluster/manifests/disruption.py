"""What may be taken from a version at once by whoever drains nodes."""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.version import Version


def disruption_budget(version: Version) -> Manifest:
    """One replica at a time. With a least number instead, a version with one replica would keep its node for ever.

    A replica that isn't ready serves nobody, and may always go.
    https://kubernetes.io/docs/tasks/run-application/configure-pdb/
    """
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": version.serving},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return version.object("policy/v1", "PodDisruptionBudget", spec=spec)
