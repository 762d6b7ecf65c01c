"""Reads the image that an image is built on: from an OCI image layout in a folder, or an archive of one or of
`docker save`. What is read is not trusted: every layer is hashed on the way out.

Source: OCI image specification 1.1; Docker image specification 1.2 (`manifest.json`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from infra.settings.values import Digest
from model_packaging.digests import Target, copy
from model_packaging.forms.base_files import BaseFiles, open_files, opened, read, refuse, verify
from model_packaging.forms.image_output import blob_path
from model_packaging.manifest import BlobDescriptor, Document, parse_document

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

_INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFEST_TYPES = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_LAYER_TYPES = {kind: kind for kind in (LAYER_TYPE, f"{LAYER_TYPE}+gzip", f"{LAYER_TYPE}+zstd")} | {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{LAYER_TYPE}+gzip",
}
"""OCI's type of each."""
_GZIP_MAGIC = b"\x1f\x8b"

D = TypeVar("D", bound=Document)


class _Platform(Document):
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class _Descriptor(BlobDescriptor):
    platform: _Platform | None = None

    @property
    def is_attestation(self) -> bool:
        """BuildKit keeps what it attests about an image beside it, as if it were another."""
        return self.platform is not None and self.platform.os == "unknown"


class _Index(Document):
    manifests: tuple[_Descriptor, ...]


class _Manifest(Document):
    config: BlobDescriptor
    layers: tuple[BlobDescriptor, ...]


class _RootFs(Document):
    diff_ids: tuple[Digest, ...]


class _Settings(Document):
    """What a container runs."""

    env: tuple[str, ...] | None = Field(default=None, alias="Env")
    user: str | None = Field(default=None, alias="User")
    labels: dict[str, str] | None = Field(default=None, alias="Labels")
    ports: dict[str, Any] | None = Field(default=None, alias="ExposedPorts")
    triggers: tuple[str, ...] | None = Field(default=None, alias="OnBuild")


class _History(Document):
    empty_layer: bool = False


class _Config(_Platform):
    rootfs: _RootFs
    config: _Settings | None = None
    history: tuple[_History, ...] | None = None


class _Saved(Document):
    """An image in `docker save`'s manifest.json."""

    config: str = Field(alias="Config")
    layers: tuple[str, ...] = Field(alias="Layers")


@dataclass(frozen=True)
class BaseLayer:
    """A layer as it is kept."""

    media_type: str
    digest: str
    size: int
    path: str
    """In the layout or archive."""


@dataclass(frozen=True)
class BaseImage:
    """An image to build on."""

    files: BaseFiles
    document: Mapping[str, Any]
    """Its config, with all that it says."""
    config: _Config
    layers: tuple[BaseLayer, ...]
    digest: str | None = None
    """Of its manifest, where it has one."""

    @property
    def platform(self) -> str:
        return str(self.config)

    @property
    def settings(self) -> _Settings:
        return self.config.config or _Settings()

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return self.config.rootfs.diff_ids

    def write(self, layer: BaseLayer, target: Target) -> None:
        """Writes a layer as it is kept; verified only when this returns.

        Raises:
            BaseRefused: it is not what its digest stands for.
        """
        with opened(self.files, layer.path, f"layer {layer.digest}") as source:
            found, size = copy(source, target, at_most=layer.size + 1)
        if (found, size) != (layer.digest, layer.size):
            refuse(
                self.files,
                f"layer {layer.digest} does not match its digest: its bytes have {found} ({size} of {layer.size} "
                "declared); fetch the image again",
            )


@contextmanager
def open_base(place: Path, platform: str | None) -> Iterator[BaseImage]:
    """The image that the layout or archive `place` holds, for `platform` where it holds some.

    Raises:
        BaseRefused: it holds no such image, or more than one, or is harmed.
    """
    with open_files(place) as files:
        if (index := read(files, "index.json")) is not None:
            images = list(_oci_images(files, index))
        elif (saved := read(files, "manifest.json")) is not None:
            images = list(_saved_images(files, saved))
        else:
            refuse(files, "there is neither index.json nor manifest.json, so it is no image")
        yield _choose(files, images, platform)


def _oci_images(files: BaseFiles, index: bytes) -> Iterator[BaseImage]:
    """Those that are there, each once: an index may name some for platforms that were not fetched."""
    due, seen = [index], set[str]()
    while due:
        for descriptor in _parse(files, _Index, due.pop(), "an index").manifests:
            if descriptor.digest in seen or descriptor.is_attestation:
                continue
            seen.add(descriptor.digest)
            content = read(files, blob_path(descriptor.digest))
            if content is None:
                continue
            verify(files, "a manifest", descriptor.digest, content)
            if descriptor.media_type in _INDEX_TYPES:
                due.append(content)
            elif descriptor.media_type in _MANIFEST_TYPES:
                yield _oci_image(files, descriptor.digest, content)


def _oci_image(files: BaseFiles, digest: str, content: bytes) -> BaseImage:
    what = f"the manifest {digest}"
    manifest = _parse(files, _Manifest, content, what)
    config = read(files, blob_path(manifest.config.digest))
    if config is None:
        refuse(files, f"the config {manifest.config.digest} is missing; fetch the whole image again")
    verify(files, "the config", manifest.config.digest, config)
    layers: list[BaseLayer] = []
    for layer in manifest.layers:
        kind = _LAYER_TYPES.get(layer.media_type)
        if kind is None:
            refuse(files, f"layer {layer.digest} is of type {layer.media_type!r}; one of {', '.join(_LAYER_TYPES)} is")
        layers.append(BaseLayer(kind, layer.digest, layer.size, blob_path(layer.digest)))
    return _image(files, config, layers, digest)


def _saved_images(files: BaseFiles, manifest: bytes) -> Iterator[BaseImage]:
    try:
        images = TypeAdapter(tuple[_Saved, ...]).validate_json(manifest)
    except ValidationError as error:
        refuse(files, f"manifest.json is not as `docker save` writes it: {error.errors(include_url=False)[0]['msg']}")
    for image in images:
        content = read(files, image.config)
        if content is None:
            refuse(files, f"the config {image.config} is missing; save the image again")
        diff_ids = _parse(files, _Config, content, image.config).rootfs.diff_ids
        yield _image(
            files,
            content,
            [_saved_layer(files, *named) for named in zip(image.layers, diff_ids, strict=False)],
        )


def _saved_layer(files: BaseFiles, path: str, diff_id: str) -> BaseLayer:
    """A layer that no manifest describes: all that is known is the digest of its content."""
    with opened(files, path, f"layer {diff_id}") as source:
        is_packed = source.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        source.seek(0)
        found, size = copy(source, None)
        if is_packed:
            source.seek(0)
            with gzip.open(source) as content:
                try:
                    unpacked, _ = copy(cast("BinaryIO", content), None)
                except (OSError, EOFError) as error:
                    refuse(files, f"layer {path} can't be unpacked: {error}; save the image again")
        else:
            unpacked = found
    if unpacked != diff_id:
        refuse(files, f"layer {path} does not match its digest: {diff_id} is due, and its content has {unpacked}")
    return BaseLayer(f"{LAYER_TYPE}+gzip" if is_packed else LAYER_TYPE, found, size, path)


def _image(files: BaseFiles, content: bytes, layers: list[BaseLayer], digest: str | None = None) -> BaseImage:
    config = _parse(files, _Config, content, "the config")
    if len(config.rootfs.diff_ids) != len(layers):
        refuse(files, f"the config has {len(config.rootfs.diff_ids)} layers, and the manifest {len(layers)}")
    if config.config and config.config.triggers:
        refuse(
            files, "it has ONBUILD instructions, which only a Docker Engine can run; load it there, and give its name"
        )
    return BaseImage(files, json.loads(content), config, tuple(layers), digest)


def _choose(files: BaseFiles, images: list[BaseImage], platform: str | None) -> BaseImage:
    has = ", ".join(sorted({image.platform for image in images})) or "none"
    wanted = [image for image in images if platform is None or f"{image.platform}/".startswith(f"{platform}/")]
    if not wanted:
        asked = f"for {platform}" if platform else "whose layers could be taken over"
        refuse(files, f"it holds no image {asked}; those in it are for: {has}")
    if len(wanted) > 1:
        several = len({image.platform for image in wanted}) > 1
        remedy = "name the platform" if several else "copy the one that is meant into a layout of its own"
        refuse(files, f"it holds {len(wanted)} images, for {has}; {remedy}")
    return wanted[0]


def _parse(files: BaseFiles, kind: type[D], content: bytes, what: str) -> D:
    try:
        return parse_document(kind, content)
    except ValueError as error:
        refuse(files, f"{what} can't be read: {error}")
