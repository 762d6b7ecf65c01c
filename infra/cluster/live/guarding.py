"""What must not happen to traffic: weight for a version that can't answer, and the end of one that is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from infra.cluster.live.api import Api, NotFoundError
from infra.cluster.live.endpoints import ready_replicas
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.claims import claim_path
from infra.contracts import ObservationError

_SETTLE_SECONDS = 5.0
"""For a replica that has just become ready to be among its Service's endpoints."""
_POLL_SECONDS = 0.2
_MANAGER = "lepton-claims"


class NotReadyError(ObservationError):
    """A version can't be given weight."""


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


def put_back_claims(api: Api, claims: Iterable[Manifest]) -> list[str]:
    """Makes the claims that are not there, as a namespace that somebody deleted took them along; says which it can't.

    Pulumi's state still has them, so an update that doesn't refresh would not. They are applied as Pulumi applies them,
    and a claim that can't be is no error: traffic can still be taken off a version whose namespace is gone.
    """
    problems: list[str] = []
    for claim in claims:
        namespace = claim["metadata"]["namespace"]
        path = claim_path(namespace)
        try:
            try:
                api.get(path)
            except NotFoundError:
                api.apply(path, claim, _MANAGER)
        except ObservationError as error:
            problems.append(f"nothing guards the version of namespace {namespace} from being taken away: {error}")
    return problems
