"""Form `sagemaker`: what Amazon SageMaker loads, as one `model.tar.gz` or as the objects below an S3 prefix.

SageMaker has either in `/opt/ml/model` before it starts the container. Source: the SageMaker API's S3ModelDataSource,
and the Amazon S3 user guide on names of buckets and objects.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from model_packaging.artifact import Artifact
from model_packaging.errors import ExportRefused
from model_packaging.forms.exported import Exported
from model_packaging.forms.folder import write_folder
from model_packaging.forms.tar import HashingTarget
from model_packaging.forms.tar import write_archive as write_tar
from model_packaging.forms.targets import new_file
from model_packaging.progress import Meter, Progress

ARCHIVE = "model.tar.gz"

_LONGEST_NAME = 255
_LONGEST_KEY = 1024
_LONGEST_URI = 1024
_URI = re.compile(r"s3://(?P<bucket>[^/]+)(/(?P<prefix>.*))?", re.DOTALL)
_BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

_GZIP_LEVEL = 1
"""Weights hardly compress: more would take minutes for nothing."""


@dataclass(frozen=True)
class SageMaker:
    """What SageMaker loads."""

    compressed: bool = True
    """One `model.tar.gz`; otherwise a folder whose files are to be the objects below a prefix."""
    uri: str | None = None
    """The prefix that it will be uploaded below: `s3://BUCKET/PREFIX/`. Without it, no ModelDataSource can be said."""


def write_archive(
    artifact: Artifact, form: SageMaker, target: Path, *, replace: bool = False, progress: Progress | None = None
) -> Exported:
    """Writes the file `target`, a gzip-compressed tar of the artifact's files.

    The tar's bytes depend on the files alone; those of the gzip stream around it on the release of zlib too.

    Raises:
        ExportRefused: SageMaker would refuse a name.
        TargetExists, BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
    """
    prefix = _prefix(form.uri)
    check_names(artifact.files, prefix)
    meter = Meter(progress, artifact.size)
    with new_file(target, replace=replace) as file:
        written = HashingTarget(file)
        # No name and no time: they would be part of the file.
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, cast("Any", written), mtime=0) as packed:
            write_tar(artifact, artifact.files, PurePosixPath(), packed, meter)
    return Exported(str(target), written.digest, written.size, model_data_source(form))


def write_prefix(
    artifact: Artifact, form: SageMaker, target: Path, *, replace: bool = False, progress: Progress | None = None
) -> Exported:
    """Has the folder `target` hold what is to be uploaded below a prefix, each file as the object of its path.

    `document["objects"]` lists them: `path` in the folder, `key` in the bucket, `size_bytes`.

    Raises:
        ExportRefused: SageMaker or S3 would refuse a name.
        TargetExists, BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
    """
    prefix = _prefix(form.uri)
    check_names(artifact.files, prefix)
    done = write_folder(artifact, target, form="sagemaker", replace=replace, progress=progress)
    objects = [
        {"path": str(path), "key": f"{prefix}{path}", "size_bytes": sum(part.length for part in parts)}
        for path, parts in artifact.files.items()
    ]
    return Exported(done.place, done.digest, done.size_bytes, {**model_data_source(form), "objects": objects})


def model_data_source(form: SageMaker) -> dict[str, Any]:
    """The `ModelDataSource` of a SageMaker container definition, for what was uploaded below `form.uri`; else nothing.

    Raises:
        ExportRefused: the URI is none of S3.
    """
    if form.uri is None:
        return {}
    prefix = _prefix(form.uri)
    bucket = form.uri.split("/")[2]
    uri = f"s3://{bucket}/{prefix}{ARCHIVE if form.compressed else ''}"
    if len(uri) > _LONGEST_URI:
        raise ExportRefused(f"{uri!r:.80}… has {len(uri)} characters, and SageMaker takes {_LONGEST_URI}; shorten it")
    source = {
        "S3Uri": uri,
        "S3DataType": "S3Object" if form.compressed else "S3Prefix",
        "CompressionType": "Gzip" if form.compressed else "None",
    }
    return {"ModelDataSource": {"S3DataSource": source}}


def check_names(paths: Iterable[PurePosixPath], prefix: str = "") -> None:
    """Refuses names of files that SageMaker or S3 would.

    Raises:
        ExportRefused: naming the file.
    """
    for path in paths:
        for name in path.parts:
            if not name.strip():
                raise ExportRefused(f"file {str(path)!r}: SageMaker refuses the blank name {name!r}; rename it")
            if len(name.encode()) > _LONGEST_NAME:
                raise ExportRefused(
                    f"file {str(path)!r}: {name!r:.40}… has {len(name.encode())} bytes, and SageMaker takes names of "
                    f"{_LONGEST_NAME}; rename it"
                )
        key = f"{prefix}{path}"
        if len(key.encode()) > _LONGEST_KEY:
            raise ExportRefused(
                f"file {str(path)!r}: its object's key {key!r:.40}… would have {len(key.encode())} bytes, and S3 takes "
                f"{_LONGEST_KEY}; shorten the path or the prefix"
            )


def _prefix(uri: str | None) -> str:
    """The keys' beginning: empty, or with a slash at its end, as SageMaker wants prefixes to have."""
    if uri is None:
        return ""
    given = _URI.fullmatch(uri)
    if given is None or not _BUCKET.fullmatch(given["bucket"]):
        raise ExportRefused(
            f"given {uri!r}: a place in S3 is s3://BUCKET/PREFIX/, and a bucket's name has 3 to 63 lower-case letters, "
            "digits, dots and hyphens"
        )
    prefix = given["prefix"] or ""
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
