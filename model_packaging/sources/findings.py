"""What the files of a model say about it, so that its author needn't."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from model_packaging.manifest import GitSource
from model_packaging.package import Signature


@dataclass(frozen=True)
class FoundFramework:
    """What a model was made with, as far as its files say."""

    name: str
    version: str | None
    place: str
    """The file that says so."""
    stored: bool = False
    """Whether `version` is that of the library that wrote the weights: to say another is a mistake."""


@dataclass(frozen=True)
class FoundSignature:
    """Inputs and outputs that a file declares."""

    signature: Signature
    place: str
    """The file that says so."""
    binding: bool
    """Whether it is what a server answers to: not where the model's own code stands before the graph."""


@dataclass(frozen=True)
class Weights:
    """What tensors there are."""

    parameters: int
    """Elements of all tensors, as stored: quantised weights may pack several into one."""
    size_bytes: int
    dtypes: Mapping[str, int]
    """Data type, as safetensors names it -> elements of it."""

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.parameters + other.parameters,
            self.size_bytes + other.size_bytes,
            dict(Counter(self.dtypes) + Counter(other.dtypes)),
        )


@dataclass(frozen=True)
class Findings:
    """What was found in a model's files, or in the place that they come from. Nothing of it was asked of anyone."""

    framework: FoundFramework | None = None
    signature: FoundSignature | None = None
    licence: str | None = None
    """An SPDX expression where it is known as one."""
    training_data: str | None = None
    parents: tuple[str, ...] = ()
    """What the model was made from."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    evaluation: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metric -> value, from the training run."""
    git: GitSource | None = None
    """The commit that the model comes from, where its source knows better than the folder that it is built in."""
    architecture: str | None = None
    """The class that runs it, such as `LlamaForCausalLM`."""
    weights: Weights | None = None
    remarks: tuple[str, ...] = ()
    """What was seen and not used, and why."""

    def __or__(self, other: Findings) -> Findings:
        """Both; where both say something, the left one counts."""
        return replace(
            self,
            framework=self.framework or other.framework,
            signature=self.signature or other.signature,
            licence=self.licence or other.licence,
            training_data=self.training_data or other.training_data,
            parents=self.parents or other.parents,
            labels={**other.labels, **self.labels},
            evaluation={**other.evaluation, **self.evaluation},
            git=self.git or other.git,
            architecture=self.architecture or other.architecture,
            weights=self.weights or other.weights,
            remarks=self.remarks + other.remarks,
        )
