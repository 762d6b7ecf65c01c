"""Artifacts for the tests of exports, and what they find afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.manifest import GitSource
from model_packaging.stores.layout import Layout

FILES = {"weights.bin": b"weights" * 5000, "code/inference.py": b"def model_fn(): ...\n", "empty.txt": b""}
SERVER = {
    "command": [
        *("/oip-server", "-host", "{host}", "-http-port", "{http_port}"),
        *("-model", "{model}", "-version", "{version}", "-quiet"),
    ],
    "env": {"WEIGHTS": "{model_dir}/weights.bin", "PRICE": 'a "$5" \\ note'},
}
SAMPLE = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
PACKAGE = {
    "framework": {"name": "none", "version": "1"},
    "training_data": "none",
    "licence": "Apache-2.0",
    "author": "Vision team",
    "samples": [SAMPLE],
    "server": SERVER,
}
GIT = GitSource(commit="0123456789abcdef0123456789abcdef01234567", branch="main", dirty=False)


def make_artifact(
    folder: Path,
    files: dict[str, bytes] | None = None,
    *,
    version: str = "1.2.0",
    package: dict[str, Any] | None = None,
    part_bytes: int = 16_000,
) -> Artifact:
    """Of files long enough to be in several parts."""
    source = folder / f"source-{version}"
    source.mkdir(parents=True)
    (source / "package.yaml").write_text(json.dumps(PACKAGE | (package or {})))
    for name, content in (FILES if files is None else files).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    store = Layout(folder / "store")
    built = build_artifact(source, "tumour", version, store, git=GIT, part_bytes=part_bytes)
    return Artifact.at(store, "tumour", built.digest)


def harm(artifact: Artifact, file: str) -> None:
    """Changes a byte of the last part of a file in the store."""
    part = next(part for part in reversed(artifact.parts) if str(part.file) == file)
    blob = Path(artifact.store.location) / "blobs" / "sha256" / part.digest.removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
