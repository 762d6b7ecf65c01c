"""What the catalogue answers with: versions and what is known of them, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from model_packaging.comparison import Subject
from model_packaging.lifecycle import Stage
from model_packaging.manifest import Description

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A model version as a listing shows it."""

    model: str
    version: str
    digest: str
    stage: Stage
    size_bytes: int
    """Of the model's files."""
    created: datetime | None
    """As the artifact says, if it does."""
    registered: datetime
    registered_by: str | None
    """None where a rebuild found it in a store."""
    git_commit: str | None
    git_branch: str | None
    git_dirty: bool | None
    framework: str
    framework_version: str
    licence: str
    author: str | None
    pickled: bool
    """Whether the build found pickled objects, which run code when they are loaded, in its files."""
    labels: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, float]]
    """Data set -> metric -> latest value."""
    stores: tuple[str, ...]
    """Where the artifact is."""


@dataclass(frozen=True, slots=True)
class StageChangeRecord:
    """A step in a version's life."""

    from_stage: Stage | None
    """None where the version was registered."""
    to_stage: Stage
    who: str
    at: datetime
    why: str


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """Somebody's word that a version may be released."""

    who: str
    at: datetime
    why: str
    counts: bool
    """False once the version went back to development."""


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """A metric's value, as an evaluation found it."""

    dataset: str
    metric: str
    value: float
    who: str
    at: datetime
    latest: bool
    """Whether it is of the last evaluation on this data set."""


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A version in an environment's stack, from one revision of the stack on."""

    environment: str
    stack: str
    revision: int | None
    weight: int | None
    """None in a version stack, which splits no traffic."""
    removed: bool
    who: str
    at: datetime
    latest: bool
    """Of this version in this stack."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """All that the catalogue knows of a model version. Histories start with the oldest."""

    summary: VersionSummary
    description: Description
    """What the artifact says about itself."""
    history: tuple[StageChangeRecord, ...]
    approvals: tuple[ApprovalRecord, ...]
    results: tuple[ResultRecord, ...]
    deployments: tuple[DeploymentRecord, ...]
    parents: tuple[str, ...]
    """What it was made from: versions as MODEL:VERSION, or others' models by their own names."""
    children: tuple[str, ...]
    """The versions in the catalogue that were made from it, as MODEL:VERSION."""

    @property
    def deployed(self) -> tuple[DeploymentRecord, ...]:
        """Where it is now."""
        return tuple(each for each in self.deployments if each.latest and not each.removed)

    def subject(self) -> Subject:
        """As one side of a comparison."""
        return Subject(self.description, self.summary.stage, self.summary.size_bytes, self.summary.metrics)


def document(record: VersionSummary | VersionRecord) -> dict[str, Any]:
    """A record as JSON, times in RFC 3339."""
    return _adapter(type(record)).dump_python(record, mode="json")


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    # Once a type: it takes longer than hundreds of records do.
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(kind)
