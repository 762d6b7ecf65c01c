"""Exports an artifact: one entry point for every form."""

from __future__ import annotations

from pathlib import Path

from model_packaging.artifact import Artifact
from model_packaging.errors import ExportRefused
from model_packaging.forms.exported import Exported
from model_packaging.forms.folder import Folder, write_folder
from model_packaging.forms.image import Image
from model_packaging.forms.sagemaker import SageMaker, write_archive, write_prefix
from model_packaging.progress import Progress

Form = Folder | SageMaker | Image


def export(
    artifact: Artifact,
    form: Form,
    target: Path | None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Makes a form of an artifact, every byte of which is verified on the way.

    It appears whole or not at all: whoever is killed, or finds the disk full, leaves what was at `target` before.

    Args:
        target: Where it goes: a folder, or a file for SageMaker's archive and for an image whose path ends in `.tar`.
            None for an image that a Docker Engine builds, as the engine keeps it.
        replace: Whether it may take the place of a plain file, or of a folder that an earlier export of the form left.
        progress: Told how many bytes are done.

    Raises:
        ExportRefused: the artifact can't take this form, or the target doesn't suit it.
        TargetExists: something else is there.
        BaseRefused: the image to build on can't be used.
        DockerFailed: no Docker Engine answers, or it refuses.
        BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable: the store has not got every byte.
        DiskFull, NotWritable: the target can't be written.
    """
    if isinstance(form, Image) and isinstance(form.base, str):
        if target is not None:
            raise ExportRefused(
                f"given {target}: an image on {form.base!r} is built and kept by the Docker Engine; leave the target "
                "out, or give the base as an OCI image layout or an archive to have the image written there"
            )
        from model_packaging.forms.docker_image import build_image  # noqa: PLC0415 - its client is slow to import

        return build_image(artifact, form, form.base, progress)
    if target is None:
        raise ExportRefused("no target is given; name the file or folder that the export is to be")
    match form:
        case Folder():
            return write_folder(artifact, target, replace=replace, progress=progress)
        case SageMaker(compressed=True):
            return write_archive(artifact, form, target, replace=replace, progress=progress)
        case SageMaker():
            return write_prefix(artifact, form, target, replace=replace, progress=progress)
        case Image(base):
            from model_packaging.forms.oci_image import write_image  # noqa: PLC0415 - few exports need it

            return write_image(artifact, form, Path(base), target, replace=replace, progress=progress)
