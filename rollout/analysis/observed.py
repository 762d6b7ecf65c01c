"""Adds up what looks saw: in the whole rollout and in its step, and what is missing. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rollout.analysis.samples import FRESH_SECONDS, Counts, Look
from rollout.analysis.sequential import ratio_log

_SILENT_REQUESTS = 20
"""Expected of a version while none ended: then it hangs, or its metrics do. By chance, one time in 5e8."""


class Totals:
    """Counts that add up."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.cpu_seconds = 0.0
        self.latency_ms: dict[float, int] = {}

    def add(self, counts: Counts) -> None:
        self.requests += counts.requests
        self.errors += counts.errors
        self.cpu_seconds += counts.cpu_seconds
        if not counts.latency_ms:
            return
        if not self.latency_ms:
            self.latency_ms = dict(counts.latency_ms)
            return
        # Of a bound that only one has, nothing is known.
        self.latency_ms = {
            bound: number + counts.latency_ms[bound]
            for bound, number in self.latency_ms.items()
            if bound in counts.latency_ms
        }

    @property
    def timed(self) -> int:
        """Requests whose latency is known."""
        return self.latency_ms.get(math.inf, 0)

    def slower(self, bound_ms: float) -> int:
        """Requests that took longer than a bound of the histogram."""
        return self.timed - self.latency_ms[bound_ms]

    def quantile_ms(self, quantile: float) -> float | None:
        """Read off between two bounds as if requests were spread evenly; None without requests.

        Above the last bound, that.
        """
        wanted = quantile * self.timed
        if not self.timed:
            return None
        below, low = 0, 0.0
        for bound in sorted(self.latency_ms):
            number = self.latency_ms[bound]
            if number >= wanted and number > below:
                return low if bound == math.inf else low + (bound - low) * (wanted - below) / (number - below)
            below, low = number, bound
        return low

    def quantile_band_ms(self, quantile: float, alpha: float = 0.05) -> tuple[float, float]:
        """Where the quantile is, at every time with probability 1 - alpha; rounded outwards to bounds.

        What is at most the quantile comes with a known probability, so one test at the true one bounds it (Howard and
        Ramdas 2022).
        """
        low, high = 0.0, math.inf
        for bound in sorted(self.latency_ms):
            number = self.latency_ms[bound]
            if ratio_log(number, self.timed, quantile) > -math.log(alpha):
                if number < quantile * self.timed:
                    low = bound
                else:
                    high = min(high, bound)
        return low, high


class Observed:
    """All that was seen so far."""

    def __init__(self, versions: Sequence[str]) -> None:
        self._versions = tuple(versions)
        self.rollout: dict[str, Totals] = defaultdict(Totals)
        self.step: dict[str, Totals] = defaultdict(Totals)
        self.step_index = 0
        self.weights: Mapping[str, int] = {}
        self.shadow: Mapping[str, float] = {}
        self.settled_seconds = 0.0
        """Since when the weights are as they are."""
        self.unseen_seconds = 0.0
        """Of looks with a problem since the last without: the next look's counts are of these too."""
        self.problems: dict[str, str] = {}
        """By gate, why there is no value of it."""
        self._problem = ""
        self._missing: dict[str, float] = dict.fromkeys(versions, math.inf)
        self._silent: dict[str, float] = dict.fromkeys(versions, 0.0)

    def begin_step(self, index: int) -> None:
        self.step = defaultdict(Totals)
        self.step_index = index
        self._silent = dict.fromkeys(self._versions, 0.0)

    def add(self, look: Look) -> None:
        self._problem = look.problem
        self.problems |= look.problems
        for label in look.values:
            if label not in look.problems:
                self.problems.pop(label, None)
        if look.weights:
            unchanged = look.weights == self.weights and look.shadow == self.shadow
            self.settled_seconds = self.settled_seconds + look.seconds if unchanged else 0.0
            self.weights, self.shadow = look.weights, look.shadow
        known = dict[str, Counts]() if look.problem else look.counts
        for version in self._versions:
            self._missing[version] = 0.0 if version in known else self._missing[version] + look.seconds
        self.unseen_seconds = 0.0 if known else self.unseen_seconds + look.seconds
        for version, counts in known.items():
            self.rollout[version].add(counts)
            self.step[version].add(counts)
        self._listen(known)

    def _listen(self, known: Mapping[str, Counts]) -> None:
        weight = sum(self.weights.get(version, 0) for version in self._versions)
        ended = sum(counts.requests for version, counts in known.items() if version in self._silent)
        for version in self._versions:
            if version in known and known[version].requests:
                self._silent[version] = 0.0
            elif weight:
                self._silent[version] += ended * self.weights.get(version, 0) / weight

    def is_sent_something(self, version: str) -> bool:
        """Requests, or copies of some; True while nobody knows the weights."""
        return not self.weights or bool(self.weights.get(version, 0) or self.shadow.get(version, 0))

    def share(self, candidate: str, baseline: str) -> float:
        """The candidate's part of both versions' requests: as seen in the step, or else as its weights have it."""
        own, others = self.step[candidate].requests, self.step[baseline].requests
        if not own or not others:
            own, others = self.weights.get(candidate, 0), self.weights.get(baseline, 0)
        return own / (own + others) if own and others else 0.5

    def trouble(self, version: str) -> str:
        """Why nothing can be said of a version now, whatever was seen before; empty if something can."""
        missing, silent = self._missing[version], self._silent[version]
        if missing > FRESH_SECONDS:
            since = "yet" if missing == math.inf else f"for {missing:.0f} s"
            return f"nothing is known of {version} {since}" + (f" ({self._problem})" if self._problem else "")
        if silent >= _SILENT_REQUESTS:
            return f"no request of {version} has ended while its weight would give it {silent:.0f}"
        return ""
