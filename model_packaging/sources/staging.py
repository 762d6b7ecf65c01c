"""Brings the files of a source into a folder of their own, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from model_packaging.errors import SourceRefused


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` after the block, and vanishes if the block fails.

    Raises:
        SourceRefused: `folder` holds something.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise SourceRefused(f"{folder} is there and not an empty folder; name a new one for the model's files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        try:
            yield content
            # Made by tempfile for its owner alone; the folder is as open as any that its owner makes.
            os.rename(content, folder)
        except OSError as error:
            raise SourceRefused(f"{folder} can't be filled: {error.strerror or error}") from error


def put(files: Mapping[PurePosixPath, Path], folder: Path, *, link: bool) -> None:
    """Puts `files`, given by their path in the folder, into `folder`.

    With `link` they are hard links where the file system allows that: the folder costs no space, and is to be read
    only, as a write to a file of it would change the source.
    """
    for path, source in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            try:
                os.link(source, target)
                continue
            except OSError:
                # Another file system, or one without links.
                target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
