"""Two model versions side by side, and whether one can take the other's place in front of its clients. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from model_packaging.lifecycle import Stage
from model_packaging.manifest import Description
from model_packaging.package import Package, Signature, Tensor

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Obstacle:
    """Why a client of one version can't be served by another."""

    side: Side | None
    """None where it is not a tensor's."""
    tensor: str | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.tensor is None else f"{self.side} {self.tensor!r}: {self.reason}"


@dataclass(frozen=True)
class Subject:
    """A version to compare."""

    description: Description
    stage: Stage
    size_bytes: int
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """Data set -> metric -> value."""


class MetricRow(NamedTuple):
    """A metric on a data set, as far as each version has it."""

    dataset: str
    metric: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """How much more B has."""
        return None if self.a is None or self.b is None else self.b - self.a


class TensorRow(NamedTuple):
    """An input or output, as far as each version has it."""

    side: Side
    name: str
    a: Tensor | None
    b: Tensor | None


class SettingRow(NamedTuple):
    """A setting by its path in package.yaml, such as `framework.version`, as far as each version has it."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """Versions A and B side by side, and what keeps B from taking A's place."""

    a: Subject
    b: Subject
    metrics: tuple[MetricRow, ...]
    signature: tuple[TensorRow, ...]
    settings: tuple[SettingRow, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def compatible(self) -> bool:
        """Whether B accepts what a client of A sends, and answers with what it reads."""
        return not self.obstacles

    @property
    def size_difference_bytes(self) -> int:
        return self.b.size_bytes - self.a.size_bytes

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "a": _head(self.a),
            "b": _head(self.b),
            "size_difference_bytes": self.size_difference_bytes,
            "metrics": [row._asdict() | {"difference": row.difference} for row in self.metrics],
            "signature": [
                {
                    "side": row.side,
                    "name": row.name,
                    "a": row.a and row.a.model_dump(mode="json", exclude={"name"}),
                    "b": row.b and row.b.model_dump(mode="json", exclude={"name"}),
                    "same": row.a == row.b,
                }
                for row in self.signature
            ],
            "settings": [row._asdict() | {"same": row.a == row.b} for row in self.settings],
            "compatible": self.compatible,
            "obstacles": [{"side": each.side, "tensor": each.tensor, "reason": each.reason} for each in self.obstacles],
        }


def compare(a: Subject, b: Subject) -> Comparison:
    """Lays two versions side by side."""
    one, other = a.description.package, b.description.package
    return Comparison(
        a,
        b,
        metrics=tuple(_metrics(a.metrics, b.metrics)),
        signature=tuple(_tensors(one.signature, other.signature)),
        settings=tuple(_settings(one, other)),
        obstacles=(*_protocol_obstacles(one, other), *compatible(one.signature, other.signature)),
    )


def compatible(a: Signature | None, b: Signature | None) -> tuple[Obstacle, ...]:
    """What keeps a version with signature `b` from serving the clients of one with signature `a`; empty: nothing.

    Every request that A accepts, B must accept; every answer that B gives must be one that A could give, besides
    outputs that A doesn't have. So B's inputs may be wider than A's, and its outputs narrower. A length of -1 is any
    length; nothing in a signature says that two of them are the same one. Datatypes are never converted.
    """
    if a is None or b is None:
        if a is b:
            return ()
        named, other = ("B", "A") if a is None else ("A", "B")
        reason = f"{named} has a signature and {other} has none, so nothing says that they take the same requests"
        return (Obstacle(None, None, reason),)
    return (*_input_obstacles(a.inputs, b.inputs), *_output_obstacles(a.outputs, b.outputs))


def _input_obstacles(a: Sequence[Tensor], b: Sequence[Tensor]) -> Iterator[Obstacle]:
    sent, taken = _by_name(a), _by_name(b)
    for name, tensor in sent.items():
        if name not in taken:
            yield Obstacle("input", name, "clients of A send it, B doesn't take it")
        else:
            yield from _misfits("input", name, given=tensor, asked=taken[name], giver="clients of A send", asker="B")
    for name in taken:
        if name not in sent:
            yield Obstacle("input", name, "B asks for it, clients of A don't send it")


def _output_obstacles(a: Sequence[Tensor], b: Sequence[Tensor]) -> Iterator[Obstacle]:
    read, answered = _by_name(a), _by_name(b)
    for name, tensor in read.items():
        if name not in answered:
            yield Obstacle("output", name, "clients of A read it, B doesn't answer it")
        else:
            yield from _misfits(
                "output", name, given=answered[name], asked=tensor, giver="B answers", asker="clients of A"
            )


def _misfits(side: Side, name: str, *, given: Tensor, asked: Tensor, giver: str, asker: str) -> Iterator[Obstacle]:
    takes = "takes" if asker == "B" else "take"
    if given.datatype != asked.datatype:
        yield Obstacle(side, name, f"{giver} {given.datatype}, {asker} {takes} {asked.datatype}")
    # A length that varies is given as -1 too, which only -1 accepts.
    if not asked.accepts(given.shape):
        yield Obstacle(side, name, f"{giver} shape {list(given.shape)}, {asker} {takes} {list(asked.shape)}")


def _protocol_obstacles(a: Package, b: Package) -> Iterator[Obstacle]:
    if a.server is not None and b.server is not None and a.server.protocol != b.server.protocol:
        yield Obstacle(None, None, f"clients of A speak {a.server.protocol}, B's server speaks {b.server.protocol}")


def _metrics(a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]]) -> Iterator[MetricRow]:
    for dataset in sorted(a.keys() | b.keys()):
        one, other = a.get(dataset, {}), b.get(dataset, {})
        for metric in sorted(one.keys() | other.keys()):
            yield MetricRow(dataset, metric, one.get(metric), other.get(metric))


def _tensors(a: Signature | None, b: Signature | None) -> Iterator[TensorRow]:
    sides: tuple[tuple[Side, Sequence[Tensor], Sequence[Tensor]], ...] = (
        ("input", a.inputs if a else (), b.inputs if b else ()),
        ("output", a.outputs if a else (), b.outputs if b else ()),
    )
    for side, of_a, of_b in sides:
        one, other = _by_name(of_a), _by_name(of_b)
        for name in one | other:
            yield TensorRow(side, name, one.get(name), other.get(name))


def _settings(a: Package, b: Package) -> Iterator[SettingRow]:
    shown = {"framework", "server", "resources", "training_data", "licence", "author", "labels", "allow_pickle"}
    one, other = (dict(_leaves(package.model_dump(mode="json", include=shown))) for package in (a, b))
    for key in one | other:
        yield SettingRow(key, one.get(key), other.get(key))


def _leaves(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), f"{above}{key}.")
        elif value is not None and value != []:
            yield f"{above}{key}", value


def _by_name(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def _head(subject: Subject) -> dict[str, Any]:
    git = subject.description.git
    return {
        "model": subject.description.model,
        "version": subject.description.version,
        "stage": str(subject.stage),
        "size_bytes": subject.size_bytes,
        "git_commit": git.commit if git else None,
    }
