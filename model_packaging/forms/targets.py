"""Where an export goes: a file or a folder that appears whole or not at all, and never in place of something else
unless asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_packaging.errors import ExportRefused, TargetExists
from model_packaging.folders import held_folder, remove, sync_folder, writing_to


@contextmanager
def new_file(target: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A file, to be written and read, that is at `target` once the block succeeded.

    Raises:
        TargetExists: something is there, and is not to be replaced.
        ExportRefused: it is a folder.
        DiskFull, NotWritable
    """
    target = absolute(target)
    _check_file(target, replace=replace)
    with _beside(target) as partial:
        with open(partial / target.name, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check_file(target, replace=replace)
        os.rename(partial / target.name, target)


@contextmanager
def new_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """A folder that is at `target` once the block succeeded. An empty folder there is no obstacle.

    Raises:
        TargetExists: something is there, and is not to be replaced.
        ExportRefused: it holds the current folder.
        DiskFull, NotWritable
    """
    target = absolute(target)
    check_folder(target, replace=replace)
    with _beside(target) as partial:
        yield partial
        for inner, _, _ in os.walk(partial):
            sync_folder(Path(inner))
        discarded = target.with_name(f".{target.name}.discarded")
        if replace:
            remove(discarded)
            with suppress(FileNotFoundError):
                os.rename(target, discarded)
        # Where it is not to be replaced, and someone filled it meanwhile, this fails.
        os.rename(partial, target)
        remove(discarded)


def absolute(target: Path) -> Path:
    """With a name of its own, whatever it was given as."""
    return Path(os.path.abspath(target))


def check_folder(target: Path, *, replace: bool) -> None:
    """Raises TargetExists or ExportRefused where a folder may not go to `target`."""
    if not os.path.lexists(target) or (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        return
    if not replace:
        raise TargetExists(str(target))
    if Path.cwd().is_relative_to(target.resolve()):
        raise ExportRefused(f"{target} holds the current folder, and replacing it would remove that; name another")


def _check_file(target: Path, *, replace: bool) -> None:
    if target.is_dir():
        raise ExportRefused(f"{target} is a folder, and the export is a file; name the file to write")
    if os.path.lexists(target) and not replace:
        raise TargetExists(str(target))


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder on the target's file system."""
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(target.with_name(f".{target.name}.partial")) as partial:
            yield partial
        sync_folder(target.parent)
