"""Base images for the tests, put together by hand in each of the ways in which images are kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

Members = Mapping[str, bytes]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(files: Members) -> bytes:
    """A tar of programs."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def config(layers: Sequence[bytes], platform: str = "linux/amd64", **said: Any) -> dict[str, Any]:
    system, architecture, *variant = platform.split("/")
    return {
        "os": system,
        "architecture": architecture,
        **({"variant": variant[0]} if variant else {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(content) for content in layers]},
        **said,
    }


class LayoutFiles(dict[str, bytes]):
    """The files of an image layout, by path."""

    def add(self, document: Any, media_type: str, **more: Any) -> dict[str, Any]:
        """Keeps a document or bytes as a blob, and returns its descriptor."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self[f"blobs/sha256/{digest(content)[7:]}"] = content
        return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}

    def add_image(self, layers: Sequence[bytes], *, packed: bool = False, **said: Any) -> dict[str, Any]:
        described = config(layers, **said)
        kept = [gzip.compress(content, mtime=0) if packed else content for content in layers]
        return self.add(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.add(described, CONFIG),
                "layers": [self.add(content, LAYER + ("+gzip" if packed else "")) for content in kept],
            },
            MANIFEST,
        )

    def set_index(self, *descriptors: dict[str, Any]) -> LayoutFiles:
        self["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        self["index.json"] = json.dumps({"schemaVersion": 2, "manifests": descriptors}).encode()
        return self

    def replace(self, path: str, content: bytes) -> None:
        """Gives a document another content, and has everything lead to it that led to the one before."""
        old, new = (f"sha256:{path.rpartition('/')[2]}", digest(content))
        del self[path]
        if not path.startswith("blobs/"):
            self[path] = content
            return
        self[f"blobs/sha256/{new[7:]}"] = content
        for other, document in list(self.items()):
            if old.encode() in document:
                self.replace(other, _resized(json.loads(document), old, new, len(content)))

    def write(self, folder: Path) -> Path:
        for path, content in self.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder

    def write_archive(self, file: Path, prefix: str = "") -> Path:
        file.write_bytes(layer({prefix + path: content for path, content in self.items()}))
        return file


def _resized(document: Any, old: str, new: str, size: int) -> bytes:
    """A document whose descriptors of `old` describe `new`."""

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(one) for one in value]
        if isinstance(value, dict):
            changed = {key: change(one) for key, one in value.items()}
            return changed | ({"digest": new, "size": size} if value.get("digest") == old else {})
        return value

    return json.dumps(change(document)).encode()


def make_layout(folder: Path, layers: Sequence[bytes], **said: Any) -> Path:
    """A layout of one image."""
    files = LayoutFiles()
    return files.set_index(files.add_image(layers, **said)).write(folder)


def make_saved(file: Path, layers: Mapping[str, bytes], diff_ids: Sequence[bytes], **said: Any) -> Path:
    """An archive as `docker save` wrote it before it was an image layout too."""
    described = json.dumps(config(diff_ids, **said)).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["base:1"], "Layers": list(layers)}]
    file.write_bytes(layer({**layers, "config.json": described, "manifest.json": json.dumps(manifest).encode()}))
    return file
