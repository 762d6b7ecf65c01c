"""Model folders for tests to package, and what they look at in a store."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.digests import digest_of
from model_packaging.manifest import MANIFEST_TYPE, REF_NAME, canonical
from model_packaging.stores import Store
from model_packaging.stores.layout import Layout

PACKAGE: dict[str, Any] = {
    "framework": {"name": "scikit-learn", "version": "1.9.1"},
    "training_data": "made up",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}
FILES = {"model.bin": b"weights" * 1000, "settings.json": b"{}", "parts/tokens.txt": b"a b c"}


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML too.
    (folder / "package.yaml").write_text(json.dumps(PACKAGE))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    """What a reader of the store can see of it."""
    return {name: content for name, content in tree(folder).items() if not name.startswith(".")}


def leftovers(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if ".partial" in path.name or (path.is_file() and path.parent.name in (".uploads", ".leases"))
    ]


def blob(store: Layout, digest: str) -> Path:
    return store.path / "blobs" / "sha256" / digest.removeprefix("sha256:")


def layer_blob(store: Layout, digest: str, name: str) -> Path:
    """The blob of a file's first part."""
    return blob(store, Artifact.at(store, "tumour", digest).files[PurePosixPath(name)][0].digest)


def plant(store: Layout, manifest: bytes, name: str = "tumour:6.6.6") -> str:
    """Gets a document into the store past `put`, as whoever can write to its folder could. Returns its digest."""
    digest = digest_of(manifest)
    blob(store, digest).write_bytes(manifest)
    index = json.loads((store.path / "index.json").read_text())
    annotations = {REF_NAME: name}
    index["manifests"].append(
        {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(manifest), "annotations": annotations}
    )
    (store.path / "index.json").write_bytes(canonical(index))
    return digest


def plant_changed(store: Layout, digest: str, change: dict[str, Any], layer_change: dict[str, Any]) -> str:
    """Plants the manifest `digest` with other fields, and with another first layer."""
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0] |= layer_change
    return plant(store, canonical(document | change))


def build(folder: Path, store: Store, version: str = "1.0.0", **more: Any) -> str:
    """Packages a folder as a version of `tumour`, and returns the digest."""
    return build_artifact(folder, "tumour", version, store, **more).digest
