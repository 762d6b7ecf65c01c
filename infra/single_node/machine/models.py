"""The node's unpacked artifacts: a folder a digest, for as long as a version of the node uses it."""

from __future__ import annotations

import shutil
from pathlib import Path

from infra.files import read_json, write_json
from infra.single_node.machine.node import Node
from model_packaging.artifact import Artifact


def model_folder(node: Node, digest: str) -> Path:
    return node.models / digest.removeprefix("sha256:")


def unpack(node: Node, artifact: Artifact, owner: str) -> Path:
    """Unpacks the artifact for the version `owner`, or verifies what is there. Raises as `Artifact.unpack`."""
    with node.locked("models"):
        # Another team's version may be made of the same artifact.
        write_json(_users(node), read_json(_users(node), {}) | {owner: artifact.digest})
    return artifact.unpack(model_folder(node, artifact.digest))


def forget(node: Node, owner: str) -> None:
    """Removes the version's artifact, unless another one uses it; fine if there is none."""
    with node.locked("models"):
        users = read_json(_users(node), {})
        digest = users.pop(owner, None)
        if digest is not None and digest not in users.values():
            folder = model_folder(node, digest)
            if folder.exists():
                shutil.rmtree(folder)
        write_json(_users(node), users)


def _users(node: Node) -> Path:
    """Digest by version."""
    return node.models / "users.json"
