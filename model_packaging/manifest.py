"""The OCI documents of an artifact: what is written about a model version, and how it is read back.

Sources: OCI image specification 1.1 (manifest, index, descriptor), the CNCF ModelPack specification v1 (media types,
config). See docs/decisions/artifact.md.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.settings.values import Digest, Name, SemanticVersion, Settings
from model_packaging.package import Package

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"

TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"

FILE = "lepton.file"
"""Of which file a layer is a part. Its own title is another: who doesn't know us gets parts, not a short file."""
OFFSET = "lepton.file.offset"
SIZE = "lepton.file.size"
CONTENT_SIZE = "lepton.content.size"
"""Bytes of a compressed layer's content."""

_KINDS = {
    "code": {".py", ".sh", ".ipynb", ".js"},
    "doc": {".md", ".rst", ".pdf", ".html"},
    "dataset": {".csv", ".parquet", ".arrow", ".jsonl"},
    "weight.config": {".json", ".yaml", ".yml", ".toml", ".txt", ".pbtxt", ".ini", ".jinja", ".model"},
}
_DOCUMENTS = {"README", "LICENSE", "LICENCE", "NOTICE"}
_LAYER_TYPE = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.raw(\+zstd)?")
_DEEPEST = 128
_NUMBER = re.compile(r"[0-9]{1,19}")
_LARGEST = 2**63 - 1
"""Bytes, as OCI's sizes are 64-bit integers."""


class GitSource(Settings):
    """The state of the repository that a model version comes from."""

    commit: str = Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")
    branch: str | None
    """None on a detached head."""
    dirty: bool
    """Whether the tree held changes, or files that Git does not know."""


class VersionName(Settings):
    """Names a model version."""

    model: Name
    version: SemanticVersion


class Description(VersionName):
    """Everything an artifact says about its model version."""

    git: GitSource | None = None
    created: str | None = None
    """RFC 3339; given only where the build was told a time (SOURCE_DATE_EPOCH), so that digests repeat."""
    package: Package
    pickles: tuple[str, ...] = ()
    """Files in which the build found pickled objects: to load them is to run what they say."""


class Document(BaseModel):
    """Base of documents that others may write too: what we don't know is ignored, as the specifications ask."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


D = TypeVar("D", bound=Document)


class BlobDescriptor(Document):
    """Names a blob by digest and size (OCI)."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0, le=_LARGEST, strict=True)
    annotations: dict[str, str] = {}
    artifact_type: str | None = Field(default=None, alias="artifactType")


@dataclass(frozen=True)
class Part:
    """A stretch of a file, and the layer that holds it."""

    file: PurePosixPath
    offset: int
    """Bytes before it in the file."""
    length: int
    """Bytes of the file that it holds."""
    digest: str
    """Of the layer."""
    stored: int
    """Bytes of the layer."""
    compressed: bool
    """With zstd (RFC 8878)."""
    content: str
    """Digest of the bytes that it holds: the layer's own, unless compressed."""

    @property
    def name(self) -> str:
        return f"file {str(self.file)!r}" if self.offset == 0 else f"file {str(self.file)!r} from byte {self.offset}"


class ImageManifest(Document):
    """An OCI image manifest of any kind: a model's, or one that is attached to a model's."""

    schema_version: Literal[2] = Field(alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: BlobDescriptor
    layers: tuple[BlobDescriptor, ...] = Field(min_length=1)

    @property
    def blobs(self) -> tuple[BlobDescriptor, ...]:
        return self.config, *self.layers


class Manifest(ImageManifest):
    """An OCI image manifest that holds a model."""

    artifact_type: Literal["application/vnd.cncf.model.manifest.v1+json"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        alias="artifactType"
    )


class ModelFiles(Document):
    """ModelPack's list of the layers' contents."""

    diff_ids: tuple[Digest, ...] = Field(alias="diffIds")


class ModelConfig(Document):
    """The config blob: ModelPack's own parts, of which readers of that format live, and beside them our description."""

    modelfs: ModelFiles
    lepton: Description


Files = Mapping[PurePosixPath, tuple[Part, ...]]
"""An artifact's files by path, each with its parts in order."""


def read_files(manifest: Manifest, config: ModelConfig) -> Files:
    """The files that the layers make.

    Raises:
        ValueError: the layers don't make one folder of whole files.
    """
    contents = config.modelfs.diff_ids
    if len(contents) != len(manifest.layers):
        raise ValueError(f"the config names {len(contents)} layers, the manifest has {len(manifest.layers)}")
    parts = [_part(layer, content) for layer, content in zip(manifest.layers, contents, strict=True)]
    totals = [_number(layer, SIZE, part.length) for layer, part in zip(manifest.layers, parts, strict=True)]
    files: dict[PurePosixPath, tuple[Part, ...]] = {}
    for path, group in itertools.groupby(zip(parts, totals, strict=True), key=lambda pair: pair[0].file):
        if path in files:
            raise ValueError(f"file {str(path)!r} is there twice")
        files[path] = _whole(path, list(group))
    for path in files:
        folder = next((parent for parent in path.parents if parent in files), None)
        if folder is not None:
            raise ValueError(f"{str(folder)!r} is a file, and the folder of {str(path)!r} too")
    return files


def _part(layer: BlobDescriptor, content: str) -> Part:
    title = str(check_path(layer.annotations.get(TITLE)))
    kind = _LAYER_TYPE.fullmatch(layer.media_type)
    if kind is None:
        raise ValueError(f"layer {title!r} is of type {layer.media_type!r}, not a plain file")
    compressed = kind[1] is not None
    if not compressed and content != layer.digest:
        raise ValueError(f"layer {title!r} is {layer.digest}, and the config says {content}")
    return Part(
        file=check_path(layer.annotations.get(FILE, title)),
        offset=_number(layer, OFFSET, 0),
        length=_number(layer, CONTENT_SIZE, None) if compressed else layer.size,
        digest=layer.digest,
        stored=layer.size,
        compressed=compressed,
        content=content,
    )


def _number(layer: BlobDescriptor, annotation: str, default: int | None) -> int:
    given = layer.annotations.get(annotation)
    if given is None and default is not None:
        return default
    if given is None or not _NUMBER.fullmatch(given) or int(given) > _LARGEST:
        raise ValueError(f"layer {layer.digest}: annotation {annotation} should be a number of bytes, is {given!r}")
    return int(given)


def _whole(path: PurePosixPath, group: list[tuple[Part, int]]) -> tuple[Part, ...]:
    end = 0
    for part, total in group:
        if part.offset != end or total != group[0][1]:
            raise ValueError(
                f"file {str(path)!r}: a part starts at byte {part.offset} of {total}, where byte {end} of "
                f"{group[0][1]} is due"
            )
        end += part.length
    if end != group[0][1]:
        raise ValueError(f"file {str(path)!r}: its parts end at byte {end} of {group[0][1]}")
    return tuple(part for part, _ in group)


def check_path(title: str | None) -> PurePosixPath:
    """The relative path a layer's title names.

    Raises:
        ValueError: where it could lead out of the folder that the artifact is unpacked into, or is not UTF-8, or
            too deep for programs that walk folders.
    """
    if not title:
        raise ValueError(f"a layer has no file name; its annotation {TITLE} should hold one")
    if title.startswith("/") or "\0" in title or any(part in ("", ".", "..") for part in title.split("/")):
        raise ValueError(
            f"file name {title!r} could lead out of the model's folder; it should be a plain relative path"
        )
    try:
        title.encode()
    except UnicodeEncodeError:
        raise ValueError(f"file name {title!r} is not UTF-8") from None
    if title.count("/") > _DEEPEST:
        raise ValueError(f"file name '{title[:40]}…' is more than {_DEEPEST} folders deep; flatten them")
    return PurePosixPath(title)


def layer_type(path: PurePosixPath, *, compressed: bool = False) -> str:
    """ModelPack's media type for a file, by what its name says it is; what names don't tell counts as weights."""
    kinds = (kind for kind, suffixes in _KINDS.items() if path.suffix.lower() in suffixes)
    kind = "doc" if path.stem.upper() in _DOCUMENTS else next(kinds, "weight")
    return f"application/vnd.cncf.model.{kind}.v1.raw{'+zstd' if compressed else ''}"


def layers_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The layers of one file, given its parts in order."""
    total = sum(part.length for part in parts)
    return [_layer(part, number, len(parts), total) for number, part in enumerate(parts)]


def _layer(part: Part, number: int, parts: int, total: int) -> dict[str, Any]:
    title = str(part.file)
    annotations: dict[str, str] = {}
    if parts > 1:
        annotations = {FILE: title, OFFSET: str(part.offset), SIZE: str(total)}
        title = f"{title}.part-{number:05}"
    if part.compressed:
        annotations[CONTENT_SIZE] = str(part.length)
    return {
        "mediaType": layer_type(part.file, compressed=part.compressed),
        "digest": part.digest,
        "size": part.stored,
        "annotations": {TITLE: title, FILEPATH: title, **annotations},
    }


def config_document(description: Description, parts: Sequence[Part]) -> bytes:
    """The config blob, given all parts in the order of their layers."""
    git = description.git
    descriptor: dict[str, Any] = {
        "name": description.model,
        "version": description.version,
        "licenses": [description.package.licence],
    }
    if description.package.author is not None:
        descriptor["authors"] = [description.package.author]
    if git is not None:
        descriptor["revision"] = git.commit
    if description.created is not None:
        descriptor["createdAt"] = description.created
    return canonical(
        {
            "descriptor": descriptor,
            "config": {"format": description.package.framework.name},
            "modelfs": {"type": "layers", "diffIds": [part.content for part in parts]},
            # What is left out has no say in the digest: a key that comes later changes no artifact without it.
            "lepton": description.model_dump(mode="json", exclude_defaults=True),
        }
    )


def manifest_document(config_digest: str, config_size: int, layers: Sequence[Mapping[str, Any]]) -> bytes:
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config_size},
            "layers": list(layers),
        }
    )


def parse_document(kind: type[D], content: bytes) -> D:
    """Reads a document of a kind such as `Manifest`.

    Raises:
        ValueError: what is wrong with it, and where in it.
    """
    try:
        return kind.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None


def canonical(document: object) -> bytes:
    """The one way this project writes a JSON document, so that equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
