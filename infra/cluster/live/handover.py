"""Gives a version the replicas that it begins with, and hands their number to its autoscaler.

What the autoscaler owns is in no manifest. A field that one manager alone has applied goes away when that one no longer
applies it, and a Deployment's replicas are 1 then, as they are where nobody ever said a number: all others would be
gone at once, and come back as fast as the autoscaler moves.

Reference: https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership
"""

from __future__ import annotations

from infra.cluster.live.api import Api, NotFoundError
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.version import Version
from infra.cluster.manifests.workload import DEPLOYMENT, LEADER_WORKER_SET
from infra.cluster.names import SERVER

_MANAGER = "lepton-autoscaling"


def hand_over_replicas(version: Version, api: Api) -> None:
    """Has the number be applied by a second manager, until the autoscaler first changes it.

    It is what there is, and `first_replicas` at least. Nothing where the version is not there, or the number is the
    autoscaler's already, and enough.

    Raises:
        ObservationError: when the API server can't be reached, or refuses.
    """
    api_version, kind = LEADER_WORKER_SET if version.spans_nodes else DEPLOYMENT
    path = f"/apis/{api_version}/namespaces/{version.namespace}/{kind.lower()}s/{SERVER}"
    try:
        live = api.get(path)
    except NotFoundError:
        return
    present, first = live["spec"].get("replicas", 0), version.settings.first_replicas
    if present >= first and not _is_applied(live):
        return
    own = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": SERVER, "namespace": version.namespace},
        "spec": {"replicas": max(present, first)},
    }
    # By force, as another number is somebody's: the 0 of a version at rest, or an autoscaler's.
    api.apply(path, own, _MANAGER, force=True)


def _is_applied(live: Manifest) -> bool:
    return any(
        entry["operation"] == "Apply" and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", [])
    )
