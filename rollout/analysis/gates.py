"""The gates of a rollout, each with its eye on one candidate: what counts for it, by which test, and in which words."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from infra.settings.rollout import Gate, RolloutSettings, ScoreWeights
from rollout.analysis.observed import Observed, Totals
from rollout.analysis.samples import WINDOW_SECONDS, Counts, Look
from rollout.analysis.sequential import (
    MeanTest,
    RateTest,
    RatioTest,
    TwoSampleTest,
    compared_samples,
    limited_samples,
    mean_band,
    mean_windows,
    rate_samples,
    ratio_band,
    times_odds,
)
from rollout.analysis.verdict import Verdict, Word

QUANTILES = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}

FEWEST_WINDOWS = 5
"""Of gates that judge windows: before that they don't pass."""

BAND_SHARE = 0.05
"""Of alpha, what is kept for the band of a baseline that has no requests any longer."""

_DETECT = {"error_ratio": 0.02, "throughput": 0.2, "score": 1.2, "promql": 1.2, **dict.fromkeys(QUANTILES, 0.1)}
_FEWEST_IN_WINDOW = 10
"""Requests of each side in a window of the score: a median of fewer is mostly noise."""
_ERROR_FLOOR = 0.01
"""Added to both error ratios of the score, so that a baseline without errors can be divided by."""
_SETTLED_SECONDS = 10.0
"""How long weights must have been as they are before throughput counts: metrics come a scrape or two later."""
_THICKER = 1.5
"""A latency gate's threshold may have so many times the requests above it that its percentile has."""
_LARGEST_LOG = 700.0
"""Of an e-value that a float still holds."""

Number = tuple[int, int]
"""How many of how many."""


def watch(gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> Watch:
    """The gate's eye on this candidate, whose every question has the level `alpha`."""
    if gate.metric == "error_ratio":
        return _Errors(gate, settings, alpha, baseline, candidate)
    if gate.metric == "throughput":
        return _Throughput(gate, settings, alpha, baseline, candidate)
    if gate.metric == "score":
        return _Score(gate, settings, alpha, baseline, candidate)
    if gate.metric == "promql":
        return _Query(gate, settings, alpha, baseline, candidate)
    return _Latency(gate, settings, alpha, baseline, candidate)


def detect(gate: Gate) -> float:
    """The harm that must not be missed, as `Gate.detect` measures it."""
    return _DETECT[gate.metric] if gate.detect is None else gate.detect


def ratio_needed(
    gate: Gate, alpha: float, power: float, level: float, share: float, limit: float | None, step: int
) -> int:
    """Requests that a gate of ratios asks for. `level` is the baseline's; at a share of 1 it has no requests now."""
    needed = 0
    if gate.compare:
        allowed = min(times_odds(level, gate.tolerance if gate.metric == "error_ratio" else 1.0), 0.999)
        worse = _worse(allowed, detect(gate))
        if share >= 1:
            needed = limited_samples(allowed, worse, alpha, power, step)
        else:
            needed = compared_samples(allowed, worse, share, alpha, power, step)
    if limit is not None and limit < 1:
        needed = max(needed, limited_samples(limit, _worse(limit, detect(gate)), alpha, power, step))
    return needed


def throughput_needed(gate: Gate, alpha: float, power: float, share: float, step: int) -> int:
    """Answers of the candidate that a gate of throughput asks for."""
    needed, missing = 1, min(detect(gate), 0.99)
    if gate.compare and share < 1:
        fair = (1 - share) / (1 - share + gate.tolerance * share)
        worse = (1 - share) / (1 - share + gate.tolerance * share * (1 - missing))
        needed = math.ceil(limited_samples(fair, worse, alpha, power, step) * (1 - worse))
    if gate.limit:
        needed = max(needed, rate_samples(missing, alpha, power, step))
    return needed


class Watch(ABC):
    """One gate's eye on one candidate."""

    def __init__(self, gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> None:
        self.gate = gate
        self.baseline = baseline
        self.candidate = candidate
        self._alpha = alpha
        self._power = settings.power
        self._fallen: Verdict | None = None

    @property
    def failed(self) -> bool:
        return self._fallen is not None

    @abstractmethod
    def see(self, look: Look, before: Observed) -> None:
        """Takes in a look. `before` is without it: how a look is judged must not depend on the look."""

    def conclude(self, observed: Observed) -> None:
        """Has the gate fail if the evidence is there; `observed` is with the look."""
        if self._fallen is None and self._log >= -math.log(self._alpha):
            self._fallen = self._verdict("fail", self._figures(observed), "")

    def begin_step(self) -> None:
        for test in self._tests:
            test.begin_step()
        self._reset()

    def renew(self) -> None:
        """Has the tests begin anew beside what they have, so that luck in the step so far hides nothing either."""
        for test in self._tests:
            test.renew()

    def verdict(self, observed: Observed) -> Verdict:
        if self._fallen is not None:
            return self._fallen
        figures = self._figures(observed)
        trouble = observed.trouble(self.candidate)
        if self.gate.compare and not trouble and observed.is_sent_something(self.baseline):
            trouble = observed.trouble(self.baseline)
        trouble = trouble or figures.trouble
        if not trouble and figures.samples < figures.needed:
            trouble = f"seen {figures.samples:,} of {figures.needed:,} {figures.unit}"
        return self._verdict("inconclusive" if trouble else "pass", figures, trouble)

    # -- of each metric

    @property
    @abstractmethod
    def _tests(self) -> list[_Test]: ...

    @abstractmethod
    def _reset(self) -> None:
        """Forgets what verdicts tell of the step."""

    @abstractmethod
    def _figures(self, observed: Observed) -> _Figures: ...

    # -- of all

    @property
    def _log(self) -> float:
        return max((test.log for test in self._tests), default=0.0)

    def _verdict(self, word: Word, figures: _Figures, trouble: str) -> Verdict:
        evidence = math.exp(min(self._log, _LARGEST_LOG))
        said = f"{figures.text}: e-value {_figure(evidence)}, fails at {_figure(1 / self._alpha)}"
        low, high = figures.band
        return Verdict(
            gate=self.gate.label,
            version=self.candidate,
            word=word,
            reason=f"{trouble}; {said}" if trouble else said,
            samples=figures.samples,
            needed=figures.needed,
            value=figures.value,
            baseline=figures.baseline,
            low=low,
            high=high,
            evidence=evidence,
        )


class _Test(Protocol):
    @property
    def log(self) -> float: ...

    def begin_step(self) -> None: ...

    def renew(self) -> None: ...


@dataclass(frozen=True)
class _Figures:
    """What a verdict says in numbers."""

    text: str
    samples: int
    needed: int
    unit: str = "requests"
    value: float | None = None
    baseline: float | None = None
    band: tuple[float | None, float | None] = (None, None)
    trouble: str = ""
    """Why they say nothing, if so."""


class _Ratio(Watch):
    """A ratio: how many of the requests have something, an error or a slow answer."""

    def __init__(self, gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> None:
        super().__init__(gate, settings, alpha, baseline, candidate)
        self._compared = TwoSampleTest(self._tolerance)
        self._limited = RatioTest()
        self._reset()

    @property
    @abstractmethod
    def _tolerance(self) -> float:
        """How many times the baseline's odds are allowed."""

    @property
    @abstractmethod
    def _limit(self) -> float | None:
        """The ratio that is allowed whatever the baseline's."""

    @abstractmethod
    def _pair(self, candidate: Counts, baseline: Counts, before: Observed) -> tuple[Number, Number]:
        """How many of both have it."""

    @abstractmethod
    def _beyond_limit(self, candidate: Counts) -> Number:
        """How many are beyond the gate's limit."""

    @abstractmethod
    def _of_baseline(self, observed: Observed) -> Number:
        """How many of the baseline's have it, in the whole rollout."""

    @abstractmethod
    def _ratio_figures(self, observed: Observed, text: str, needed: int, trouble: str) -> _Figures: ...

    @abstractmethod
    def _compared_text(self, own: Number, others: Number) -> str: ...

    @abstractmethod
    def _limited_text(self, over: Number) -> str: ...

    @property
    def _tests(self) -> list[_Test]:
        compared: list[_Test] = [self._compared] if self.gate.compare else []
        return compared if self._limit is None else [*compared, self._limited]

    def _reset(self) -> None:
        self._own: Number = (0, 0)
        self._others: Number = (0, 0)
        self._over: Number = (0, 0)

    def see(self, look: Look, before: Observed) -> None:
        candidate = None if look.problem else look.counts.get(self.candidate)
        if candidate is None:
            return
        if self._limit is not None:
            over = self._beyond_limit(candidate)
            self._over = _added(self._over, over)
            self._limited.see(*over, self._limit)
        if self.gate.compare:
            self._compare(candidate, look, before)

    def _compare(self, candidate: Counts, look: Look, before: Observed) -> None:
        baseline = look.counts.get(self.baseline)
        gone = bool(look.weights) and not look.weights.get(self.baseline)
        if baseline is None and not gone:
            return
        own, others = self._pair(candidate, baseline or Counts(), before)
        self._own, self._others = _added(self._own, own), _added(self._others, others)
        if not gone or others[1]:
            self._compared.see(own, others)
            return
        high = self._highest(before)
        if high is not None:
            self._compared.see_alone(own, high)

    def _highest(self, observed: Observed) -> float | None:
        """What the baseline's ratio was, at most, while it had requests."""
        happened, of = self._of_baseline(observed)
        return ratio_band(happened, of, BAND_SHARE * self._alpha)[1] if of else None

    def _figures(self, observed: Observed) -> _Figures:
        happened, of = self._of_baseline(observed)
        level, share, trouble, parts = (happened + 0.5) / (of + 1), 1.0, "", list[str]()
        if observed.is_sent_something(self.baseline):
            share = observed.share(self.candidate, self.baseline)
        else:
            level = self._highest(observed) or level
        needed = ratio_needed(self.gate, self._alpha, self._power, level, share, self._limit, observed.step_index)
        if self.gate.compare:
            parts.append(self._compared_text(self._own, self._others if self._others[1] else (happened, of)))
            trouble = "" if of else f"nothing is known of {self.baseline} to compare with"
        if self._limit is not None:
            parts.append(self._limited_text(self._over))
        return self._ratio_figures(observed, " and ".join(parts), needed, trouble)


class _Errors(_Ratio):
    @property
    def _tolerance(self) -> float:
        return self.gate.tolerance

    @property
    def _limit(self) -> float | None:
        return self.gate.limit

    def _pair(self, candidate: Counts, baseline: Counts, before: Observed) -> tuple[Number, Number]:
        return (candidate.errors, candidate.requests), (baseline.errors, baseline.requests)

    def _beyond_limit(self, candidate: Counts) -> Number:
        return candidate.errors, candidate.requests

    def _of_baseline(self, observed: Observed) -> Number:
        totals = observed.rollout[self.baseline]
        return totals.errors, totals.requests

    def _compared_text(self, own: Number, others: Number) -> str:
        return f"{_of(own, 'errors of {} requests')} against {_of(others, 'of {}')}"

    def _limited_text(self, over: Number) -> str:
        return f"{_of(over, 'errors of {} requests')} with a limit of {_percent(self.gate.limit or 0.0)}"

    def _ratio_figures(self, observed: Observed, text: str, needed: int, trouble: str) -> _Figures:
        own, others = observed.step[self.candidate], observed.step[self.baseline]
        return _Figures(
            text,
            own.requests,
            needed,
            value=own.errors / own.requests if own.requests else None,
            baseline=others.errors / others.requests if others.requests else None,
            band=ratio_band(own.errors, own.requests) if own.requests else (None, None),
            trouble=trouble,
        )


class _Latency(_Ratio):
    """Slow answers: those above a threshold, which is the baseline's percentile before the look.

    If the candidate takes at most `tolerance` times as long as the baseline, then at most as many of its requests are
    above `tolerance` times any threshold as are of the baseline's above the threshold itself. Thresholds are bounds of
    the histogram, and the candidate's is rounded up, which is in its favour. Only counts matter: no tail is too heavy.
    """

    @property
    def _tolerance(self) -> float:
        return 1.0

    @property
    def _quantile(self) -> float:
        return QUANTILES[self.gate.metric]

    @property
    def _limit(self) -> float | None:
        return None if self.gate.limit is None else 1 - self._quantile

    def _reset(self) -> None:
        super()._reset()
        self._bounds: tuple[float, float] | None = None
        self._limit_bound: float | None = None

    def _threshold(self, observed: Observed) -> float | None:
        """The baseline's percentile so far, as a bound; the one below it where hardly more requests are above that."""
        totals = observed.rollout[self.baseline]
        thickest = _THICKER * (1 - self._quantile) * totals.timed
        fitting = (bound for bound in sorted(totals.latency_ms) if totals.slower(bound) <= thickest)
        bound = next(fitting, math.inf)
        return None if bound == math.inf else bound

    def _pair(self, candidate: Counts, baseline: Counts, before: Observed) -> tuple[Number, Number]:
        threshold = self._threshold(before)
        if threshold is None:
            return (0, 0), (0, 0)
        allowed = bound_from(candidate.latency_ms, threshold * self.gate.tolerance)
        self._bounds = threshold, allowed
        return _slow(candidate.latency_ms, allowed), _slow(baseline.latency_ms, threshold)

    def _beyond_limit(self, candidate: Counts) -> Number:
        if candidate.latency_ms:
            self._limit_bound = bound_from(candidate.latency_ms, self.gate.limit or 0.0)
        return _slow(candidate.latency_ms, bound_from(candidate.latency_ms, self.gate.limit or 0.0))

    def _of_baseline(self, observed: Observed) -> Number:
        threshold, totals = self._threshold(observed), observed.rollout[self.baseline]
        return (0, 0) if threshold is None else (totals.slower(threshold), totals.timed)

    def _compared_text(self, own: Number, others: Number) -> str:
        if self._bounds is None:
            return f"{own[1]:,} requests"
        threshold, allowed = self._bounds
        slow = _of(own, "of {} requests")
        return f"{slow} took over {_figure(allowed)} ms against {_of(others, 'of {}')} over {_figure(threshold)} ms"

    def _limited_text(self, over: Number) -> str:
        slow, limit, bound = _of(over, "of {} requests"), self.gate.limit or 0.0, self._limit_bound
        rounded = ""
        if bound is not None and bound not in (limit, math.inf):
            rounded = f", the histogram's bound from the limit of {_figure(limit)} ms,"
            limit = bound
        return f"{slow} took over {_figure(limit)} ms{rounded} where {_percent(1 - self._quantile)} may"

    def _ratio_figures(self, observed: Observed, text: str, needed: int, trouble: str) -> _Figures:
        own, others = observed.step[self.candidate], observed.step[self.baseline]
        low, high = own.quantile_band_ms(self._quantile) if own.timed else (None, None)
        if self._limit_bound == math.inf:
            limit = _figure(self.gate.limit or 0.0)
            trouble = trouble or f"its limit of {limit} ms is above the histogram's last bound"
        return _Figures(
            text,
            own.timed,
            needed,
            value=own.quantile_ms(self._quantile),
            baseline=others.quantile_ms(self._quantile),
            band=(low, None if high == math.inf else high),
            trouble=trouble,
        )


class _Throughput(Watch):
    """Requests that are answered well: against what the version's weight would give it, and in a second."""

    def __init__(self, gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> None:
        super().__init__(gate, settings, alpha, baseline, candidate)
        self._compared = RatioTest()
        self._limited = RateTest()
        self._reset()

    @property
    def _tests(self) -> list[_Test]:
        compared: list[_Test] = [self._compared] if self.gate.compare else []
        return [*compared, self._limited] if self.gate.limit else compared

    def _reset(self) -> None:
        self._answered = self._seconds = 0.0
        self._expected: float | None = None
        self._both: Number = (0, 0)

    def see(self, look: Look, before: Observed) -> None:
        candidate = None if look.problem else look.counts.get(self.candidate)
        moved = look.weights != before.weights or look.shadow != before.shadow
        # Before a switch nothing is to be answered.
        idle = not before.is_sent_something(self.candidate)
        if candidate is None or idle or moved or before.settled_seconds + look.seconds < _SETTLED_SECONDS:
            return
        seconds, answered = look.seconds + before.unseen_seconds, candidate.requests - candidate.errors
        self._answered += answered
        self._seconds += seconds
        if self.gate.limit:
            self._limited.see(answered, self.gate.limit * seconds)
        baseline = look.counts.get(self.baseline)
        fair = _fair_share(look, self.candidate, self.baseline)
        if not self.gate.compare or baseline is None or fair is None:
            return
        others = baseline.requests - baseline.errors
        self._both = _added(self._both, (answered, answered + others))
        self._expected = (self._expected or 0.0) + fair * (answered + others)
        # More of the baseline's among both than its weight explains are fewer of the candidate's.
        allowed = (1 - fair) / (1 - fair + self.gate.tolerance * fair)
        self._compared.see(others, answered + others, allowed)

    def _figures(self, observed: Observed) -> _Figures:
        alone = not observed.is_sent_something(self.baseline)
        share = 1.0 if alone else observed.share(self.candidate, self.baseline)
        parts: list[str] = []
        if self._expected is not None:
            parts.append(
                f"answered {self._answered:,.0f} requests where its weight would give it {self._expected:,.0f}"
            )
        rate = self._answered / self._seconds if self._seconds else None
        if self.gate.limit:
            parts.append(f"answered {_figure(rate or 0.0)} requests/s with a limit of {_figure(self.gate.limit)}")
        band: tuple[float | None, float | None] = (None, None)
        if self._both[1] and self._seconds:
            low, high = ratio_band(*self._both)
            band = low * self._both[1] / self._seconds, high * self._both[1] / self._seconds
        return _Figures(
            " and ".join(parts) or f"answered {self._answered:,.0f} requests",
            round(self._answered),
            throughput_needed(self.gate, self._alpha, self._power, share, observed.step_index),
            value=rate,
            baseline=self._expected / self._seconds if self._expected is not None and self._seconds else None,
            band=band,
        )


class _Windows(Watch):
    """A value that is read once a window."""

    def __init__(self, gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> None:
        super().__init__(gate, settings, alpha, baseline, candidate)
        self._compared = MeanTest()
        self._limited = MeanTest()
        self._baseline_before = (0.0, 0)
        """Sum and number of the baseline's values in the whole rollout."""
        self._since_window = 0.0
        self._reset()

    @property
    def _tests(self) -> list[_Test]:
        compared: list[_Test] = [self._compared] if self.gate.compare else []
        return compared if self.gate.limit is None else [*compared, self._limited]

    def _reset(self) -> None:
        self._values: list[float] = []
        self._baselines: list[float] = []

    @property
    def _reference(self) -> float | None:
        total, count = self._baseline_before
        return total / count if count else None

    def _take(self, value: float | None, baseline: float | None, gone: bool) -> None:
        """Takes in a window's values. `gone`: the baseline has none on purpose, and is taken as it was."""
        if value is None:
            return
        sign = -1.0 if self.gate.better == "higher" else 1.0
        if self.gate.limit is not None:
            self._limited.see(sign * (value - self.gate.limit))
        against = self._reference if gone and baseline is None else baseline
        if self.gate.compare:
            if against is None:
                return
            self._compared.see(sign * (value - self.gate.tolerance * against))
        self._since_window = 0.0
        self._values.append(value)
        if baseline is not None:
            total, count = self._baseline_before
            self._baseline_before = total + baseline, count + 1
            self._baselines.append(baseline)

    def _needed(self, step: int) -> int:
        times = max(detect(self.gate), 1.0 + 1e-6)
        harm = 1 - 1 / times if self.gate.better == "higher" else times - 1
        needed = FEWEST_WINDOWS
        reference = self._reference
        sides = [(self._compared, None if reference is None else self.gate.tolerance * reference)]
        sides = [*(sides if self.gate.compare else []), (self._limited, self.gate.limit)]
        for test, level in sides:
            if level is not None and test.deviation is not None and test.windows >= FEWEST_WINDOWS:
                # Times 0 is no harm; then it is one as great as what windows differ by anyway.
                shift = abs(harm * level) or test.deviation
                effect = min(shift / test.deviation, 100.0) if test.deviation else 100.0
                needed = max(needed, mean_windows(effect, self._alpha, self._power, step))
        return needed

    def _figures(self, observed: Observed) -> _Figures:
        value, baseline = _mean(self._values), _mean(self._baselines)
        shown = _figure(value) if value is not None else "nothing"
        text = f"{shown} in the mean of {len(self._values)} windows"
        if self.gate.compare:
            against = baseline if baseline is not None else self._reference
            text += f" against {_figure(against) if against is not None else 'nothing'}"
        if self.gate.limit is not None:
            text += f" with a limit of {_figure(self.gate.limit)}"
        return _Figures(
            text,
            len(self._values),
            self._needed(observed.step_index),
            unit="windows",
            value=value,
            baseline=baseline,
            band=mean_band(self._values, 0.05) or (None, None),
            trouble=self._trouble(observed),
        )

    def _trouble(self, observed: Observed) -> str:
        problem = observed.problems.get(self.gate.label, "")
        if self._since_window > 3 * WINDOW_SECONDS:
            return f"no value for {self._since_window:.0f} s" + (f" ({problem})" if problem else "")
        return problem


class _Query(_Windows):
    """Any PromQL."""

    def see(self, look: Look, before: Observed) -> None:
        self._since_window += look.seconds
        values: Mapping[str, float] = {} if look.problem else look.values.get(self.gate.label, {})
        gone = bool(look.weights) and not look.weights.get(self.baseline)
        self._take(values.get(self.candidate), values.get(self.baseline), gone)


class _Score(_Windows):
    """The score of windows of some seconds, normalised by what the baseline was like before each."""

    def __init__(self, gate: Gate, settings: RolloutSettings, alpha: float, baseline: str, candidate: str) -> None:
        super().__init__(gate, settings, alpha, baseline, candidate)
        self._weights = settings.score
        self._clear()
        self._normal = Totals()
        """Of the baseline, in all windows before."""

    def _clear(self) -> None:
        self._own, self._others, self._seconds = Totals(), Totals(), 0.0

    def begin_step(self) -> None:
        super().begin_step()
        self._clear()

    def see(self, look: Look, before: Observed) -> None:
        counts = dict[str, Counts]() if look.problem else look.counts
        gone = bool(look.weights) and not look.weights.get(self.baseline)
        candidate, baseline = counts.get(self.candidate), counts.get(self.baseline)
        if candidate is None or (baseline is None and not gone):
            return
        self._seconds += look.seconds + before.unseen_seconds
        self._own.add(candidate)
        self._others.add(baseline or Counts())
        few = self._own.requests < _FEWEST_IN_WINDOW or (self._others.requests < _FEWEST_IN_WINDOW and not gone)
        if few or self._seconds < WINDOW_SECONDS:
            return
        own, others = self._own, self._others
        self._clear()
        if self._normal.requests:
            others_score = score(others, self._normal, self._weights) if others.requests else None
            self._take(score(own, self._normal, self._weights), others_score, gone)
        self._normal.add(Counts(others.requests, others.errors, others.latency_ms, others.cpu_seconds))


def score(totals: Totals, reference: Totals, weights: ScoreWeights) -> float:
    """`P = w1·T + w2·R + w3·E` of what has requests, normalised by a reference that has some; lower is better.

    What the reference doesn't know (latency, processor time) counts as the same. Both error ratios are taken
    with 0.01 more, so that a reference without errors can be divided by: 1 % more errors than none count twice.
    """
    time, normal_time = totals.quantile_ms(0.5), reference.quantile_ms(0.5)
    cpu, normal_cpu = totals.cpu_seconds / totals.requests, reference.cpu_seconds / reference.requests
    errors, normal_errors = totals.errors / totals.requests, reference.errors / reference.requests
    return (
        weights.response_time * (time / normal_time if time is not None and normal_time else 1.0)
        + weights.resources * (cpu / normal_cpu if cpu and normal_cpu else 1.0)
        + weights.errors * (errors + _ERROR_FLOOR) / (normal_errors + _ERROR_FLOOR)
    )


def _worse(ratio: float, by: float) -> float:
    return ratio + by if ratio + by < 0.999 else (1 + ratio) / 2


def _fair_share(look: Look, candidate: str, baseline: str) -> float | None:
    """The candidate's part of both versions' requests by weight; None where one of them gets none."""
    own, others = float(look.weights.get(candidate, 0)), look.weights.get(baseline, 0)
    own = own or look.shadow.get(candidate, 0.0) / 100 * sum(look.weights.values())
    return own / (own + others) if own and others else None


def bound_from(bounds_ms: Iterable[float], least_ms: float) -> float:
    """The first bound of a histogram that is at least so much, but for the last digit of a product."""
    return min((bound for bound in bounds_ms if bound >= least_ms * (1 - 1e-9)), default=math.inf)


def _slow(latency_ms: Mapping[float, int], bound_ms: float) -> Number:
    total = latency_ms.get(math.inf, 0)
    return (total - latency_ms[bound_ms], total) if bound_ms in latency_ms else (0, 0)


def _added(first: Number, second: Number) -> Number:
    return first[0] + second[0], first[1] + second[1]


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _of(number: Number, words: str) -> str:
    """`(12, 240)` as `12 errors of 240 requests (5 %)`."""
    happened, of = number
    share = f" ({_percent(happened / of)})" if of else ""
    return f"{happened:,} {words.format(f'{of:,}')}{share}"


def _percent(ratio: float) -> str:
    return f"{_figure(100 * ratio)} %"


def _figure(value: float) -> str:
    """Three digits that count."""
    if value == 0 or 0.001 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 or value == 0 else 2 - math.floor(math.log10(abs(value)))
        text = f"{value:,.{max(0, digits)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.1e}"
