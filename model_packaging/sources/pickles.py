"""Finds the files that run code when they are loaded, by their content, and refuses those not allowed by name."""

from __future__ import annotations

import ast
import io
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

from model_packaging.errors import FolderRefused, PickleRefused
from model_packaging.sources.archives import Member, is_tar_start, is_zip_start, tar_members, zip_members
from model_packaging.sources.opcodes import Walk, walk
from model_packaging.sources.streams import (
    Budget,
    BudgetSpent,
    Undecodable,
    compression_of,
    decoded,
    window,
)

_DEEPEST = 4
"""Archives and compressed streams inside each other."""
_NUMPY = b"\x93NUMPY"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LZ4 = (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18")
_OLD_JOBLIB = re.compile(rb"ZF0x[0-9a-fA-F]{1,16} *")
_OLD_JOBLIB_HEADER = 21
_LONGEST_ARRAY_HEADER = 1 << 16
_TORCH_MEMBER = re.compile(r", in member '([^']*/)?data\.pkl'")
_KERAS_LAMBDA = re.compile(rb'"class_name"\s*:\s*"Lambda"')
_LONGEST_KERAS_CONFIG = 8 << 20
_DANGEROUS = re.compile(
    r"(os|nt|posix|subprocess|sys|shutil|socket|pty|runpy|importlib|ctypes|webbrowser|asyncio|multiprocessing"
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|getattr|open|__import__))(\.|$)"
)
_NAMED_IMPORTS = 5


@dataclass(frozen=True)
class PickleFound:
    """A file that runs code when it is loaded, or may."""

    file: PurePosixPath
    form: str
    """What it is, as in `a pickle (protocol 4), compressed with zlib`."""
    imports: tuple[str, ...]
    """`module.name` of what loading it would import, as far as it was followed; sorted."""
    complete: bool
    """Whether all of the file was followed."""
    sklearn_version: str | None
    """Of the scikit-learn that wrote it."""

    @property
    def dangerous_imports(self) -> tuple[str, ...]:
        """Those that no model needs, and that attacks are made of. That there are none proves nothing."""
        return tuple(name for name in self.imports if _DANGEROUS.match(name))

    def __str__(self) -> str:
        names = [ascii(name)[1:-1] for name in (*self.dangerous_imports, *self.imports)]
        first = list(dict.fromkeys(names))
        more = f" and {len(first) - _NAMED_IMPORTS} more" if len(first) > _NAMED_IMPORTS else ""
        imports = f", which imports {', '.join(first[:_NAMED_IMPORTS])}{more}" if first else ""
        return f"{self.file} is {self.form}{imports}"


def find_pickles(folder: Path, files: Iterable[PurePosixPath]) -> list[PickleFound]:
    """Which of the folder's `files` are pickles, or hold any.

    Nothing is loaded, links are not followed, and each file costs bounded time and memory. What can't be looked into
    and may hold a pickle counts as one.

    Raises:
        FolderRefused: a file can't be read.
    """
    found = (_look_into(folder, file) for file in files)
    return [pickle for pickle in found if pickle is not None]


def refuse_pickles(found: Collection[PickleFound], allowed: Collection[str]) -> None:
    """Refuses what is not allowed by its path in the folder, and allowances that nothing needs.

    Raises:
        PickleRefused: naming each file, what it is, and how to allow it.
    """
    holders = {str(pickle.file) for pickle in found}
    refused = [pickle for pickle in found if str(pickle.file) not in allowed]
    if refused:
        names = sorted({*holders, *allowed} & holders)
        raise PickleRefused(
            "; ".join(map(str, refused))
            + ": loading it runs whatever code it holds. Save the weights as safetensors or ONNX; or, if you trust "
            f"where it comes from, allow it by name in package.yaml: allow_pickle: [{', '.join(names)}]"
        )
    unneeded = sorted(set(allowed) - holders)
    if unneeded:
        holding = f"those that are: {', '.join(sorted(holders))}" if holders else "no file here is"
        raise PickleRefused(
            f"package.yaml: allow_pickle names {', '.join(unneeded)}, which is no pickle of this folder ({holding}); "
            "take the name out, so that no later file slips in under it"
        )


def _look_into(folder: Path, file: PurePosixPath) -> PickleFound | None:
    try:
        descriptor = os.open(folder / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            look = _Look(Budget())
            look.whole(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FolderRefused(f"{folder / file} can't be read: {error.strerror}") from error
    if look.form is None:
        return None
    return PickleFound(file, look.form, tuple(sorted(look.imports)), look.complete, look.sklearn_version)


@dataclass
class _Look:
    """What was seen in one file so far."""

    budget: Budget
    form: str | None = None
    """Of the first that was found."""
    imports: set[str] = field(default_factory=set[str])
    complete: bool = True
    sklearn_version: str | None = None

    def whole(self, descriptor: int, size: int) -> None:
        try:
            self._stream(window(descriptor, 0, size, self.budget), "", 0)
        except BudgetSpent:
            self._unread("an archive too large to look into", "")

    def _stream(self, stream: io.BufferedReader, context: str, depth: int) -> None:
        head = stream.peek(512)
        method = compression_of(head)
        if method is not None:
            self._compressed(stream, method, context, depth)
        elif head.startswith(_LZ4):
            self._unread("a file compressed with LZ4, which can't be looked into", context)
        elif _OLD_JOBLIB.match(head):
            stream.read(_OLD_JOBLIB_HEADER)
            self._compressed(stream, "zlib", context, depth)
        elif is_tar_start(head):
            self._members(tar_members(stream, self.budget), f"{context}, in a tar archive", depth)
        elif head.startswith(_NUMPY):
            self._numpy(stream, context)
        elif head.startswith(_HDF5):
            self._keras(stream, context)
        elif not stream.seekable():
            self._forward_only(stream, head, context)
        if stream.seekable():
            self._ends_as_zip(stream, head, context, depth)
        if stream.seekable() and self.form is None:
            # Bytes can be of two forms at once, and whoever loads them chooses which.
            stream.seek(0)
            self._walk(stream, "", context)

    def _forward_only(self, stream: io.BufferedReader, head: bytes, context: str) -> None:
        if is_zip_start(head):
            self._unread("a zip archive inside a compressed file, which can't be looked into", context)
        else:
            self._walk(stream, "", context)

    def _ends_as_zip(self, stream: io.BufferedReader, head: bytes, context: str, depth: int) -> None:
        """A zip archive is found from its end; in front of it there may be anything."""
        members = zip_members(stream, self.budget) if depth == 0 or is_zip_start(head) else None
        if members is not None:
            self._members(members, context, depth)

    def _compressed(self, stream: io.BufferedReader, method: str, context: str, depth: int) -> None:
        if depth == _DEEPEST:
            self._unread("an archive nested too deep to look into", context)
            return
        try:
            self._stream(decoded(stream, method, self.budget), f", compressed with {method}{context}", depth + 1)
        except (Undecodable, EOFError):
            # It only looked like it.
            return

    def _members(self, members: Iterable[Member], context: str, depth: int) -> None:
        if depth == _DEEPEST:
            self._unread("an archive nested too deep to look into", context)
            return
        for member in members:
            where = f", in member {member.name[:200]!a}{context}"
            if member.stream is None:
                self._unread("something that can't be looked into", where)
                continue
            try:
                if member.name == "config.json" and member.stream.peek(1)[:1] == b"{":
                    self._keras(member.stream, where)
                    continue
                self._stream(member.stream, where, depth + 1)
            except (Undecodable, EOFError):
                self._unread("something damaged", where)

    def _numpy(self, stream: io.BufferedReader, context: str) -> None:
        """https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""
        start = stream.read(8)
        width = 2 if start[6:7] == b"\1" else 4
        length = int.from_bytes(stream.read(width), "little")
        header = stream.read(min(length, _LONGEST_ARRAY_HEADER))
        if length > _LONGEST_ARRAY_HEADER:
            self._unread("a NumPy array whose header is too long to look into", context)
            return
        try:
            described = cast("object", ast.literal_eval(header.decode("utf-8").strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            # NumPy can't read it either.
            return
        if isinstance(described, dict) and _holds_objects(cast("dict[object, object]", described).get("descr")):
            self._walk(stream, "a NumPy array of Python objects", context)

    def _keras(self, stream: io.BufferedReader, context: str) -> None:
        if _KERAS_LAMBDA.search(stream.read(_LONGEST_KERAS_CONFIG)):
            self._found("a Keras model with a Lambda layer, which holds Python bytecode", context)

    def _walk(self, stream: io.BufferedReader, known_as: str, context: str) -> None:
        """Follows what may be a pickle; `known_as` where it is known to be one."""
        walked = walk(stream, self.budget)
        if walked is None:
            if known_as:
                self._found(known_as, context)
            return
        self._found(known_as or _describe(walked, context), context)
        self.imports |= walked.imports
        self.complete &= walked.complete
        self.sklearn_version = self.sklearn_version or walked.sklearn_version

    def _found(self, form: str, context: str) -> None:
        if self.form is None:
            self.form = form + context

    def _unread(self, form: str, context: str) -> None:
        self._found(form, context)
        self.complete = False


def _describe(walked: Walk, context: str) -> str:
    if _TORCH_MEMBER.match(context):
        return "the pickle of a PyTorch archive"
    if walked.is_legacy_torch:
        return "a PyTorch file in the form of before 1.6"
    if any(name.startswith("joblib.numpy_pickle.") for name in walked.imports):
        return "a joblib pickle"
    return f"a pickle (protocol {walked.protocol if walked.protocol else '0 or 1'})"


def _holds_objects(described: object) -> bool:
    """Whether a NumPy dtype, as a file's header writes it, holds Python objects."""
    if isinstance(described, str):
        return described.lstrip("|<>=").startswith("O")
    return isinstance(described, list | tuple) and any(map(_holds_objects, cast("list[object]", described)))
