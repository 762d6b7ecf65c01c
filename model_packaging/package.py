"""`package.yaml` as people write it: what the author of a model version knows about it.

Source of signature and samples: Open Inference Protocol V2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, FiniteFloat, JsonValue, StringConstraints, field_validator, model_validator

from infra.settings.values import Bytes, Settings
from infra.settings.version import Server, ServerSettings, mlserver
from model_packaging.errors import FolderRefused

PACKAGE_FILE = "package.yaml"

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


class GpuNeeds(Settings):
    """The GPUs that one replica needs."""

    count: int = Field(default=1, ge=1, strict=True)
    type: Text | None = None
    """The product, as the device plugin labels it: `NVIDIA-H100-80GB-HBM3`."""
    memory: Bytes | None = None
    """Of each."""


class ResourceNeeds(Settings):
    """What one replica needs to serve the model. A version stack's config says what it gets."""

    cpu: float | None = Field(default=None, gt=0)
    """Cores."""
    memory: Bytes | None = None
    gpu: GpuNeeds | None = None


class Package(Settings):
    """The content of `package.yaml`: what the author of a model version knows about it."""

    framework: Framework
    training_data: Text
    """Where the data is that the model was trained on: a URL, a data set's name and version, a path with a digest."""
    licence: Text
    """An SPDX expression such as `Apache-2.0`, or the licence's name."""
    author: Text | None = None
    """Who answers for the model: a person or a team."""
    parents: tuple[Text, ...] = ()
    """What it was made from: a version `MODEL:VERSION` of the catalogue, or another's model by its own name."""
    labels: dict[Text, Text] = {}
    """To find it by in the catalogue."""
    signature: Signature | None = None
    """Left out where requests name no tensors, as in OpenAI's API."""
    evaluation: dict[Text, FiniteFloat] = {}
    """Metric -> its value on data that the model has not seen."""
    samples: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    """Request bodies that the model answers, as its server's protocol takes them."""
    server: Server | None = None
    """What serves it, for a version stack whose config doesn't say."""
    resources: ResourceNeeds | None = None
    allow_pickle: tuple[Text, ...] = ()
    """Files that may hold pickled objects, which run code when they are loaded."""

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

    def serving(self, configured: ServerSettings | None = None) -> ServerSettings:
        """What serves it: what a version stack's config says, or else the package, or else MLServer."""
        return configured or self.server or mlserver()

    @model_validator(mode="after")
    def _samples_fit_the_signature(self) -> Package:
        for number, sample in enumerate(self.samples):
            if self.signature is not None and "inputs" in sample:
                _check_inputs(number, sample["inputs"], self.signature)
        return self


def read_package_file(folder: Path) -> dict[str, Any]:
    """What the folder's `package.yaml` says, yet to be completed and checked (`sources.inspection.complete`).

    Raises:
        FolderRefused: the file is missing, or holds no keys and values in YAML.
    """
    from ruamel.yaml import YAML, YAMLError  # noqa: PLC0415 - costs more than the rest of the package

    file = folder / PACKAGE_FILE
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderRefused(
            f"{folder} has no {PACKAGE_FILE}; describe the model there (framework, training_data, licence, signature, "
            "evaluation, samples), as examples/tumour does: what the model's files say themselves may be left out"
        ) from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise FolderRefused(f"{file} can't be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise FolderRefused(f"{file} holds {str(cast('object', document))[:40]!r}; it should hold keys and values")
    return cast("dict[str, Any]", document)


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
