"""What an export made, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exported:
    """A form of an artifact, whole and in its place."""

    place: str
    """A path, or the image's name in a Docker Engine."""
    digest: str
    """Of what is there: a file's bytes, an image's manifest (in a Docker Engine: its config); the artifact's for a
    folder."""
    size_bytes: int
    document: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What whoever takes it on needs to know, as JSON would say it."""
