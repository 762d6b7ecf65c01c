"""What can be asked for in a listing, as people write it: `accuracy>=0.95`, `team=vision`, `-registered`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from model_packaging.errors import QueryRefused
from model_packaging.lifecycle import Stage

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}

_CONDITION = re.compile(r"([^<>=!]+?)\s*(>=|<=|!=|==|>|<|=)\s*([^<>=!\s]+)")
_COMMIT = re.compile(r"[0-9a-f]{1,64}")


class MetricCondition(NamedTuple):
    """A bound on the latest value of a metric: on one data set, or on any that it was measured on."""

    metric: str
    dataset: str | None
    operator: str
    """A key of OPERATORS."""
    value: float

    @classmethod
    def parse(cls, text: str) -> MetricCondition:
        """Reads `accuracy>=0.95`, or `accuracy@holdout>=0.95` for one data set.

        Raises:
            QueryRefused: it is not of that form.
        """
        match = _CONDITION.fullmatch(text.strip())
        value = _number(match[3]) if match else None
        if match is None or value is None:
            raise QueryRefused(
                f"given {text!r}: a condition on a metric is METRIC[@DATASET], one of {' '.join(OPERATORS)} "
                "and a number, such as 'accuracy>=0.95' or 'f1@holdout>0.9'"
            )
        metric, dataset = parse_metric(match[1])
        return cls(metric, dataset, "=" if match[2] == "==" else match[2], value)


class LabelCondition(NamedTuple):
    """A label that a version has, with a value or any."""

    name: str
    value: str | None

    @classmethod
    def parse(cls, text: str) -> LabelCondition:
        """Reads `team=vision`, or `team` for any value.

        Raises:
            QueryRefused: it names no label.
        """
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name:
            raise QueryRefused(f"given {text!r}: a condition on a label is NAME=VALUE, or NAME alone for any value")
        return cls(name, value if equals else None)


class Sort(NamedTuple):
    """The order of a listing."""

    by: str
    """`name` (model, then precedence), `registered`, `size`, or `metric`."""
    descending: bool = False
    metric: str = ""
    """Where it is by `metric`. Versions without come last."""
    dataset: str | None = None
    """The metric's; None: of several, the value that puts the version first."""

    @classmethod
    def parse(cls, text: str) -> Sort:
        """Reads `name`, `registered`, `size` or METRIC[@DATASET], with `-` in front for the largest or latest first.

        A metric of one of those names is written with its data set.

        Raises:
            QueryRefused: nothing is named.
        """
        key = text.strip().removeprefix("-")
        if key in ("name", "registered", "size"):
            return cls(key, text.strip().startswith("-"))
        return cls("metric", text.strip().startswith("-"), *parse_metric(key))


BY_NAME = Sort("name")


@dataclass(frozen=True)
class Query:
    """What versions must have to be listed: all of what is given, and of the stages one."""

    model: str | None = None
    stages: tuple[Stage, ...] = ()
    metrics: tuple[MetricCondition, ...] = ()
    labels: tuple[LabelCondition, ...] = ()
    commit: str | None = None
    """The first digits of the Git commit."""
    text: str | None = None
    """Words, in any case, in model, version, framework, licence, author, branch, training data, parents or labels."""
    environment: str | None = None
    """Where it is deployed."""
    sort: Sort = BY_NAME
    limit: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if self.commit is not None and not _COMMIT.fullmatch(self.commit):
            raise QueryRefused(
                f"commit: given {self.commit!r}: it is the first lower-case hexadecimal digits of a commit"
            )
        if self.limit is not None and self.limit < 1:
            raise QueryRefused(f"limit: given {self.limit}: it is at least 1, or left out for all")
        if self.offset < 0:
            raise QueryRefused(f"offset: given {self.offset}: it is at least 0")


def parse_metric(text: str) -> tuple[str, str | None]:
    """Reads METRIC or METRIC@DATASET."""
    metric, at, dataset = (part.strip() for part in text.partition("@"))
    if not metric or (at and not dataset):
        raise QueryRefused(f"given {text!r}: a metric is METRIC, or METRIC@DATASET for its value on one data set")
    return metric, dataset or None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
