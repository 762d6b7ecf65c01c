"""Form `folder`: the model's files as its server takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_packaging.artifact import Artifact
from model_packaging.errors import TargetExists
from model_packaging.forms.exported import Exported
from model_packaging.forms.targets import absolute, check_folder
from model_packaging.progress import Progress


@dataclass(frozen=True)
class Folder:
    """A plain folder."""


def write_folder(
    artifact: Artifact, target: Path, *, replace: bool = False, progress: Progress | None = None
) -> Exported:
    """Has the folder `target` hold the artifact's files and nothing else; fine where it does already.

    Raises:
        TargetExists: the folder holds something else, and is not to be replaced.
        BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
    """
    done = Exported(str(target), artifact.digest, artifact.size)
    target = absolute(target)
    try:
        check_folder(target, replace=replace)
    except TargetExists:
        if target.is_dir() and artifact.is_in(target, progress):
            return done
        raise
    artifact.unpack(target, progress)
    return done
