"""Makes an artifact of a model's folder: one layer a file, and a description of the whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from infra.settings.loading import parse_settings
from model_packaging.errors import FolderRefused
from model_packaging.manifest import (
    PACKAGE_FILE,
    Description,
    GitSource,
    Package,
    config_document,
    layer,
    manifest_document,
)
from model_packaging.store import Store


@dataclass(frozen=True)
class Built:
    """An artifact in its store."""

    digest: str
    description: Description
    size_bytes: int
    """Of the model's files."""
    created: bool
    """False where the store had it already."""


def build_artifact(
    folder: Path,
    model: str,
    version: str,
    store: Store,
    *,
    git: GitSource | None = None,
    created: datetime | None = None,
) -> Built:
    """Packages `folder` as `version` of `model` into `store`; the same inputs give the same digest.

    Raises:
        SettingsError: `package.yaml` is not what it should be.
        FolderRefused: the folder holds a link, a device, a name that is not UTF-8, or nothing.
        VersionExists: the store has this version with other bytes.
    """
    description = Description(
        model=model,
        version=version,
        git=git,
        created=None if created is None else created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        package=read_package(folder),
    )
    paths = sorted(_files(folder, PurePosixPath()), key=str)
    if not paths:
        raise FolderRefused(f"{folder} holds no file besides {PACKAGE_FILE}; put the model's files there")
    layers: list[dict[str, Any]] = []
    for path in paths:
        digest, size = store.add_file(folder / path)
        layers.append(layer(path, digest, size))
    config = config_document(description, layers)
    config_digest = store.add_bytes(config)
    manifest = manifest_document(config_digest, len(config), layers)
    digest, is_new = store.put(manifest, model, version)
    return Built(digest, description, sum(layer["size"] for layer in layers), is_new)


def read_package(folder: Path) -> Package:
    """Reads the folder's `package.yaml`.

    Raises:
        SettingsError: with file, key, what was given and what would be right.
        FolderRefused: the file is missing, or is not YAML.
    """
    from ruamel.yaml import YAML, YAMLError  # noqa: PLC0415 - costs more than the rest of the package

    file = folder / PACKAGE_FILE
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderRefused(
            f"{folder} has no {PACKAGE_FILE}; describe the model there (framework, training_data, licence, signature, "
            "evaluation, samples), as examples/tumour does"
        ) from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise FolderRefused(f"{file} can't be read as YAML: {error}") from error
    return parse_settings(Package, document, file=str(file), key="package")


def _files(folder: Path, relative: PurePosixPath) -> Iterator[PurePosixPath]:
    with os.scandir(folder / relative) as entries:
        for entry in entries:
            path = relative / entry.name
            try:
                str(path).encode("utf-8")
            except UnicodeEncodeError:
                raise FolderRefused(
                    f"{folder}: the name of {os.fsencode(path)!r} is not UTF-8; rename the file"
                ) from None
            kind = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                yield from _files(folder, path)
            elif not stat.S_ISREG(kind):
                what = "a symbolic link" if stat.S_ISLNK(kind) else "neither a file nor a folder"
                raise FolderRefused(
                    f"{folder / path} is {what}; an artifact holds plain files only: copy it or take it out"
                )
            elif path != PurePosixPath(PACKAGE_FILE):
                yield path
