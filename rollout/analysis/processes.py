"""Evidence as processes that begin at different times and for different alternatives, and their weighted mean. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

_FIRST_STEP = 0.85
"""Staked on what begins with the first step; the rest on what begins with later ones."""
_FIRST_IN_STEP = 0.93
"""Of a step's stake, on what begins with it; the rest on what begins later in it."""
_MOST_STARTS = 60
"""Processes that are kept. To drop one takes evidence away, which is always allowed."""


def stake(step: int, start: int = 0) -> float:
    """What is staked on a process, by its step and which of the step's starts it is, both from 0. In all: 1."""
    of_step = _FIRST_STEP if step == 0 else (1 - _FIRST_STEP) / (step * (step + 1))
    return of_step * (_FIRST_IN_STEP if start == 0 else (1 - _FIRST_IN_STEP) / (start * (start + 1)))


class Start(Protocol):
    """A process that begins at some time, at 1."""

    @property
    def log(self) -> float: ...


Process = TypeVar("Process", bound=Start)


class Starts(Generic[Process]):
    """Processes that begin at different times, and their weighted mean.

    One that begins late has multiplied nothing of what was before, so luck that a version had does not hide what it
    does then: a mixture over the time of the change, as in e-detectors (Shin, Ramdas and Rinaldo 2023), but with
    weights whose sum is 1, so that it is an e-process still.
    """

    def __init__(self, make: Callable[[], Process]) -> None:
        self._make = make
        self._unstaked = 1.0
        self._step = self._start = 0
        self._running: list[tuple[float, Process]] = []
        self._begin()

    def __iter__(self) -> Iterator[Process]:
        return (process for _, process in self._running)

    @property
    def first(self) -> Process:
        """The eldest that is kept."""
        return self._running[0][1]

    @property
    def log(self) -> float:
        """Natural log of the mean: 0 at the start; the hypothesis falls at -log(alpha)."""
        return log_sum([math.log(self._unstaked), *(math.log(weight) + each.log for weight, each in self._running)])

    def begin_step(self) -> None:
        self._step, self._start = self._step + 1, 0
        self._begin()

    def renew(self) -> None:
        self._start += 1
        self._begin()

    def _begin(self) -> None:
        weight = stake(self._step, self._start)
        self._unstaked -= weight
        self._running.append((weight, self._make()))
        if len(self._running) > _MOST_STARTS:
            self._running.remove(min(self._running, key=lambda each: math.log(each[0]) + each[1].log))


class Ratios:
    """Likelihood ratios to several alternatives, and their mean by what is staked on each."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._stakes = [math.log(weight) for weight in prior]
        self._logs = [0.0] * len(prior)

    @property
    def log(self) -> float:
        return log_sum([weight + value for weight, value in zip(self._stakes, self._logs, strict=True)])

    def multiply(self, logs: Sequence[float]) -> None:
        self._logs = [old + new for old, new in zip(self._logs, logs, strict=True)]


def log_sum(terms: Sequence[float]) -> float:
    """Log of the sum of what these are logs of."""
    greatest = max(terms)
    if greatest == math.inf:
        return math.inf
    return greatest + math.log(math.fsum(math.exp(term - greatest) for term in terms))
