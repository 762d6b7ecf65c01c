"""Makes an artifact of a model's folder: its files as layers, and a description of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path, PurePosixPath

from infra.settings.loading import parse_value
from infra.settings.values import Name, SemanticVersion
from model_packaging.digests import digest_of
from model_packaging.errors import FolderRefused
from model_packaging.files import ModelFile, changed, list_files
from model_packaging.layers import Compression, Form, add_files
from model_packaging.manifest import Description, GitSource, config_document, layers_of, manifest_document
from model_packaging.memory import Memory
from model_packaging.package import PACKAGE_FILE, read_package_file
from model_packaging.progress import Meter, Progress
from model_packaging.sources.findings import Findings
from model_packaging.sources.inspection import complete, inspect
from model_packaging.sources.pickles import refuse_pickles
from model_packaging.stores import Store

PART_BYTES = 256 << 20
"""Longer files are split at its multiples, so that a part that did not change is stored once. A model of 1 TB has 3,726
parts then: below the 4,200 layers that Amazon ECR takes, with a manifest below the 4 MiB that registries must take."""


@dataclass(frozen=True)
class Built:
    """An artifact in its store."""

    digest: str
    description: Description
    size_bytes: int
    """Of the model's files."""
    created: bool
    """False where the store had it already."""
    read_bytes: int
    """Of the model's files, those that were read: the others were known, and in the store."""


def build_artifact(
    folder: Path,
    model: str,
    version: str,
    store: Store,
    *,
    git: GitSource | None = None,
    found: Findings | None = None,
    created: datetime | None = None,
    compression: Compression = "none",
    memory: Memory | None = None,
    progress: Progress | None = None,
    part_bytes: int = PART_BYTES,
) -> Built:
    """Packages `folder` as `version` of `model` into `store`.

    The same inputs give the same digest: the files' names and bytes, what `package.yaml` says, and the arguments but
    `memory` and `progress`. With zstd they do for one release of libzstd: another may pack the same bytes otherwise.

    Args:
        git: Where the folder comes from (`git.git_source`).
        found: What the place says that the files were fetched from (`sources.mlflow`, `sources.huggingface`); what the
            files say themselves is found here.
        created: Recorded, and part of the digest.
        compression: How layers are stored; a layer that zstd makes no smaller stays as it is.
        memory: Where it knows a file, and the store has its layers, the file is not read. Without one, every file is
            read, and what is harmed in the store is put right.
        progress: Told how many bytes of the files are done.
        part_bytes: Of the longest layer. Another length is another digest.

    Raises:
        SettingsError: `package.yaml` is not what it should be, or model or version can't name a version.
        FolderRefused: the folder holds a link, a device, a name that is not UTF-8, or nothing, or changes meanwhile.
        SourceRefused: a file of a known form is damaged.
        Contradiction: the model's files say something else than `package.yaml`.
        PickleRefused: a file holds pickled objects, and `package.yaml` doesn't allow it by name.
        VersionExists: the store has this version with other bytes.
        DiskFull, NotWritable, StoreDamaged, StoreUnreachable: the store doesn't take it.
    """
    parse_value(Name, model, "model")
    parse_value(SemanticVersion, version, "version")
    listed = list_files(folder)
    files = [file for file in listed if file.path != PurePosixPath(PACKAGE_FILE)]
    written = read_package_file(folder)
    if not files:
        raise FolderRefused(f"{folder} holds no file besides {PACKAGE_FILE}; put the model's files there")
    inspected = inspect(folder, [file.path for file in files])
    findings = inspected.findings if found is None else found | inspected.findings
    package = complete(written, findings, file=str(folder / PACKAGE_FILE))
    refuse_pickles(inspected.pickles, package.allow_pickle)
    description = Description(
        model=model,
        version=version,
        # Where a model was fetched from knows it better than the folder that it is packaged in.
        git=findings.git or git,
        created=None if created is None else created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        package=package,
        pickles=tuple(str(pickle.file) for pickle in inspected.pickles),
    )
    size = sum(file.size for file in files)
    with store.writing():
        added = add_files(store, model, files, Form(compression, part_bytes), memory, Meter(progress, size))
        _check_unchanged(folder, listed)
        config = config_document(description, [part for file in added for part in file.parts])
        config_digest = store.add_blob(model, BytesIO(config), len(config))
        layers = [layer for file in added for layer in layers_of(file.parts)]
        manifest = manifest_document(config_digest, len(config), layers)
        is_new = store.put(model, version, manifest)
    read = sum(one.file.size for one in added if one.was_read)
    return Built(digest_of(manifest), description, size, is_new, read)


def _check_unchanged(folder: Path, listed: list[ModelFile]) -> None:
    """Files that were read at different moments are the model only if none changed meanwhile."""
    now = {file.path: file for file in list_files(folder)}
    for file in listed:
        if now.pop(file.path, None) != file:
            raise changed(folder / file.path)
    for path in now:
        raise FolderRefused(
            f"{folder / path} appeared while the folder was read; build again once nothing writes to it"
        )
