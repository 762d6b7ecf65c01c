"""What a version is refused for before anything of it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from infra.cluster.manifests.quantities import parse
from infra.cluster.manifests.scheduling import PROMISED_ANNOTATION, gpu_resource, promised
from infra.cluster.manifests.version import Version
from infra.cluster.names import ENVIRONMENT_LABEL, TEAM_LABEL
from infra.errors import UserError
from model_packaging.stores.store import PLAIN_REGISTRY_SCHEME, REGISTRY_SCHEME

if TYPE_CHECKING:
    from infra.cluster.internals import ClusterInternals
    from infra.cluster.live.api import Api
    from infra.contracts import Stack
    from infra.settings import VersionSettings
    from infra.settings.cluster import Feature

_BY_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LONGEST_WINDOW = 3600
"""Seconds that a HorizontalPodAutoscaler can hold a number for."""


class VersionRefused(UserError):
    """A version's config asks for what can't be, or not in this environment."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))


class QuotaExceeded(UserError):
    """A team's versions would ask for more than its share."""


def refuse_unknown_team(stack: Stack, settings: VersionSettings, internals: ClusterInternals) -> None:
    """Raises VersionRefused where the environment has nothing for the team."""
    teams = internals["teams"]
    if stack.team not in teams:
        known = ", ".join(sorted(teams))
        raise VersionRefused(
            [
                f"team {stack.team} has no place in {settings.environment}, whose teams are {known}; add it to "
                f"lepton:platform.cluster.teams, and run `lepton up {settings.environment}`"
            ]
        )


def refuse_local_store(store: str) -> None:
    """Raises VersionRefused where Pods can't reach the store."""
    if not store.startswith((REGISTRY_SCHEME, PLAIN_REGISTRY_SCHEME)):
        raise VersionRefused(
            [
                f"the environment's store is the folder {store}, which the cluster's nodes don't have; give a registry "
                f"in lepton:platform.store, such as {REGISTRY_SCHEME}registry.example.com/models"
            ]
        )


def refuse_impossible(version: Version) -> None:
    """Raises VersionRefused, with everything that the config asks for and the platform doesn't have."""
    problems = [f"lepton:version.{problem}" for problem in _problems(version)]
    if problems:
        raise VersionRefused(problems)


def refuse_beyond_quota(version: Version, api: Api) -> None:
    """Raises QuotaExceeded where the team's versions, each with its most replicas, would ask for more than its quota.

    Two deploys at the same moment don't see each other; the API server holds each of them to its own part.
    """
    quota, asked = version.facts["quota"], promised(version)
    if not quota or not version.most:
        return
    used = _promised_to_others(version, api)
    for name, limit in quota.items():
        wanted = parse(asked.get(name, "0"))
        if wanted and used.get(name, 0) + wanted > parse(limit):
            raise QuotaExceeded(
                f"team {version.team} may have {name} {limit} in {version.settings.environment}: its other versions "
                f"are promised {_text(used.get(name, Fraction(0)))}, and this one asks for {asked[name]}, with "
                f"{version.most} replicas; ask for less, take a version down, or raise "
                f"lepton:platform.cluster.teams.{version.team}.quota"
            )


def _promised_to_others(version: Version, api: Api) -> Mapping[str, Fraction]:
    selector = f"{TEAM_LABEL}={version.team},{ENVIRONMENT_LABEL}={version.settings.environment}"
    used: dict[str, Fraction] = {}
    for found in api.items("/api/v1/resourcequotas", labelSelector=selector):
        metadata = found["metadata"]
        note = metadata.get("annotations", {}).get(PROMISED_ANNOTATION)
        if note is None or metadata["namespace"] == version.namespace:
            continue
        for name, amount in json.loads(note).items():
            used[name] = used.get(name, Fraction(0)) + parse(amount)
    return used


def _problems(version: Version) -> Iterator[str]:
    yield from _unknown_images(version)
    yield from _missing_features(version)
    yield from _wrong_pool(version)
    yield from _wrong_autoscaling(version)
    yield from _unlimited(version)


def _unknown_images(version: Version) -> Iterator[str]:
    images, settings = version.internals["images"], version.settings
    if not version.image:
        yield "image: the platform has none for servers (lepton:platform.cluster.images.server), so a version needs one"
    elif not _BY_DIGEST.fullmatch(version.image):
        yield (
            f"image: given {version.image}: an image is given by its digest, 'REGISTRY/NAME[:TAG]@sha256:…', so that "
            "nobody can change it"
        )
    if not version.mounts_image and not images["puller"]:
        yield (
            "model_volume: the platform has no image that pulls models (lepton:platform.cluster.images.puller); "
            "name one there, or give 'model_image', an image that holds the model's files, and 'model_volume: image'"
        )
    if settings.model_volume == "image" and version.trusted_keys:
        yield (
            "model_volume: given 'image': the environment serves signed versions only, and what an image holds nobody "
            "has signed; use 'pull'"
        )


def _missing_features(version: Version) -> Iterator[str]:
    settings = version.settings
    scaling = settings.autoscaling
    wanted: list[tuple[bool, str, Feature]] = [
        (version.mounts_image, "model_volume: given 'image'", "image-volumes"),
        (
            settings.resources.device_class is not None,
            f"resources.device_class: given {settings.resources.device_class!r}",
            "dynamic-resource-allocation",
        ),
        (version.spans_nodes, f"nodes_per_replica: given {settings.nodes_per_replica}", "leader-worker-sets"),
        (scaling is not None and scaling.scaler == "keda", "autoscaling.scaler: given 'keda'", "keda"),
    ]
    for asked, what, feature in wanted:
        if asked and feature not in version.internals["features"]:
            yield (
                f"{what}: the cluster isn't said to have that; where it does, add {feature} to "
                "lepton:platform.cluster.features"
            )


def _wrong_pool(version: Version) -> Iterator[str]:
    settings, pool = version.settings, version.pool
    resources = settings.resources
    if settings.pool is None:
        return
    if pool is None:
        known = ", ".join(each["name"] for each in version.internals["pools"]) or "none"
        yield f"pool: given {settings.pool!r}: the platform's pools are {known}"
        return
    wanted = gpu_resource(resources, pool)
    if wanted and wanted != pool["gpu_resource"]:
        has = pool["gpu_resource"] or "no GPUs"
        yield f"pool: given {settings.pool!r}: it has {has}, and the version asks for {wanted}; choose another pool"
    if resources.gpu_product and pool["product"] and resources.gpu_product != pool["product"]:
        yield (
            f"resources.gpu_product: given {resources.gpu_product!r}: pool {settings.pool} has {pool['product']}; "
            "leave one of the two out"
        )


def _wrong_autoscaling(version: Version) -> Iterator[str]:
    scaling, resources = version.settings.autoscaling, version.settings.resources
    if scaling is None:
        return
    if scaling.by == "cpu" and resources.cpu is None and "cpu" not in version.facts["limits"]:
        yield "autoscaling.by: given 'cpu': its target is a share of resources.cpu, which is not given"
    if scaling.by == "gpu" and not resources.gpu:
        yield "autoscaling.by: given 'gpu': the version has no GPUs; give resources.gpu, or scale by something else"
    if scaling.query is not None and scaling.scaler == "hpa" and not _METRIC.fullmatch(scaling.query):
        yield (
            "autoscaling.query: a HorizontalPodAutoscaler knows an external metric by its name alone, such as "
            "'queue_waiting'; record the query under a name, or use 'scaler: keda'"
        )
    if scaling.scale_down_after > _LONGEST_WINDOW:
        yield (
            f"autoscaling.scale_down_after: given {scaling.scale_down_after:g}s: Kubernetes has at most "
            f"{_LONGEST_WINDOW}s"
        )


def _unlimited(version: Version) -> Iterator[str]:
    """Under a quota, what asks for nothing could have everything."""
    asked = version.facts["limits"].keys()
    for name in ("cpu", "memory"):
        if (
            f"requests.{name}" in version.facts["quota"]
            and name not in asked
            and getattr(version.settings.resources, name) is None
        ):
            yield f"resources.{name}: team {version.team} has a quota of it, so say how much a replica gets"


def _text(amount: Fraction) -> str:
    return f"{float(amount):g}"
