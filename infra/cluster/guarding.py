"""What must not happen to traffic: weight for a version that can't answer, and the end of one that is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from infra.cluster.api import Api
from infra.cluster.endpoints import ready_replicas
from infra.cluster.internals import ClusterInternals
from infra.cluster.live_routes import LiveRoutes
from infra.contracts import ObservationError
from infra.errors import UserError
from infra.names import version_stack

_SETTLE_SECONDS = 5.0
"""For a replica that has just become ready to be among its Service's endpoints."""
_POLL_SECONDS = 0.2


class NotReadyError(ObservationError):
    """A version can't be given weight."""


class ServedError(UserError):
    """A version can't be taken away, as an endpoint has it."""


def refuse_unready(
    api: Api,
    before: Mapping[str, int],
    weights: Mapping[str, int],
    namespaces: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """A version without a ready endpoint never gains weight; one that has it may lose it.

    Raises:
        NotReadyError: for one that would.
        ObservationError: when the API server can't be asked.
    """
    deadline = clock() + _SETTLE_SECONDS
    for version, weight in weights.items():
        if weight <= before.get(version, 0):
            continue
        while not ready_replicas(api, namespaces[version]):
            if clock() > deadline:
                raise NotReadyError(
                    f"{version} has no ready replica, so it can't be given weight {weight}; nothing was changed. "
                    "Its config may say `replicas: 0`, as after a rollout that scaled it down: raise that and "
                    f"`lepton deploy` it, or `lepton rollout start --to {version}` brings it back; see `lepton status`"
                )
            sleep(_POLL_SECONDS)


def refuse_served(api: Api, internals: ClusterInternals, team: str, model: str, version: str) -> None:
    """A version is never taken away while a route sends it requests, or copies, or would if they were pinned.

    The cluster itself holds to it, whoever asks: `infra.cluster.manifests.claims`.

    Raises:
        ServedError: while one does.
        ObservationError: when the API server can't be asked.
    """
    traffic = LiveRoutes(api, internals, team, model).traffic()
    if version in traffic["weights"] or version in traffic["shadow"]:
        environment = internals["environment"]
        raise ServedError(
            f"{team}/{version_stack(environment, model, version)} is still a variant of "
            f"{team}/{environment}.{model}: take it out of the endpoint's variants and shadow first, then take it down"
        )
