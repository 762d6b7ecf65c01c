"""Tests and confidence bands that stay valid however often they are looked at: e-processes. Pure.

An e-process starts at 1, and while its hypothesis is true its expectation at any time that one may choose to stop is at
most 1. So it ever reaches 1/alpha with a probability of at most alpha (Ville 1939), and a product of independent
e-values, or a weighted mean of e-processes, is one again. docs/decisions/gates.md has the choice and the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

from rollout.analysis.processes import Ratios, Starts, log_sum, stake

ALTERNATIVES: tuple[tuple[float, float], ...] = (
    (1.15, 0.03),
    (1.4, 0.04),
    (2.0, 0.07),
    (3.5, 0.36),
    (7.0, 0.24),
    (20.0, 0.12),
    (100.0, 0.08),
    (1000.0, 0.06),
)
"""How many times the hypothesis' odds it may be in truth, and how much is staked on it. Most is where a version that is
broken is against one that works; what is small takes long in any case."""

_ODDS = tuple(odds for odds, _ in ALTERNATIVES)
_LOG_ODDS = tuple(math.log(odds) for odds in _ODDS)
_PRIOR = tuple(weight for _, weight in ALTERNATIVES)

_RATES = (0.95, 0.9, 0.8, 0.65, 0.5, 0.3, 0.1, 0.01)
"""What share of the expected rate may come in truth; the stakes on them are equal."""

_BLOCK = 20
"""Requests of both sides that are compared at once, at least. A table of n requests with a random split loses about
1/n of what they say, all of it where one side has none."""

_NEGLIGIBLE = 1e-17

_EFFECT_VARIANCE = 1.0
"""Of the prior of `MeanTest` on the mean over the standard deviation."""


class SequentialTest:
    """Evidence against a hypothesis, of processes that begin with it, with each step and now and then in between."""

    def __init__(self, prior: Sequence[float] = _PRIOR) -> None:
        self._starts = Starts(lambda: Ratios(prior))

    @property
    def log(self) -> float:
        """Natural log of the e-value: 0 at the start; the hypothesis falls at -log(alpha)."""
        return self._starts.log

    def begin_step(self) -> None:
        """Adds a process that begins now, with a new step."""
        self._starts.begin_step()

    def renew(self) -> None:
        """Adds a process that begins now, within the step."""
        self._starts.renew()

    def _multiply(self, logs: Sequence[float]) -> None:
        for process in self._starts:
            process.multiply(logs)


class TwoSampleTest(SequentialTest):
    """Whether something happens more often among a candidate's requests than among a baseline's of the same seconds.

    The hypothesis is that the candidate's odds are at most `tolerance` times the baseline's, whatever these are and
    however they change from one table to the next. Given a table's margins, the candidate's number is then
    hypergeometric (noncentral, Fisher's, with a tolerance), and the likelihood ratio to greater odds is an e-value:
    exact for any sizes. Stratified by time as the safe logrank test (Grünwald, Ly, Pérez-Ortiz and ter Schure 2021),
    conditional as Fisher's exact test; for the unconditional kind see Turner, Ly and Grünwald 2024.

    As the router draws the version of each request, this is a randomisation test too: bursts of bad requests, retries
    and incidents that both versions share don't count against either.
    """

    def __init__(self, tolerance: float = 1.0) -> None:
        super().__init__()
        self._tolerance = tolerance
        self._open = (0, 0, 0, 0)

    def see(self, candidate: tuple[int, int], baseline: tuple[int, int]) -> None:
        """Takes in what both did since the last time, each as (happened, of how many)."""
        happened, of, happened_before, of_before = self._open
        of, of_before = of + candidate[1], of_before + baseline[1]
        self._open = (happened + candidate[0], of, happened_before + baseline[0], of_before)
        if of and of_before and of + of_before >= _BLOCK:
            self._close()

    def see_alone(self, candidate: tuple[int, int], ratio: float) -> None:
        """Takes in what the candidate did while the baseline did nothing, against a ratio that the baseline once had.

        A hypothesis about another time: it holds as far as the ratio would be the same now.
        """
        self._multiply(_ratio_logs(*candidate, times_odds(ratio, self._tolerance)))

    def begin_step(self) -> None:
        self._close()
        super().begin_step()

    def _close(self) -> None:
        # Strata of few requests each say less than one of them all; which request is whose never depends on
        # how they went, so that neither does the moment when a stratum is closed.
        happened, of, happened_before, of_before = self._open
        self._open = (0, 0, 0, 0)
        self._multiply(table_logs(happened, of, happened_before, of_before, self._tolerance))


class RatioTest(SequentialTest):
    """Whether something happens more often than in a share `limit` of all: the binomial likelihood ratio."""

    def see(self, happened: int, of: int, limit: float) -> None:
        self._multiply(_ratio_logs(happened, of, limit))


class RateTest(SequentialTest):
    """Whether fewer come in a time than `expected`: the likelihood ratio of a Poisson process to slower ones."""

    def __init__(self) -> None:
        super().__init__([1 / len(_RATES)] * len(_RATES))

    def see(self, came: int, expected: float) -> None:
        self._multiply(_rate_logs(came, expected))


class MeanTest:
    """Whether a value, seen once a window, is above 0 in the mean: a t-test that may be looked at after each.

    The Bayes factor of a normal effect size under the right Haar prior on the scale. It is an e-process for normal
    values of any variance, from the second on (Lai 1976; Pérez-Ortiz, Lardy, de Heide and Grünwald 2024), and for
    others as the windows grow many, as asymptotic confidence sequences are (Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas 2024). Windows must not overlap.
    """

    def __init__(self) -> None:
        self._starts = Starts(_Moments)

    @property
    def log(self) -> float:
        return self._starts.log

    @property
    def windows(self) -> int:
        return self._starts.first.count

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the values; None before the second."""
        return self._starts.first.deviation

    def see(self, value: float) -> None:
        for process in self._starts:
            process.add(value)

    def begin_step(self) -> None:
        self._starts.begin_step()

    def renew(self) -> None:
        self._starts.renew()


class _Moments:
    """Mean and variance of values that come one by one (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        before = value - self._mean
        self._mean += before / self.count
        self._squares += before * (value - self._mean)

    @property
    def deviation(self) -> float | None:
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None

    @property
    def log(self) -> float:
        """Log of the Bayes factor. A mean below 0 counts as 0, so that it rises with the mean."""
        deviation = self.deviation
        if deviation is None:
            return 0.0
        # Values that don't vary at all are certain; a hair of spread keeps that finite.
        spread = max(deviation, 1e-9 * abs(self._mean)) or 1.0
        return _t_factor(max(self._mean, 0.0) * math.sqrt(self.count) / spread, self.count)


def mean_band(values: Sequence[float], alpha: float) -> tuple[float, float] | None:
    """Where the mean is, at every time with probability 1 - alpha; None while that could be anywhere."""
    moments = _Moments()
    for value in values:
        moments.add(value)
    count, deviation = moments.count, moments.deviation
    if deviation is None:
        return None
    grown = 1 + count * _EFFECT_VARIANCE
    bound = (math.sqrt(grown) / alpha) ** (2 / count)
    if bound >= grown:
        return None
    reach = math.sqrt((count - 1) * (bound - 1) / (1 - bound / grown)) * deviation / math.sqrt(count)
    mean = math.fsum(values) / count
    return mean - reach, mean + reach


def ratio_band(happened: int, of: int, alpha: float = 0.05) -> tuple[float, float]:
    """Where a ratio is, at every time with probability 1 - alpha: a confidence sequence.

    What a beta mixture of all ratios doesn't exclude (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021), with
    Jeffreys' prior.
    """
    if of == 0:
        return 0.0, 1.0
    allowed = -math.log(alpha)
    share = happened / of
    low = 0.0 if happened == 0 else _bisect(lambda ratio: ratio_log(happened, of, ratio) > allowed, 0.0, share)
    high = 1.0 if happened == of else _bisect(lambda ratio: ratio_log(happened, of, ratio) <= allowed, share, 1.0)
    return low, high


def ratio_log(happened: int, of: int, ratio: float) -> float:
    """Log of the e-value against the hypothesis that the ratio is this one, in either direction."""
    if (ratio <= 0 and happened) or (ratio >= 1 and happened < of):
        return math.inf
    likelihood = 0.0
    if happened:
        likelihood += happened * math.log(ratio)
    if happened < of:
        likelihood += (of - happened) * math.log1p(-ratio)
    mixture = math.lgamma(happened + 0.5) + math.lgamma(of - happened + 0.5) - math.lgamma(of + 1) - math.log(math.pi)
    return mixture - likelihood


def times_odds(ratio: float, times: float) -> float:
    """The ratio whose odds are so many times those of this one."""
    return ratio if ratio >= 1 else times * ratio / (1 - ratio + times * ratio)


def table_logs(happened: int, of: int, happened_before: int, of_before: int, tolerance: float = 1.0) -> list[float]:
    """Logs of a table's e-values, by alternative: `happened` of the candidate's `of`, and the baseline's."""
    total = happened + happened_before
    if not of or not of_before or total in {0, of + of_before}:
        return [0.0] * len(_ODDS)
    normalisers = _normalisers(of, of_before, total, tolerance)
    return [happened * log_odds - normaliser for log_odds, normaliser in zip(_LOG_ODDS, normalisers, strict=True)]


@lru_cache(maxsize=4096)
def _normalisers(of: int, of_before: int, total: int, tolerance: float) -> tuple[float, ...]:
    at_tolerance = _log_normaliser(of, of_before, total, tolerance)
    return tuple(_log_normaliser(of, of_before, total, tolerance * odds) - at_tolerance for odds in _ODDS)


def _log_normaliser(of: int, of_before: int, total: int, odds: float) -> float:
    """Log of the sum over u of C(of, u) C(of_before, total - u) odds^u, less the log of of! of_before!.

    Summed outwards from the greatest term as far as terms count, each from its neighbour: as many as the distribution
    is wide, whatever the numbers.
    """
    low, high = max(0, total - of_before), min(total, of)
    mode = min(max(_mode(of, of_before, total, odds), low), high)
    sum_ = term = 1.0
    for u in range(mode, high):
        term *= (of - u) * (total - u) * odds / ((u + 1) * (of_before - total + u + 1))
        sum_ += term
        if term < _NEGLIGIBLE * sum_:
            break
    term = 1.0
    for u in range(mode, low, -1):
        term *= u * (of_before - total + u) / ((of - u + 1) * (total - u + 1) * odds)
        sum_ += term
        if term < _NEGLIGIBLE * sum_:
            break
    falls = math.lgamma(mode + 1) + math.lgamma(of - mode + 1)
    falls += math.lgamma(total - mode + 1) + math.lgamma(of_before - total + mode + 1)
    return math.log(sum_) + mode * math.log(odds) - falls


def _mode(of: int, of_before: int, total: int, odds: float) -> int:
    """Of Fisher's noncentral hypergeometric distribution (Liao and Rosen 2001)."""
    a = odds - 1
    b = total - of_before - (of + total + 2) * odds
    c = (of + 1) * (total + 1) * odds
    return int(-2 * c / (b - math.sqrt(b * b - 4 * a * c)))


def _ratio_logs(happened: int, of: int, limit: float) -> list[float]:
    """Logs of the e-values of a binomial number, by alternative, against a ratio of at most `limit`."""
    if limit <= 0:
        return [math.inf if happened else 0.0] * len(_ODDS)
    if limit >= 1:
        return [0.0] * len(_ODDS)
    return [
        happened * log_odds - of * math.log1p(limit * (odds - 1))
        for odds, log_odds in zip(_ODDS, _LOG_ODDS, strict=True)
    ]


def _rate_logs(came: int, expected: float) -> list[float]:
    return [came * math.log(rate) + (1 - rate) * expected for rate in _RATES]


def _t_factor(t: float, count: int) -> float:
    freedom, grown = count - 1, 1 + count * _EFFECT_VARIANCE
    squares = t * t / freedom
    return (freedom + 1) / 2 * (math.log1p(squares) - math.log1p(squares / grown)) - math.log(grown) / 2


def _bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Where a statement that is true below ends."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


# -- how many samples a test asks for


def compared_samples(ratio: float, worse: float, share: float, alpha: float, power: float, step: int = 0) -> int:
    """Requests of the candidate with which `TwoSampleTest` finds `worse` against the baseline's `ratio`.

    Args:
        ratio: of the baseline, what the tolerance allows included.
        worse: of the candidate, above it.
        share: of both sides' requests that are the candidate's, between 0 and 1.
        alpha: the test's.
        power: the probability that it has found it by then, by the first-order reliability method: the evidence is
            looked at where the boundary is most likely crossed (Hasofer and Lind 1974).
        step: index of the step with which the harm begins.
    """
    spread = NormalDist().inv_cdf(power)
    wanted = -math.log(alpha) - math.log(stake(step))
    # What one more of the candidate adds to the log likelihood ratio, and one more of the baseline takes.
    odds = worse * (1 - ratio) / (ratio * (1 - worse))
    loss = math.log1p(share * (odds - 1))
    gain = math.log(odds) - loss

    def suffices(of: int) -> bool:
        of_before = max(1, round(of * (1 - share) / share))
        deviation = math.sqrt(of * worse * (1 - worse))
        deviation_before = math.sqrt(of_before * ratio * (1 - ratio))
        length = math.hypot(gain * deviation, loss * deviation_before)
        happened = of * worse - spread * gain * deviation**2 / length
        happened_before = of_before * ratio + spread * loss * deviation_before**2 / length
        table = (max(0, round(happened)), of, min(of_before, round(happened_before)), of_before)
        logs = table_logs(*table)
        return log_sum([math.log(weight) + log for weight, log in zip(_PRIOR, logs, strict=True)]) >= wanted

    return _fewest(suffices)


def limited_samples(limit: float, worse: float, alpha: float, power: float, step: int = 0) -> int:
    """Requests with which `RatioTest` finds a ratio of `worse`, above its limit, with probability `power`."""
    wanted = -math.log(alpha) - math.log(stake(step))

    def suffices(of: int) -> bool:
        logs = _ratio_logs(_binomial_quantile(1 - power, of, worse), of, limit)
        return log_sum([math.log(weight) + log for weight, log in zip(_PRIOR, logs, strict=True)]) >= wanted

    return _fewest(suffices)


def mean_windows(effect: float, alpha: float, power: float, step: int = 0) -> int:
    """Windows with which `MeanTest` finds a mean of `effect` standard deviations above 0, with probability `power`."""
    wanted = -math.log(alpha) - math.log(stake(step))
    spread = NormalDist().inv_cdf(power)

    def suffices(count: int) -> bool:
        t = effect * math.sqrt(count) - spread
        return count > 1 and t > 0 and _t_factor(t, count) >= wanted

    return _fewest(suffices)


def rate_samples(missing: float, alpha: float, power: float, step: int = 0) -> int:
    """What has come of a rate whose share `missing` is missing when `RateTest` finds it, with probability `power`."""
    wanted = -math.log(alpha) - math.log(stake(step))
    spread = NormalDist().inv_cdf(power)

    def suffices(came: int) -> bool:
        # So many come late with probability 1 - power; more is evidence for less.
        expected = max(came - spread * math.sqrt(came), 0.0) / (1 - missing)
        return log_sum(_rate_logs(came, expected)) - math.log(len(_RATES)) >= wanted

    return _fewest(suffices)


MOST_SAMPLES = 10**7
"""What is answered where not even so many would do."""


def _fewest(suffices: Callable[[int], bool]) -> int:
    high = 1
    while not suffices(high):
        high *= 2
        if high >= MOST_SAMPLES:
            return MOST_SAMPLES
    low = high // 2
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _binomial_quantile(probability: float, of: int, ratio: float) -> int:
    """The least number whose distribution function is at least so much, less one: what comes less often than that."""
    log_term = of * math.log1p(-ratio)
    step = math.log(ratio) - math.log1p(-ratio)
    below = 0.0
    for number in range(of + 1):
        below += math.exp(log_term)
        if below > probability:
            return number
        log_term += math.log(of - number) - math.log(number + 1) + step if number < of else 0.0
    return of
