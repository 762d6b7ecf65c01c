"""Names, labels and annotations of what is ours in a Kubernetes cluster. Composed here, and never parsed back."""

from __future__ import annotations

import hashlib
import re

from infra.names import version_id

LONGEST_NAME = 63
"""A DNS-1123 label: namespaces, Services, label values."""

TEAM_LABEL = "lepton/team"
MODEL_LABEL = "lepton/model"
VERSION_LABEL = "lepton/version"
"""Shortened where the version is longer than a label may be; the annotation of the same name has it whole."""
COMMIT_LABEL = "lepton/git-commit"
STAGE_LABEL = "lepton/stage"
ENVIRONMENT_LABEL = "lepton/environment"
POOL_LABEL = "lepton/pool"
MANAGED_BY = {"app.kubernetes.io/managed-by": "lepton"}

ENDPOINT_ANNOTATION = "lepton/endpoint"
"""On a claim (`infra.cluster.manifests.claims`): the endpoint's team and stack."""
VARIANTS_ANNOTATION = "lepton/variants"
"""On a route: JSON, the version by its backend's namespace."""

SERVER = "server"
"""Names a version's Deployment, Service, ServiceAccount and the rest within its namespace."""
HTTP_PORT = 8080
GRPC_PORT = 8081
METRICS_PORT = 8082
"""On which every server listens in its own Pod."""

GATEWAY = "lepton"
"""The Gateway, in the platform's namespace."""

_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9]+")
_HASH_CHARACTERS = 10


def version_namespace(environment: str, team: str, model: str, version: str) -> str:
    """The namespace of a version: readable as far as a name has room, and always unambiguous by a hash."""
    return _hashed(f"{model}-{version}", f"{environment}/{version_id(team, model, version)}")


def team_namespace(environment: str, team: str) -> str:
    """Where a team's endpoints are."""
    return _hashed(f"{team}-{environment}", f"{environment}/{team}")


def route_name(model: str) -> str:
    """An endpoint's routes in its team's namespace; a model's name is a DNS label itself."""
    return model


def version_labels(environment: str, team: str, model: str, version: str) -> dict[str, str]:
    """What all objects of a version are labelled with."""
    return {
        **MANAGED_BY,
        ENVIRONMENT_LABEL: environment,
        TEAM_LABEL: team,
        MODEL_LABEL: model,
        VERSION_LABEL: label_value(version),
    }


def version_annotations(environment: str, team: str, model: str, version: str) -> dict[str, str]:
    """Whose a version's objects are, in full: what metrics are joined by."""
    return {ENVIRONMENT_LABEL: environment, TEAM_LABEL: team, MODEL_LABEL: model, VERSION_LABEL: version}


def label_value(text: str) -> str:
    """The text; where a label can't hold it, as much of it as can be, told apart by a hash.

    A semantic version is at most too long, or ends with a hyphen.
    """
    if len(text) <= LONGEST_NAME and text[-1].isalnum():
        return text
    return f"{text[: LONGEST_NAME - _HASH_CHARACTERS - 1].rstrip('.-')}-{_hash(text)}"


def _hashed(readable: str, whole: str) -> str:
    slug = _NOT_IN_A_LABEL.sub("-", readable.lower())[: LONGEST_NAME - _HASH_CHARACTERS - 1].strip("-")
    return f"{slug}-{_hash(whole)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARACTERS]
