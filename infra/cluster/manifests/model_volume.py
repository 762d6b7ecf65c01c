"""How the model gets into a version's containers: as an OCI image volume, or pulled and verified by an init container.

Both ways its files are in `MODEL_FOLDER`, and the server can't write there.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.quantities import size
from infra.cluster.manifests.scheduling import puller_resources
from infra.cluster.manifests.version import Version

PULLER = "puller"
REGISTRIES = "registries"
"""The Secret with the logins at registries: for nodes, which pull images, and for the puller."""
TRUSTED_KEYS = "trusted-keys"

_MODELS = PurePosixPath("/models")
MODEL_FOLDER = str(_MODELS / "model")
"""`/model` is where `lepton package export --as image` puts the files."""

_LOGINS = "/registries"
_KEYS = "/trusted-keys"
_VOLUME = "model"
# For what the file system adds to files' sizes.
_SLACK = 64 * 2**20


def model_volumes(version: Version) -> list[dict[str, Any]]:
    """The Pod's volumes for the model's sake."""
    if version.mounts_image:
        # https://kubernetes.io/docs/concepts/storage/volumes/#image
        reference = {"reference": version.settings.model_image, "pullPolicy": "IfNotPresent"}
        return [{"name": _VOLUME, "image": reference}]
    # Twice, as what a restarted node finds harmed stays until its successor is whole.
    limit = size(-(-(2 * version.size + _SLACK) // 2**20) * 2**20)
    volumes: list[dict[str, Any]] = [{"name": _VOLUME, "emptyDir": {"sizeLimit": limit}}]
    if version.has_logins:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        # Modes are octal: 0440.
        secret = {"secretName": REGISTRIES, "items": items, "defaultMode": 0o440}
        volumes.append({"name": REGISTRIES, "secret": secret})
    if version.trusted_keys:
        volumes.append({"name": TRUSTED_KEYS, "configMap": {"name": TRUSTED_KEYS, "defaultMode": 0o444}})
    return volumes


def model_mount() -> dict[str, Any]:
    """The server's."""
    return {"name": _VOLUME, "mountPath": str(_MODELS), "readOnly": True}


def puller(version: Version, security: dict[str, Any], scratch: dict[str, Any]) -> list[dict[str, Any]]:
    """The init container, where the model is pulled."""
    if version.mounts_image:
        return []
    command = ["lepton", "package", "pull", version.store, f"{version.settings.model}@{version.digest}", MODEL_FOLDER]
    env = [{"name": "HOME", "value": scratch["mountPath"]}]
    mounts = [{"name": _VOLUME, "mountPath": str(_MODELS)}, scratch]
    if version.has_logins:
        env.append({"name": "DOCKER_CONFIG", "value": _LOGINS})
        mounts.append({"name": REGISTRIES, "mountPath": _LOGINS, "readOnly": True})
    if version.trusted_keys:
        mounts.append({"name": TRUSTED_KEYS, "mountPath": _KEYS, "readOnly": True})
        for file in _key_files(version):
            command += ["--key", f"{_KEYS}/{file}"]
    container: dict[str, Any] = {
        "name": PULLER,
        "image": version.internals["images"]["puller"],
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": env,
        "resources": puller_resources(version),
        "securityContext": security,
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return [container]


def trusted_keys(version: Version) -> list[Manifest]:
    """The public keys for the puller. They are no secret, and who can change them can change the Deployment too."""
    if version.mounts_image or not version.trusted_keys:
        return []
    return [version.object("v1", "ConfigMap", TRUSTED_KEYS, data=_key_files(version))]


def _key_files(version: Version) -> dict[str, str]:
    return {f"{number}.pub": pem for number, pem in enumerate(version.trusted_keys)}
