"""Form `folder`: the model's files as its server takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_packaging.artifact import Artifact
from model_packaging.errors import ExportRefused
from model_packaging.forms.exported import Exported
from model_packaging.forms.targets import absolute, check_folder, note_export
from model_packaging.progress import Progress


@dataclass(frozen=True)
class Folder:
    """A plain folder."""


def write_folder(
    artifact: Artifact,
    target: Path,
    *,
    form: str = "folder",
    replace: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Has the folder `target` hold the artifact's files and nothing else; fine where it does already.

    Raises:
        TargetExists: the folder holds something else, and is not to be replaced.
        ExportRefused: it is to be, and holds what no earlier export as `form` left there.
        BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
    """
    done = Exported(str(target), artifact.digest, artifact.size)
    target = absolute(target)
    try:
        check_folder(target, form, replace=replace)
    except ExportRefused:
        if target.is_dir() and artifact.is_in(target, progress):
            return done
        raise
    artifact.unpack(target, progress)
    note_export(target, form, [str(path) for path in artifact.files])
    return done
