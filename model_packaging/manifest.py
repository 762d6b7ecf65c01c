"""What an artifact says about itself: `package.yaml` as people write it, and the OCI documents made of it.

Sources: OCI image specification 1.1 (manifest, index, descriptor), the CNCF ModelPack specification v1 (media types,
config), Open Inference Protocol V2 (signature and samples). See docs/decisions/artifact.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from infra.settings.values import Digest, Name, SemanticVersion, Settings

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPE = "application/vnd.cncf.model.{kind}.v1.raw"
"""One file as it is: neither archived nor compressed."""

TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"

PACKAGE_FILE = "package.yaml"

_KINDS = {
    "code": {".py", ".sh", ".ipynb", ".js"},
    "doc": {".md", ".rst", ".pdf", ".html"},
    "dataset": {".csv", ".parquet", ".arrow", ".jsonl"},
    "weight.config": {".json", ".yaml", ".yml", ".toml", ".txt", ".pbtxt", ".ini", ".jinja", ".model"},
}
_DOCUMENTS = {"README", "LICENSE", "LICENCE", "NOTICE"}

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES", "BF16",
]  # fmt: skip


def _number_text(value: object) -> object:
    # YAML reads an unquoted 1.7 as a number, and 1.10 as 1.1.
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 - pydantic reports a ValueError as the user's
            f"write the version in quotes: '{value}'; YAML reads it as a number and drops trailing zeros"
        )
    return value


class Framework(Settings):
    """What the model was made with."""

    name: Text
    version: Annotated[Text, BeforeValidator(_number_text)]


class Tensor(Settings):
    """One input or output, in the words of the Open Inference Protocol V2."""

    name: Text
    shape: tuple[Annotated[int, Field(ge=-1, strict=True)], ...]
    """-1 where the length varies, as for the batch."""
    datatype: Datatype

    def accepts(self, shape: Sequence[object]) -> bool:
        return len(shape) == len(self.shape) and all(
            own in (-1, given) for own, given in zip(self.shape, shape, strict=True)
        )


class Signature(Settings):
    """What goes in and what comes out."""

    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)

    @field_validator("inputs", "outputs")
    @classmethod
    def _names_are_unique(cls, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        names = [tensor.name for tensor in tensors]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is listed twice; give each name once")
        return tensors


class Package(Settings):
    """The content of `package.yaml`: what the author of a model version knows about it."""

    framework: Framework
    training_data: Text
    """Where the data is that the model was trained on: a URL, a data set's name and version, a path with a digest."""
    licence: Text
    """An SPDX expression such as `Apache-2.0`, or the licence's name."""
    signature: Signature | None = None
    """Left out where requests name no tensors, as in OpenAI's API."""
    evaluation: dict[Text, FiniteFloat] = {}
    """Metric -> its value on data that the model has not seen."""
    samples: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    """Request bodies that the model answers, as its server's protocol takes them."""

    @field_validator("samples")
    @classmethod
    def _samples_are_json(cls, samples: tuple[dict[str, JsonValue], ...]) -> tuple[dict[str, JsonValue], ...]:
        for number, sample in enumerate(samples):
            try:
                json.dumps(sample, allow_nan=False)
            except ValueError:
                raise ValueError(
                    f"sample {number} holds NaN or an infinity, which JSON can't say; use a finite number"
                ) from None
        return samples

    @model_validator(mode="after")
    def _samples_fit_the_signature(self) -> Package:
        for number, sample in enumerate(self.samples):
            if self.signature is not None and "inputs" in sample:
                _check_inputs(number, sample["inputs"], self.signature)
        return self


def _check_inputs(number: int, inputs: JsonValue, signature: Signature) -> None:
    """Refuses the sample that the model's own signature refuses: whoever pastes it would get an error."""
    known = {tensor.name: tensor for tensor in signature.inputs}
    given: dict[str, Mapping[str, Any]] = {}
    for tensor in inputs if isinstance(inputs, list) else [inputs]:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise ValueError(  # noqa: TRY004 - pydantic reports a ValueError as the user's
                f"sample {number}: each input is {{name, shape, datatype, data}}, but one is {tensor!r:.80}"
            )
        given[cast("str", tensor["name"])] = tensor
    if given.keys() != known.keys():
        raise ValueError(
            f"sample {number} gives inputs {sorted(given)}, the signature asks for {sorted(known)}; make them the same"
        )
    for name, tensor in given.items():
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not known[name].accepts(cast("list[object]", shape)):
            raise ValueError(
                f"sample {number}: input {name!r} has shape {shape}, the signature says {list(known[name].shape)}"
            )
        if tensor.get("datatype") != known[name].datatype:
            raise ValueError(
                f"sample {number}: input {name!r} has datatype {tensor.get('datatype')}, "
                f"the signature says {known[name].datatype}"
            )


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

    git: GitSource | None
    created: str | None = None
    """RFC 3339; given only where the build was told a time (SOURCE_DATE_EPOCH), so that digests repeat."""
    package: Package


class _Document(BaseModel):
    """Base of documents that others may write too: what we don't know is ignored, as the specifications ask."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class BlobDescriptor(_Document):
    """Names a blob by digest and size (OCI)."""

    media_type: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0, strict=True)
    annotations: dict[str, str] = {}
    artifact_type: str | None = Field(default=None, alias="artifactType")


class Manifest(_Document):
    """An OCI image manifest that holds a model."""

    schema_version: Literal[2] = Field(alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    artifact_type: Literal["application/vnd.cncf.model.manifest.v1+json"] = Field(alias="artifactType")
    config: BlobDescriptor
    layers: tuple[BlobDescriptor, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _layers_make_one_folder(self) -> Manifest:
        paths = [check_path(layer.annotations.get(TITLE)) for layer in self.layers]
        for layer in self.layers:
            if not (layer.media_type.startswith("application/vnd.cncf.model.") and layer.media_type.endswith(".raw")):
                raise ValueError(
                    f"layer {layer.annotations[TITLE]!r} is of type {layer.media_type!r}, not a plain file"
                )
        files = set(paths)
        if len(files) < len(paths):
            raise ValueError(f"file {str(max(paths, key=paths.count))!r} is there twice")
        for path in paths:
            clash = files.intersection(path.parents)
            if clash:
                raise ValueError(f"{str(clash.pop())!r} is a file, and the folder of {str(path)!r} too")
        return self

    @property
    def files(self) -> list[tuple[PurePosixPath, BlobDescriptor]]:
        return [(PurePosixPath(layer.annotations[TITLE]), layer) for layer in self.layers]


class ModelConfig(_Document):
    """The config blob: ModelPack's own parts, of which readers of that format live, and beside them our description."""

    lepton: Description


def check_path(title: str | None) -> PurePosixPath:
    """The relative path a layer's title names.

    Raises:
        ValueError: where it could lead out of the folder that the artifact is unpacked into.
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
    return PurePosixPath(title)


def layer_type(path: PurePosixPath) -> str:
    """ModelPack's media type for a file, by what its name says it is; what names don't tell counts as weights."""
    if path.stem.upper() in _DOCUMENTS:
        return LAYER_TYPE.format(kind="doc")
    kinds = (kind for kind, suffixes in _KINDS.items() if path.suffix.lower() in suffixes)
    return LAYER_TYPE.format(kind=next(kinds, "weight"))


def layer(path: PurePosixPath, digest: str, size: int) -> dict[str, Any]:
    return {
        "mediaType": layer_type(path),
        "digest": digest,
        "size": size,
        "annotations": {TITLE: str(path), FILEPATH: str(path)},
    }


def config_document(description: Description, layers: Sequence[Mapping[str, Any]]) -> bytes:
    git = description.git
    descriptor: dict[str, Any] = {
        "name": description.model,
        "version": description.version,
        "licenses": [description.package.licence],
    }
    if git is not None:
        descriptor["revision"] = git.commit
    if description.created is not None:
        descriptor["createdAt"] = description.created
    return canonical(
        {
            "descriptor": descriptor,
            "config": {"format": description.package.framework.name},
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
            "lepton": description.model_dump(mode="json"),
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


def canonical(document: object) -> bytes:
    """The one way this project writes a JSON document, so that equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
