"""What a version is in the cluster: its namespace, its account, and what of its settings nobody may read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.teams import pod_security
from infra.cluster.manifests.version import Version

ENVIRONMENT = "environment"
"""The Secret with the server's environment variables."""


def namespace(version: Version) -> Manifest:
    """The version's own, in which only Pods run that keep to `restricted`."""
    metadata = {
        "name": version.namespace,
        "labels": version.own_labels | pod_security("restricted"),
        "annotations": dict(version.annotations),
    }
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def service_account(version: Version) -> Manifest:
    """Who its Pods are. It may do nothing until somebody binds a role to it."""
    access = version.settings.api_access
    return version.object("v1", "ServiceAccount", automountServiceAccountToken=access)


def environment_secret(version: Version, env: Mapping[str, str]) -> Manifest:
    """The environment variables of the version's server, as they are."""
    data = {name: base64.b64encode(value.encode()).decode() for name, value in env.items()}
    return version.object("v1", "Secret", ENVIRONMENT, type="Opaque", data=data)


def fingerprint(version: Version, env: Mapping[str, str]) -> str:
    """Changes with the variables, so that Pods are replaced then.

    It is there for all to see who see the Pods, so that it is made slow to guess by.
    """
    content = json.dumps(dict(env), sort_keys=True).encode()
    return hashlib.scrypt(content, salt=version.namespace.encode(), n=2**14, r=8, p=1, dklen=8).hex()
