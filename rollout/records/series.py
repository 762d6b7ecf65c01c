"""What was seen during a rollout, as series over time with their confidence bands. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rollout.analysis.samples import Counts
from rollout.analysis.sequential import ratio_band, ratio_log
from rollout.records.plots import Band, Point

if TYPE_CHECKING:
    from rollout.records.record import Seen

_COLUMNS = 100
"""Short times that a rollout is divided into, at most."""
_BAND_POINTS = 60
"""Of a step's band, at most: each costs a search."""

_RATE_SECONDS = 4.0
"""Over which a rate is drawn, at least: two scrapes."""


@dataclass(frozen=True)
class Tally:
    """What one version did, added up in both ways that are drawn."""

    steps: Sequence[Sequence[tuple[float, Counts]]]
    """By step, at each look: what it did since the step began."""
    columns: Sequence[tuple[int, float, float, Counts]]
    """Short times: the step of each, its middle, its seconds, and what was done in it."""


@dataclass(frozen=True)
class Series:
    """One version's value: since each step began, with where it may be in truth, and in short times."""

    pieces: tuple[tuple[Point, ...], ...]
    bands: tuple[tuple[Band, ...], ...]
    dots: tuple[Point, ...]


Measure = Callable[[Counts], float | None]
"""A value of counts; None where they say nothing of it."""
Reach = Callable[[Counts], tuple[float, float]]
"""Where it may be in truth."""


def times(seen: Sequence[Seen], start: float) -> list[float]:
    """When each look was, in seconds since `start`. They never go back, even where the clock did."""
    found: list[float] = []
    for item in seen:
        found.append(max(item.look.at - start, found[-1] if found else 0.0))
    return found


def tally(seen: Sequence[Seen], at: Sequence[float], version: str) -> Tally:
    """Adds a version's counts up. `at`: of each look, as `times` gives it."""
    return Tally(list(_since_step(seen, at, version)), list(_columns(seen, at, version)))


def series(of: Tally, measure: Measure, reach: Reach) -> Series:
    """A version's value over time."""
    pieces: list[tuple[Point, ...]] = []
    bands: list[tuple[Band, ...]] = []
    for total in of.steps:
        points = [(when, value) for when, counts in total if (value := measure(counts)) is not None]
        if points:
            known = (total[index] for index in _spread(len(total)))
            pieces.append(tuple(points))
            bands.append(tuple((when, *reach(counts)) for when, counts in known if measure(counts) is not None))
    dots = [(when, value) for _, when, _, counts in of.columns if (value := measure(counts)) is not None]
    return Series(tuple(pieces), tuple(bands), tuple(dots))


def rates(of: Tally) -> list[list[Point]]:
    """Requests a second, by step, each over some seconds: metrics come more rarely than looks."""
    return [_rates(list(columns)) for _, columns in groupby(of.columns, key=lambda column: column[0])]


def _rates(columns: list[tuple[int, float, float, Counts]]) -> list[Point]:
    found: list[Point] = []
    requests, seconds, first = 0, 0.0, 0.0
    for _, when, its_seconds, counts in columns:
        first = when if not seconds else first
        requests, seconds = requests + counts.requests, seconds + its_seconds
        if seconds >= _RATE_SECONDS:
            found.append(((first + when) / 2, requests / seconds))
            requests, seconds = 0, 0.0
    if seconds and not found:
        found.append(((first + columns[-1][1]) / 2, requests / seconds))
    return found


def _spread(count: int) -> list[int]:
    """Some indices from 0 to count - 1, closer at the start, where a band changes most."""
    if count <= _BAND_POINTS:
        return list(range(count))
    last = _BAND_POINTS - 1
    return sorted({round((count - 1) * (index / last) ** 2) for index in range(_BAND_POINTS)})


def _columns(seen: Sequence[Seen], at: Sequence[float], version: str) -> Iterator[tuple[int, float, float, Counts]]:
    if not seen:
        return
    width = max((at[-1] - at[0]) / _COLUMNS, 1e-9)
    for _, looks in groupby(range(len(seen)), key=lambda index: (int((at[index] - at[0]) / width), seen[index].step)):
        found = [index for index in looks if version in seen[index].look.counts]
        if found:
            total = Counter()
            for index in found:
                total.add(seen[index].look.counts[version])
            seconds = sum(seen[index].look.seconds for index in found)
            yield seen[found[0]].step, (at[found[0]] + at[found[-1]]) / 2, seconds, total.counts


def _since_step(
    seen: Sequence[Seen], at: Sequence[float], version: str
) -> Iterator[list[tuple[float, Counts]]]:  # fmt: skip
    for _, looks in groupby(range(len(seen)), key=lambda index: seen[index].step):
        total = Counter()
        found: list[tuple[float, Counts]] = []
        for index in looks:
            if version in seen[index].look.counts:
                total.add(seen[index].look.counts[version])
                found.append((at[index], total.counts))
        yield found


class Counter:
    """Adds counts up."""

    def __init__(self) -> None:
        self.counts = Counts()

    def add(self, counts: Counts) -> None:
        self.counts = sum_of(self.counts, counts)


def sum_of(first: Counts, second: Counts) -> Counts:
    """The counts of both; of a bound that only one of them has, nothing is known."""
    return Counts(
        requests=first.requests + second.requests,
        errors=first.errors + second.errors,
        latency_ms=_sum_of_buckets(first.latency_ms, second.latency_ms),
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
    )


def _sum_of_buckets(first: Mapping[float, int], second: Mapping[float, int]) -> dict[float, int]:
    if not first or not second:
        return dict(first or second)
    return {bound: count + second[bound] for bound, count in first.items() if bound in second}


def error_ratio(counts: Counts) -> float | None:
    return counts.errors / counts.requests if counts.requests else None


def error_band(alpha: float) -> Reach:
    return lambda counts: ratio_band(counts.errors, counts.requests, alpha)


def quantile(share: float) -> Measure:
    """The latency in ms that so great a share of requests doesn't exceed, evenly spread within a bucket.

    As Prometheus' histogram_quantile: in the last bucket it is the greatest finite bound.
    """

    def value(counts: Counts) -> float | None:
        buckets = sorted(counts.latency_ms.items())
        total = buckets[-1][1] if buckets else 0
        if not total:
            return None
        below, below_count = 0.0, 0
        for bound, count in buckets:
            if count >= share * total and count > below_count:
                if math.isinf(bound):
                    return below
                return below + (bound - below) * (share * total - below_count) / (count - below_count)
            below, below_count = bound, count
        return below

    return value


def quantile_band(share: float, alpha: float) -> Reach:
    """Where a quantile is, at every time with probability 1 - alpha, as finely as the buckets say.

    Its lower end is a bound that fewer than `share` of the requests are within, with confidence; its upper end one that
    at least as many are within.
    """

    def reach(counts: Counts) -> tuple[float, float]:
        buckets = sorted(counts.latency_ms.items())
        total = buckets[-1][1] if buckets else 0
        low = 0.0
        for bound, count in buckets:
            if total and math.isfinite(bound) and ratio_log(count, total, share) > -math.log(alpha):
                if count >= share * total:
                    return low, bound
                low = bound
        return low, math.inf

    return reach
