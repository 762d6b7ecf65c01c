"""Where an export goes: a file or a folder that appears whole or not at all, and takes the place of something else
only when asked: of a plain file, or of a folder that an earlier export left.

Beside a folder NAME lies `.NAME.lepton-export`, which says what the export put there; in it, it would be served.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from infra.files import salvage_json, write_json
from model_packaging.errors import ExportRefused, TargetExists
from model_packaging.folders import held_folder, remove, sync_folder, writing_to


@contextmanager
def new_file(target: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A file, to be written and read, that is at `target` once the block succeeded.

    Raises:
        TargetExists: something is there, and is not to be replaced.
        ExportRefused: it is no plain file.
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
def new_folder(target: Path, form: str, *, replace: bool) -> Iterator[Path]:
    """A folder that is at `target` once the block succeeded. An empty folder there is no obstacle.

    Raises:
        TargetExists: something is there, and is not to be replaced.
        ExportRefused: it is not what an earlier export of this form left, or holds the current folder.
        DiskFull, NotWritable
    """
    target = absolute(target)
    check_folder(target, form, replace=replace)
    with _beside(target) as partial:
        yield partial
        for inner, _, _ in os.walk(partial):
            sync_folder(Path(inner))
        files = _entries(partial)
        discarded = target.with_name(f".{target.name}.discarded")
        if replace:
            remove(discarded)
            with suppress(FileNotFoundError):
                os.rename(target, discarded)
        # Where it is not to be replaced, and someone filled it meanwhile, this fails.
        os.rename(partial, target)
        remove(discarded)
    note_export(target, form, files)


def absolute(target: Path) -> Path:
    """With a name of its own, whatever it was given as."""
    return Path(os.path.abspath(target))


def check_folder(target: Path, form: str, *, replace: bool) -> None:
    """Raises TargetExists or ExportRefused where a folder of this form may not go to `target`."""
    is_folder = target.is_dir() and not target.is_symlink()
    if not os.path.lexists(target) or (is_folder and not any(target.iterdir())):
        return
    if not replace:
        raise TargetExists(str(target))
    if Path.cwd().is_relative_to(target.resolve()):
        raise ExportRefused(f"{target} holds the current folder, and replacing it would remove that; name another")
    if not is_folder:
        raise ExportRefused(f"{target} is no folder, and the export is one; remove it yourself, or name another place")
    left = _exported_files(target, form)
    foreign = sorted(_entries(target) - left)
    if foreign:
        reason = f"it holds {foreign[0]}, which is of none" if left else f"{_note(target)} of one is not beside it"
        raise ExportRefused(
            f"{target} is not what an earlier export as {form} left: {reason}; look at what it holds, and remove it "
            "yourself, or name another place"
        )


def note_export(target: Path, form: str, files: Collection[str]) -> None:
    """Notes which files an export of a form put into the folder `target`, for a later one to take their place.

    Raises:
        DiskFull, NotWritable
    """
    with writing_to(target):
        write_json(_note(target), {"form": form, "files": sorted(files)})


def _note(target: Path) -> Path:
    return target.with_name(f".{target.name}.lepton-export")


def _exported_files(target: Path, form: str) -> set[str]:
    """What the last export put into a folder, if it was of this form."""
    match salvage_json(_note(target)):
        case {"form": noted, "files": [*files]} if noted == form:
            return set(map(str, files))
        case _:
            return set()


def _entries(folder: Path) -> set[str]:
    """The paths in a folder of all that is no folder itself."""
    entries = set[str]()
    for inner, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(inner, name))]
        entries |= {os.path.relpath(os.path.join(inner, name), folder) for name in (*files, *links)}
    return entries


def _check_file(target: Path, *, replace: bool) -> None:
    if target.is_dir():
        raise ExportRefused(f"{target} is a folder, and the export is a file; name the file to write")
    if not os.path.lexists(target):
        return
    if not replace:
        raise TargetExists(str(target))
    if target.is_symlink() or not target.is_file():
        raise ExportRefused(
            f"{target} is a link or a device, and an export replaces plain files only; remove it yourself, or name "
            "another place"
        )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder on the target's file system."""
    with writing_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(target.with_name(f".{target.name}.partial")) as partial:
            yield partial
        sync_folder(target.parent)
