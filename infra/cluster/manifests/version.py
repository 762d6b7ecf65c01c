"""A model version as its manifests need it: what its config asks for, and what the platform has for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from urllib.parse import urlsplit

from infra.cluster.internals import ClusterInternals, PoolFacts, TeamFacts
from infra.cluster.manifests import Manifest
from infra.cluster.names import (
    COMMIT_LABEL,
    LONGEST_NAME,
    SERVER,
    STAGE_LABEL,
    version_annotations,
    version_labels,
    version_namespace,
)
from infra.settings import VersionSettings
from infra.settings.version import ServerSettings
from model_packaging.lifecycle import Stage

DIGEST_ANNOTATION = "lepton/artifact-digest"

SELECTOR = {"app.kubernetes.io/name": SERVER}
"""Labels of the Pods that serve. What selects them can't be changed later, so it is as little as can be."""

WORKER_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"

SURGE = Fraction(1, 4)
"""Share of a version's replicas that an update replaces at a time, rounded up as Kubernetes does."""

_LONGEST_REQUEST_SECONDS = 60.0
"""An endpoint's `timeouts.total`, unless it says another."""


_ECR = re.compile(r"\d{12}\.dkr[.-]ecr(-fips)?\.[a-z0-9-]+\.(amazonaws\.com(\.cn)?|on\.aws)")


def ecr_host(store: str) -> str | None:
    """The registry's host where it is Amazon's, which gives out its logins itself, for half a day.

    https://docs.aws.amazon.com/AmazonECR/latest/userguide/Registries.html
    """
    host = urlsplit(store).netloc
    return host if _ECR.fullmatch(host) else None


@dataclass(frozen=True)
class Version:
    """What one version's objects are made from. All checks are behind it (`infra.cluster.refusals`)."""

    team: str
    settings: VersionSettings
    server: ServerSettings
    """What serves it: the config's, or else the artifact's."""
    internals: ClusterInternals
    image: str
    """The container image with the server, by its digest."""
    digest: str
    """The artifact's."""
    size: int
    """Of the artifact's files, in bytes."""
    store: str
    """Where the artifact is, as `model_packaging.stores.open_store` takes it, from inside the cluster too."""
    prometheus: str
    """URL of the environment's Prometheus for who is inside the cluster."""
    git_commit: str | None = None
    stage: str | None = None
    """In its life cycle; None where nobody here knows."""
    trusted_keys: tuple[str, ...] = ()
    """PEM of the public keys one of which must have signed the artifact; none where signatures don't matter."""
    provenance: dict[str, str] = field(default_factory=dict[str, str])
    """Annotations of the Deployment that policies ask about."""
    secret: bool = False
    """Whether its environment goes into a Secret."""

    @cached_property
    def namespace(self) -> str:
        return version_namespace(*self._identity)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Of all its objects: they are as lasting as the version."""
        return version_labels(*self._identity)

    @cached_property
    def own_labels(self) -> dict[str, str]:
        """Of the namespace, beyond that: a stage changes, and Pods would be replaced for it.

        A version that nobody here knows the stage of is new, as far as one can tell (see `infra.cluster.version`).
        """
        commit, stage = self.git_commit, self.stage or Stage.DEVELOPMENT
        return self.labels | {
            name: value[:LONGEST_NAME] for name, value in ((COMMIT_LABEL, commit), (STAGE_LABEL, stage)) if value
        }

    @cached_property
    def annotations(self) -> dict[str, str]:
        return {**version_annotations(*self._identity), DIGEST_ANNOTATION: self.digest}

    @property
    def facts(self) -> TeamFacts:
        return self.internals["teams"][self.team]

    @property
    def pool(self) -> PoolFacts | None:
        """The one that it has to be on, if it has to."""
        return next((pool for pool in self.internals["pools"] if pool["name"] == self.settings.pool), None)

    @property
    def mounts_image(self) -> bool:
        """Whether the model comes as an image volume; else it is pulled."""
        settings = self.settings
        if settings.model_volume == "auto":
            # Of what an image holds nobody has signed a byte.
            unsigned_is_fine = not self.trusted_keys
            return bool(settings.model_image and unsigned_is_fine and "image-volumes" in self.internals["features"])
        return settings.model_volume == "image"

    @property
    def takes_role(self) -> bool:
        """Whether it asks the registry as an AWS role, which its Pods have by EKS Pod Identity."""
        return bool(self.internals.get("aws")) and not self.mounts_image and ecr_host(self.store) is not None

    @property
    def has_logins(self) -> bool:
        """Whether its namespace has the Secret with the logins at registries."""
        return bool(self.internals["images"]["pull_secrets"]) or self.takes_role

    @property
    def scales(self) -> bool:
        """Whether an autoscaler owns the number of replicas."""
        return self.settings.autoscaling is not None and self.settings.replicas > 0

    @property
    def most(self) -> int:
        """Replicas that there ever are, but for an update."""
        scaling = self.settings.autoscaling
        return scaling.max if scaling and self.scales else self.settings.replicas

    @property
    def surge(self) -> int:
        """Replicas that an update may have beyond `most`, as `SURGE` of them."""
        return math.ceil(self.most * SURGE)

    @property
    def drain_seconds(self) -> float:
        """How long a replica that is taken away may take to finish what it has."""
        settings = self.settings
        return settings.drain_timeout if "drain_timeout" in settings.model_fields_set else _LONGEST_REQUEST_SECONDS

    @property
    def spans_nodes(self) -> bool:
        return self.settings.nodes_per_replica > 1

    @property
    def serving(self) -> dict[str, str]:
        """Labels of the Pods that requests go to."""
        return SELECTOR | ({WORKER_INDEX_LABEL: "0"} if self.spans_nodes else {})

    def object(self, api_version: str, kind: str, name: str = SERVER, **content: object) -> Manifest:
        """An object in the version's namespace, with its labels and annotations."""
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
        }
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}

    @property
    def _identity(self) -> tuple[str, str, str, str]:
        return self.settings.environment, self.team, self.settings.model, self.settings.version
