"""Follows a pickle's opcodes without carrying any out: is it one, what would it import, which scikit-learn wrote it.

Source: the standard library's pickletools; joblib's numpy_pickle, which lays an array's raw bytes between opcodes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from model_packaging.sources.streams import Budget, BudgetSpent, Undecodable

_NAME = re.compile(r"[\w.+<>-]{1,128}")
"""What modules, their members, versions and dtypes are called; other text is not kept."""
_DTYPE = re.compile(r"[|<>=]?([biufcmMVSUO])(\d{1,9})")
_DECIMAL = re.compile(rb"[+-]?\d{1,4300}L?")
_LONGEST_LINE = 1 << 16
_LONGEST_TUPLE = 32
_KEPT_TEXTS = 100_000
_KEPT_IMPORTS = 1000
_NESTED_PICKLES = 20
_CONVINCING = 1000
"""Opcodes in a row that make sense together; no other form of file has that many by chance."""
_FORWARD_SKIP = 16 << 20
"""Bytes that one opcode may hold in a stream without seek, unless it is known to be a pickle."""


@dataclass(frozen=True)
class Walk:
    """What a pickle's opcodes say."""

    protocol: int
    """0 where it doesn't say: protocols 0 and 1."""
    imports: frozenset[str]
    """`module.name` of everything that loading it would import."""
    sklearn_version: str | None
    """Of the scikit-learn that wrote it."""
    is_legacy_torch: bool
    complete: bool
    """Whether it was followed to its end."""


def walk(stream: io.BufferedReader, budget: Budget) -> Walk | None:
    """Follows the pickles that the stream starts with; None if it starts with none.

    A pickle that breaks after it would have called something is one: loading it runs the call first.
    """
    walker = _Walker(stream, budget)
    return walker.walk()


class _Invalid(Exception):
    """These bytes are no pickle."""


@dataclass(frozen=True)
class _Import:
    name: str


@dataclass(frozen=True)
class _Call:
    function: _Import
    arguments: object


class _Kind(NamedTuple):
    name: str
    argument: int | None
    """Bytes of a fixed argument, or one of pickletools' negative codes."""
    lines: int
    to_mark: bool
    pops: int
    pushes: int


_MARK = object()
_OTHER = None
"""Stands for every value that we needn't know."""
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LEGACY_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"


def _kind(code: pickletools.OpcodeInfo) -> _Kind:
    to_mark = pickletools.markobject in code.stack_before
    argument = None if code.arg is None else code.arg.n
    lines = 0 if argument != pickletools.UP_TO_NEWLINE else 2 if code.name in ("GLOBAL", "INST") else 1
    # The mark goes with all that lies above it.
    pops = code.stack_before.index(pickletools.markobject) if to_mark else len(code.stack_before)
    return _Kind(code.name, argument, lines, to_mark, pops, len(code.stack_after))


_KINDS = {code.code.encode("latin-1"): _kind(code) for code in pickletools.opcodes}


@dataclass
class _Walker:
    stream: io.BufferedReader
    budget: Budget
    protocol: int = 0
    imports: set[str] = field(default_factory=set[str])
    sklearn_version: str | None = None
    is_legacy_torch: bool = False
    calls: bool = False
    whole: int = 0
    """Pickles that were followed to their end."""
    opcodes: int = 0
    kept: int = 0
    complete: bool = True

    def __post_init__(self) -> None:
        self.seekable = self.stream.seekable()

    def walk(self) -> Walk | None:
        ends = spent = False
        try:
            # Several may follow each other in one file.
            while not ends:
                self._pickle(depth=0)
                self.whole += 1
                ends = not self.stream.peek(1)
        except BudgetSpent:
            spent = True
        except (_Invalid, Undecodable, EOFError):
            pass
        marked = self.protocol >= 2
        if not (
            self.calls
            or ends
            or (marked and (self.imports or self.whole or spent))
            or (spent and self.opcodes > _CONVINCING)
        ):
            return None
        return Walk(
            self.protocol,
            frozenset(self.imports),
            self.sklearn_version,
            self.is_legacy_torch,
            self.complete and self.whole > 0 and not spent,
        )

    def _pickle(self, depth: int) -> None:
        """Follows one pickle to its STOP.

        Raises:
            _Invalid, EOFError, Undecodable: these bytes are none, or not a whole one.
        """
        if depth > _NESTED_PICKLES:
            raise _Invalid
        stack: list[object] = []
        memo: dict[int, object] = {}
        memoized = 0
        while True:
            code = self._read(1)
            kind = _KINDS.get(code)
            if kind is None:
                raise _Invalid
            self.budget.spend(opcodes=1)
            self.opcodes += 1
            argument = self._argument(kind)
            match kind.name:
                case "STOP":
                    if not stack or stack[-1] is _MARK:
                        raise _Invalid
                    return
                case "MARK":
                    stack.append(_MARK)
                case "POP":
                    _pop(stack, 1, any_kind=True)
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo.get(_number(argument)))
                case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    if not stack or stack[-1] is _MARK:
                        raise _Invalid
                    if stack[-1] is not _OTHER:
                        memo[memoized if kind.name == "MEMOIZE" else _number(argument)] = stack[-1]
                    memoized += 1
                case _:
                    self._apply(kind, argument, stack, depth)

    def _apply(self, kind: _Kind, argument: object, stack: list[object], depth: int) -> None:
        """What an opcode does to the stack, where that tells something."""
        above = _pop_to_mark(stack) if kind.to_mark else []
        below = _pop(stack, kind.pops)
        match kind.name:
            case "PROTO":
                self._proto(argument)
            case "DUP":
                stack += [below[0], below[0]]
            case "GLOBAL":
                stack.append(self._import(str(argument)))
            case "STACK_GLOBAL":
                stack.append(self._import(".".join(name if isinstance(name, str) else "?" for name in below)))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(self._import(f"copyreg.extension-{argument}"))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                stack.append(self._call(below[0], below[1]))
            case "INST" | "OBJ":
                function, *arguments = (
                    [self._import(str(argument)), *above] if kind.name == "INST" else above or [_OTHER]
                )
                stack.append(self._call(function, tuple(arguments)))
            case "BUILD":
                stack.append(below[0])
                self._array(below[0], below[1], depth)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                items = above or below
                stack.append(tuple(items) if len(items) <= _LONGEST_TUPLE else _OTHER)
            case "EMPTY_DICT" | "DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                stack.append(below[0])
                self._set_items(below[0], [*below[1:], *above])
            case _:
                stack += [argument if kind.argument is not None else _OTHER] * kind.pushes

    # What opcodes mean

    def _proto(self, argument: object) -> None:
        if not isinstance(argument, int) or argument > pickle.HIGHEST_PROTOCOL:
            raise _Invalid
        if self.opcodes == 1:
            self.protocol = argument

    def _import(self, name: str) -> _Import:
        if len(self.imports) < _KEPT_IMPORTS:
            self.imports.add(name)
        else:
            self.complete = False
        return _Import(name)

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Import):
            return _OTHER
        self.calls = True
        return _Call(function, arguments)

    def _set_items(self, target: object, items: list[object]) -> None:
        if len(items) % 2:
            raise _Invalid
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key == "_sklearn_version" and isinstance(value, str):
                self.sklearn_version = value
            if isinstance(target, dict) and isinstance(key, str) and len(target) < _LONGEST_TUPLE:
                target[key] = value

    def _array(self, target: object, state: object, depth: int) -> None:
        """Steps over the bytes of an array, which joblib writes behind what describes it."""
        if not isinstance(target, _Call) or target.function.name != _WRAPPER or not isinstance(state, dict):
            return
        dtype, shape = state.get("dtype"), state.get("shape")
        name = dtype.arguments[0] if isinstance(dtype, _Call) and isinstance(dtype.arguments, tuple) else None
        described = _DTYPE.fullmatch(name) if isinstance(name, str) else None
        if described is None or not isinstance(shape, tuple):
            raise _Invalid
        if described[1] == "O":
            self._pickle(depth + 1)
            return
        if isinstance(state.get("numpy_array_alignment_bytes"), int):
            self._skip(self._read(1)[0])
        lengths = [length for length in shape if isinstance(length, int)]
        if len(lengths) != len(shape):
            raise _Invalid
        self._skip(math.prod(lengths) * int(described[2]) * (4 if described[1] == "U" else 1))

    # Reading

    def _argument(self, kind: _Kind) -> object:
        if kind.argument is None:
            return _OTHER
        if kind.lines:
            return self._lines(kind)
        if kind.argument >= 0:
            content = self._read(kind.argument)
            return int.from_bytes(content, "little", signed=kind.name == "BININT")
        width = _LENGTH_BYTES[kind.argument]
        length = int.from_bytes(self._read(width), "little", signed=kind.argument == pickletools.TAKEN_FROM_ARGUMENT4)
        if length < 0:
            raise _Invalid
        if length > 128:
            self._skip(length)
            return _OTHER
        content = self._read(length)
        if kind.name in ("LONG1", "LONG4"):
            self.is_legacy_torch |= content == _LEGACY_TORCH and self.opcodes == 2
            return int.from_bytes(content, "little", signed=True)
        return self._text(content) if "STRING" in kind.name or "UNICODE" in kind.name else _OTHER

    def _lines(self, kind: _Kind) -> object:
        lines = [self._line() for _ in range(kind.lines)]
        match kind.name:
            case "GLOBAL" | "INST":
                names = [line.decode("utf-8", "replace") for line in lines]
                if not all(_NAME.fullmatch(name) for name in names):
                    raise _Invalid
                return ".".join(names)
            case "INT" | "LONG" | "PUT" | "GET":
                if not _DECIMAL.fullmatch(lines[0]):
                    raise _Invalid
                return int(lines[0].rstrip(b"L")) if len(lines[0]) < 20 else _OTHER
            case "FLOAT":
                try:
                    float(lines[0])
                except ValueError:
                    raise _Invalid from None
                return _OTHER
            case "STRING":
                text = lines[0].strip()
                if len(text) < 2 or text[:1] not in (b"'", b'"') or text[:1] != text[-1:]:
                    raise _Invalid
                return self._text(text[1:-1])
            case _:
                return self._text(lines[0])

    def _text(self, content: bytes) -> object:
        if self.kept >= _KEPT_TEXTS:
            return _OTHER
        text = content.decode("utf-8", "replace")
        if not _NAME.fullmatch(text):
            return _OTHER
        self.kept += 1
        return text

    def _read(self, size: int) -> bytes:
        content = self.stream.read(size)
        if len(content) < size:
            raise EOFError
        return content

    def _line(self) -> bytes:
        line = self.stream.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        return line[:-1]

    def _skip(self, size: int) -> None:
        if not 0 <= size < 1 << 62:
            raise _Invalid
        if self.seekable:
            self.stream.seek(size, io.SEEK_CUR)
            return
        if size > _FORWARD_SKIP and self.protocol < 2:
            raise _Invalid
        while size:
            size -= len(self._read(min(size, _LONGEST_LINE)))


def _number(argument: object) -> int:
    if not isinstance(argument, int) or argument < 0:
        raise _Invalid
    return argument


def _pop(stack: list[object], count: int, *, any_kind: bool = False) -> list[object]:
    if len(stack) < count:
        raise _Invalid
    taken = stack[len(stack) - count :]
    if not any_kind and any(value is _MARK for value in taken):
        raise _Invalid
    del stack[len(stack) - count :]
    return taken


def _pop_to_mark(stack: list[object]) -> list[object]:
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is _MARK:
            above = stack[place + 1 :]
            del stack[place:]
            return above
    raise _Invalid
