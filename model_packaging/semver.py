"""Semantic versions (https://semver.org): what is one, and which comes first (item 11)."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from infra.settings.values import SemanticVersion

Precedence = tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]

_VERSION = TypeAdapter[str](SemanticVersion)


def is_semantic(version: str) -> bool:
    """Whether it is a version that configs accept: without build metadata, which OCI tags can't hold."""
    try:
        _VERSION.validate_python(version)
    except ValidationError:
        return False
    return True


def precedence(version: str) -> Precedence:
    """A key that sorts semantic versions; anything else comes first."""
    if not is_semantic(version):
        return (-1, 0, 0, 0, ((1, 0, version),))
    core, _, pre = version.partition("-")
    major, minor, patch = (int(part) for part in core.split("."))
    # A pre-release comes before its release.
    return (major, minor, patch, 0 if pre else 1, tuple(_identifier(part) for part in pre.split(".")) if pre else ())


def _identifier(part: str) -> tuple[int, int, str]:
    # Numbers come before words.
    return (0, int(part), "") if part.isdigit() else (1, 0, part)
