"""What the plugin decides from objects alone: their identity, what differs, and what can't change in place."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
Path = tuple[str | int, ...]

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""Stands for a value that the engine doesn't know before the update."""

_IDENTITY = ("metadata.name", "metadata.namespace")
_REPLACES: dict[tuple[str, str], tuple[str, ...]] = {
    ("apps/v1", "Deployment"): ("spec.selector",),
    ("apps/v1", "StatefulSet"): (
        "spec.podManagementPolicy",
        "spec.revisionHistoryLimit",
        "spec.selector",
        "spec.serviceName",
        "spec.volumeClaimTemplates",
    ),
    ("batch/v1", "Job"): ("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): ("roleRef",),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): ("roleRef",),
    ("storage.k8s.io/v1", "StorageClass"): ("parameters", "provisioner"),
    ("v1", "ConfigMap"): ("binaryData", "data"),
    ("v1", "PersistentVolumeClaim"): ("spec",),
    ("v1", "ResourceQuota"): ("spec.scopes",),
    ("v1", "Secret"): ("type", "stringData", "data"),
    ("v1", "Service"): ("spec.clusterIP",),
}
"""The real plugin's own choice of fields, by apiVersion and kind."""

_SERVERS_OWN = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "uid")


def kind_of(urn: str) -> tuple[str, str]:
    """apiVersion and kind of a resource's type, which is `kubernetes:GROUP/VERSION:KIND`."""
    _, group_and_version, kind = urn.split("::")[2].rpartition("$")[2].split(":")
    group, _, version = group_and_version.rpartition("/")
    return (version if group == "core" else group_and_version), kind


def manager_of(urn: str) -> str:
    """The name under which the resource's fields are managed."""
    return f"pulumi-kubernetes-{hashlib.sha256(urn.encode()).hexdigest()[:8]}"


def id_of(live: Object) -> str:
    metadata = live["metadata"]
    return "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))


def annotation(inputs: Object, name: str) -> str:
    return str(((inputs.get("metadata") or {}).get("annotations") or {}).get(f"pulumi.com/{name}", ""))


def has_unknowns(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_unknowns, value.values()))
    if isinstance(value, list):
        return any(map(has_unknowns, value))
    return value == UNKNOWN


def without_what_the_server_owns(live: Object) -> Object:
    """A live object as inputs that nobody wrote, as after `.get()`."""
    metadata = {key: value for key, value in live["metadata"].items() if key not in _SERVERS_OWN}
    return {key: value for key, value in live.items() if key != "status"} | {"metadata": metadata}


def pruned(live: Any, inputs: Any) -> Any:
    """The live values at just the paths that the inputs have. Of a list, those elements that the inputs reach."""
    if isinstance(live, dict) and isinstance(inputs, dict):
        return {key: pruned(value, inputs[key]) for key, value in live.items() if key in inputs}
    if isinstance(live, list) and isinstance(inputs, list):
        return [pruned(value, given) for value, given in zip(live, inputs, strict=False)]
    return live


def normalized(inputs: Object) -> Object:
    """A Secret as the API server keeps it: text is bytes there."""
    if (inputs.get("apiVersion"), inputs.get("kind")) != ("v1", "Secret") or not inputs.get("stringData"):
        return inputs
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in inputs["stringData"].items()}
    kept = {key: value for key, value in inputs.items() if key != "stringData"}
    return kept | {"data": (inputs.get("data") or {}) | encoded}


def differences(old: Any, new: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Each path that differs as JSON, with `add`, `delete` or `update`.

    The real plugin knows no more of a kind either: other words for a quantity are another one, and what is empty is
    there.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), (*path, key))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else None
            after = new[index] if index < len(new) else None
            yield from differences(before, after, (*path, index))
    elif old is None and new is not None:
        yield path, "add"
    elif new is None and old is not None:
        yield path, "delete"
    elif old != new:
        yield path, "update"


def replaces(inputs: Object, path: Path, mutable: set[str]) -> bool:
    """Whether a change there needs another object. `mutable` names kinds that the user wants updated in place."""
    kind = str(inputs.get("kind"))
    fields = _REPLACES.get((str(inputs.get("apiVersion")), kind), ())
    if kind in mutable and not inputs.get("immutable"):
        fields = ()
    parts = [part for part in path if isinstance(part, str)]
    for name in (*_IDENTITY, *fields):
        length = min(len(parts), name.count(".") + 1)
        if parts[:length] == name.split(".")[:length]:
            return True
    return False


def written(path: Path) -> str:
    """As Pulumi writes a property's path."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.search(r'[."\[\]]', part):
            escaped = part.replace('"', '\\"')
            text += f'["{escaped}"]'
        else:
            text += f".{part}" if text else part
    return text
