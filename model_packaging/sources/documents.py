"""Reads the small documents that lie beside weights: JSON, YAML, and the front matter of a README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from model_packaging.errors import SourceRefused

_LARGEST = 64 << 20
"""Bytes; the index of a model of a thousand shards has some."""
_LARGEST_YAML = 1 << 20
"""Bytes; what writes it is a person, or MLflow."""


def read_json(file: Path) -> dict[str, Any]:
    """
    Raises:
        SourceRefused: the file can't be read, or holds no JSON object.
    """
    try:
        document = cast("object", json.loads(_read(file, _LARGEST)))
    except (ValueError, RecursionError) as error:
        raise SourceRefused(f"{file} is not JSON: {error}; save or download it again") from None
    return _mapping(document, file)


def read_yaml(file: Path) -> dict[str, Any]:
    """
    Raises:
        SourceRefused: the file can't be read, or holds no YAML mapping.
    """
    return _mapping(_yaml(_read(file, _LARGEST_YAML), file), file)


def read_front_matter(file: Path) -> dict[str, Any]:
    """The YAML between two `---` at a Markdown file's start; empty if there is none.

    Raises:
        SourceRefused: the file can't be read, or what stands there is no YAML mapping.
    """
    lines = _read(file, _LARGEST).decode("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in map(str.rstrip, lines[1:]):
        return {}
    end = [line.rstrip() for line in lines].index("---", 1)
    document = _yaml("\n".join(lines[1:end])[:_LARGEST_YAML], file)
    return {} if document is None else _mapping(document, file)


def _yaml(content: str | bytes, file: Path) -> object:
    from ruamel.yaml import YAML, YAMLError  # noqa: PLC0415 - costs more than the rest of this module

    try:
        return YAML(typ="safe", pure=True).load(content)
    except (YAMLError, ValueError, RecursionError) as error:
        raise SourceRefused(f"{file} is not YAML: {error}; save or download it again") from None


def _read(file: Path, largest: int) -> bytes:
    try:
        with open(file, "rb") as source:
            content = source.read(largest + 1)
    except OSError as error:
        raise SourceRefused(f"{file} can't be read: {error.strerror}") from error
    if len(content) > largest:
        raise SourceRefused(f"{file} has more than {largest >> 20} MiB, which no such document has")
    return content


def _mapping(document: object, file: Path) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise SourceRefused(f"{file} should hold a mapping, and holds {str(document)[:40]!r}")
    return cast("dict[str, Any]", document)
