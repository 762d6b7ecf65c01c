"""Pull secrets: what nodes show a registry, so that it gives them images."""

from __future__ import annotations

from collections.abc import Mapping

from infra.cluster.manifests import Manifest

PULL_SECRET = "kubernetes.io/dockerconfigjson"  # noqa: S105 - a Secret's type
"""https://kubernetes.io/docs/concepts/configuration/secret/#docker-config-secrets"""


def pull_secret(namespace: str, name: str, labels: Mapping[str, str], data: object) -> Manifest:
    """A namespace's copy of a pull secret: Pods can use none of another namespace.

    `data` is the original's, in base64; where the manifest becomes a resource, a secret Output.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "type": PULL_SECRET,
        "data": data,
    }
