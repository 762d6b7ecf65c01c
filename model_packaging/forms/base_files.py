"""The files of an image as it is kept: in an OCI image layout's folder, or in an uncompressed archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol, cast

from model_packaging.digests import digest_of
from model_packaging.errors import BaseRefused

_LARGEST_DOCUMENT = 16 << 20


class BaseFiles(Protocol):
    """Named as the specifications name them."""

    place: Path

    def open(self, path: str) -> BinaryIO | None:
        """None where there is no such file."""
        ...


@contextmanager
def open_files(place: Path) -> Iterator[BaseFiles]:
    """Raises BaseRefused where `place` is neither a folder nor an archive."""
    if place.is_dir():
        yield _Folder(place)
        return
    with ExitStack() as stack:
        try:
            files = _Archive(place, stack.enter_context(tarfile.open(place, "r:")))
        except FileNotFoundError:
            raise BaseRefused(f"{place} is not there; name an OCI image layout, or an archive of an image") from None
        except (OSError, tarfile.TarError) as error:
            raise BaseRefused(
                f"{place} is no image: it is neither an OCI image layout nor a whole, uncompressed archive of an "
                f"image ({error}); make one with `docker save` or `skopeo copy`"
            ) from None
        yield files


class _Folder:
    def __init__(self, place: Path) -> None:
        self.place = place

    def open(self, path: str) -> BinaryIO | None:
        file = self.place / path
        try:
            # A pipe or a device would keep us waiting.
            return open(file, "rb") if file.is_file() else None
        except OSError as error:
            refuse(self, f"{path} can't be read: {error.strerror}")


class _Archive:
    def __init__(self, place: Path, archive: tarfile.TarFile) -> None:
        self.place = place
        self._archive = archive
        self._members = {member.name.removeprefix("./"): member for member in archive}

    def open(self, path: str) -> BinaryIO | None:
        member = self._members.get(path)
        try:
            # It follows links inside the archive, by which `docker save` of old kept equal layers once.
            return None if member is None else cast("BinaryIO | None", self._archive.extractfile(member))
        except (KeyError, RecursionError):
            return None


@contextmanager
def opened(files: BaseFiles, path: str, what: str) -> Iterator[BinaryIO]:
    """A file that must be there. Raises BaseRefused."""
    source = files.open(path)
    if source is None:
        refuse(files, f"{what} is missing ({path}); fetch the whole image again")
    with source:
        yield source


def read(files: BaseFiles, path: str) -> bytes | None:
    """A document, if it is there. Raises BaseRefused where it is too long for one."""
    source = files.open(path)
    if source is None:
        return None
    with source:
        content = source.read(_LARGEST_DOCUMENT + 1)
    if len(content) > _LARGEST_DOCUMENT:
        refuse(files, f"{path} is longer than any such document ({_LARGEST_DOCUMENT} bytes)")
    return content


def verify(files: BaseFiles, what: str, digest: str, content: bytes) -> None:
    """Raises BaseRefused where a document is not what its digest stands for."""
    found = digest_of(content)
    if found != digest:
        refuse(files, f"{what} does not match its digest {digest}: its bytes have {found}; fetch the image again")


def refuse(files: BaseFiles, problem: str) -> NoReturn:
    raise BaseRefused(f"base {files.place}: {problem}")
