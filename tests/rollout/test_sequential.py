"""The sequential tests: exact where that can be counted out, and simulated with fixed seeds where it can't."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rollout.analysis.processes import Starts, stake
from rollout.analysis.sequential import (
    ALTERNATIVES,
    MOST_SAMPLES,
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
    table_logs,
    times_odds,
)

NEVER = 10**9
FIXED = 224
"""Requests a side with which a one-sided z-test of 5 % finds 5 % errors against 1 % with a power of 80 %."""

Ratio = float | Sequence[float]


@dataclass(frozen=True)
class Split:
    """Requests of a look, of both sides."""

    candidate: int
    baseline: int


def alarms(
    split: Split, ratios: tuple[Ratio, Ratio], looks: int, runs: int, alpha: float = 0.05, seed: int = 1
) -> NDArray[np.int64]:
    """The look at which `TwoSampleTest` first reaches 1/alpha, by run; NEVER where it doesn't.

    As the class would, but for all runs at once; `test_runs_at_once_are_those_of_the_class` compares.
    """
    own, others = draw(split, ratios, looks, runs, seed)
    base = split.baseline + 1
    pairs, index = np.unique(own * base + others, return_inverse=True)
    tables = np.array(
        [table_logs(pair // base, split.candidate, pair % base, split.baseline) for pair in pairs.tolist()]
    )
    index = index.reshape(runs, looks)
    prior = np.log([weight for _, weight in ALTERNATIVES])
    logs = np.zeros((runs, len(ALTERNATIVES)))
    first = np.full(runs, NEVER)
    for look in range(looks):
        logs += tables[index[:, look]]
        value = stake(0) * np.exp(logs + prior).sum(axis=1) + 1 - stake(0)
        first = np.where((first == NEVER) & (value >= 1 / alpha), look + 1, first)
    return first


def draw(
    split: Split, ratios: tuple[Ratio, Ratio], looks: int, runs: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors by run and look of both sides; a ratio may be one for each look."""
    generator = np.random.default_rng(seed)
    own, others = (np.broadcast_to(np.asarray(ratio), (runs, looks)) for ratio in ratios)
    return generator.binomial(split.candidate, own), generator.binomial(split.baseline, others)


def test_runs_at_once_are_those_of_the_class():
    split, looks, runs = Split(20, 180), 60, 20
    own, others = draw(split, (0.05, 0.01), looks, runs, seed=3)
    expected: list[int] = []
    for run in range(runs):
        test, first = TwoSampleTest(), NEVER
        for look in range(looks):
            test.see((int(own[run, look]), split.candidate), (int(others[run, look]), split.baseline))
            if first == NEVER and test.log >= math.log(20):
                first = look + 1
        expected.append(first)
    assert alarms(split, (0.05, 0.01), looks, runs, seed=3).tolist() == expected
    assert NEVER not in expected


# -- what can be counted out


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("sizes", [(1, 9), (4, 4), (20, 180), (50, 3)])
def test_a_tables_e_values_have_expectation_one_at_the_tolerance(sizes: tuple[int, int], tolerance: float):
    of, of_before = sizes
    for total in (1, 2, (of + of_before) // 2, of + of_before - 1, of + of_before):
        numbers = range(max(0, total - of_before), min(of, total) + 1)
        for odds, _ in ALTERNATIVES:
            index = [each for each, _ in ALTERNATIVES].index(odds)
            expectation = sum(
                float(stats.nchypergeom_fisher.pmf(number, of + of_before, of, total, tolerance))
                * math.exp(table_logs(number, of, total - number, of_before, tolerance)[index])
                for number in numbers
            )
            assert expectation == pytest.approx(1, abs=1e-6)


def test_a_tables_e_values_have_an_expectation_below_one_for_a_better_candidate():
    chances = [float(stats.nchypergeom_fisher.pmf(number, 200, 20, 12, 0.6)) for number in range(13)]
    for index in range(len(ALTERNATIVES)):
        values = [math.exp(table_logs(number, 20, 12 - number, 180)[index]) for number in range(13)]
        assert sum(chance * value for chance, value in zip(chances, values, strict=True)) < 1


@given(of=st.integers(1, 300), of_before=st.integers(1, 300), data=st.data())
def test_a_tables_evidence_rises_with_the_candidates_errors_among_as_many(of: int, of_before: int, data: st.DataObject):
    total = data.draw(st.integers(1, of + of_before - 1))
    numbers = range(max(0, total - of_before), min(of, total) + 1)
    rows = [table_logs(number, of, total - number, of_before) for number in numbers]
    for lower, higher in itertools.pairwise(rows):
        assert all(low < high for low, high in zip(lower, higher, strict=True))


@given(
    tables=st.lists(
        st.integers(1, 40).flatmap(
            lambda of: st.tuples(st.integers(0, of), st.just(of), st.integers(0, 2), st.integers(40, 400))
        ),
        max_size=6,
    )
)
def test_the_order_of_looks_does_not_matter(tables: list[tuple[int, int, int, int]]):
    there, back = TwoSampleTest(), TwoSampleTest()
    for happened, of, happened_before, of_before in tables:
        there.see((happened, of), (happened_before, of_before))
    for happened, of, happened_before, of_before in reversed(tables):
        back.see((happened, of), (happened_before, of_before))
    assert there.log == pytest.approx(back.log, abs=1e-9)


def test_large_tables_are_as_exact_as_small_ones():
    # scipy sums differently, and gives the ratio of two probabilities of one table directly.
    for of, of_before, total, happened in ((10_000, 90_000, 3_000, 350), (1_000_000, 1_000_000, 10_000, 5_100)):
        for value, (odds, _) in zip(table_logs(happened, of, total - happened, of_before), ALTERNATIVES, strict=True):
            if odds > 10:
                continue
            numbers = np.arange(0, min(of, total) + 1)
            weights = stats.hypergeom.logpmf(numbers, of + of_before, of, total)
            expected = happened * math.log(odds) - np.logaddexp.reduce(weights + numbers * math.log(odds))
            assert value == pytest.approx(expected, abs=1e-5)


def test_requests_that_come_one_at_a_time_are_compared_in_blocks():
    single, whole = TwoSampleTest(), TwoSampleTest()
    for _ in range(10):
        single.see((1, 1), (0, 0))
        single.see((0, 0), (0, 1))
    whole.see((10, 10), (0, 10))
    assert single.log == pytest.approx(whole.log)
    assert single.log > math.log(1000)


def test_tables_without_contrast_say_nothing():
    for table in ((0, 10, 0, 90), (10, 10, 90, 90), (3, 10, 0, 0), (0, 0, 3, 90)):
        assert table_logs(*table) == [0.0] * len(ALTERNATIVES)


def test_stakes_never_sum_to_more_than_one():
    assert sum(weight for _, weight in ALTERNATIVES) == pytest.approx(1)
    assert sum(stake(step, start) for step in range(600) for start in range(600)) == pytest.approx(1, abs=1e-3)


def test_a_test_that_saw_nothing_has_no_evidence_however_often_it_begins_anew():
    test = TwoSampleTest()
    for _ in range(20):
        test.begin_step()
        for _ in range(20):
            test.renew()
            assert test.log <= 1e-9


class Fixed:
    """A process whose evidence is what it is said to be."""

    log = 0.0


def test_of_many_processes_the_weakest_is_dropped():
    starts = Starts(Fixed)
    first, strong = starts.first, starts.first
    first.log = -50.0
    for _ in range(200):
        starts.renew()
        strong = list(starts)[-1]
        strong.log = 1.0
    assert len(list(starts)) < 100
    assert first not in list(starts)
    assert strong in list(starts)


@given(limit=st.floats(0.001, 0.9), of=st.integers(1, 60))
def test_a_ratio_tests_expectation_is_one_at_the_limit(limit: float, of: int):
    expectation = 0.0
    for number in range(of + 1):
        test = RatioTest()
        test.see(number, of, limit)
        expectation += float(stats.binom.pmf(number, of, limit)) * math.exp(test.log)
    assert expectation == pytest.approx(1)


def test_one_error_is_too_many_where_none_is_allowed():
    test = RatioTest()
    test.see(0, 1000, 0.0)
    assert test.log == pytest.approx(0)
    test.see(1, 1000, 0.0)
    test.see(0, 1000, 0.0)
    assert test.log == math.inf


def test_a_rate_tests_expectation_is_one_at_what_is_expected():
    expectation = 0.0
    for came in range(200):
        test = RateTest()
        test.see(came, 30.0)
        expectation += float(stats.poisson.pmf(came, 30.0)) * math.exp(test.log)
    assert expectation == pytest.approx(1)


def test_odds_are_multiplied():
    assert times_odds(0.5, 3) == pytest.approx(0.75)
    assert times_odds(0.01, 1) == pytest.approx(0.01)
    assert times_odds(1.0, 2) == 1.0


# -- false alarms


@pytest.mark.parametrize(
    ("split", "ratio"),
    [
        (Split(50, 50), 0.01),
        (Split(10, 90), 0.01),
        (Split(90, 10), 0.01),
        (Split(10, 90), 0.3),
        (Split(10, 90), [0.01] * 900 + [0.2] * 60 + [0.01] * 840),
    ],
    ids=["half", "a tenth", "nine tenths", "often", "an incident of both"],
)
def test_no_difference_looked_at_every_second_for_half_an_hour_alarms_at_most_one_time_in_twenty(
    split: Split, ratio: Ratio
):
    first = alarms(split, (ratio, ratio), looks=1800, runs=1000)
    assert np.mean(first < NEVER) <= 0.05


def test_a_z_test_that_is_looked_at_every_second_would_alarm_many_times_more_often():
    split, looks, runs = Split(50, 50), 1800, 500
    own, others = (errors.cumsum(axis=1) for errors in draw(split, (0.01, 0.01), looks, runs, seed=1))
    seconds = np.arange(1, looks + 1)
    pooled = (own + others) / (100 * seconds)
    deviation = np.sqrt(pooled * (1 - pooled) * 2 / (50 * seconds))
    z = (own - others) / (50 * seconds) / np.where(deviation > 0, deviation, 1)
    peeking = np.mean(((z > 1.645) & (own + others >= 10)).any(axis=1))
    assert peeking > 0.3
    assert np.mean(alarms(split, (0.01, 0.01), looks, runs) < NEVER) <= 0.05


def test_bad_requests_that_come_in_bursts_do_not_alarm():
    """A client whose every request fails sends 30 at a time; which version gets one is drawn by the router."""
    generator = np.random.default_rng(5)
    alarmed = 0
    for _ in range(200):
        test, highest = TwoSampleTest(), 0.0
        for _ in range(300):
            bad = 30 if generator.random() < 0.05 else 0
            own_bad, own_good = int(generator.binomial(bad, 0.1)), int(generator.binomial(100, 0.1))
            test.see((own_bad, own_bad + own_good), (bad - own_bad, bad - own_bad + 100 - own_good))
            highest = max(highest, test.log)
        alarmed += highest >= math.log(20)
    assert alarmed <= 10


# -- detection


def test_five_percent_against_one_is_caught_with_about_the_fixed_size():
    assert stats.norm.ppf(0.95) == pytest.approx(1.645, abs=1e-3)
    requests = alarms(Split(8, 8), (0.05, 0.01), looks=200, runs=4000) * 8
    assert np.mean(requests <= 1.5 * FIXED) >= 0.75
    assert requests.mean() <= 1.2 * FIXED
    assert np.mean(requests <= 3 * FIXED) >= 0.95
    assert requests.max() < NEVER


def test_five_percent_against_one_in_a_tenth_of_the_traffic_is_caught_within_one_and_a_half_fixed_sizes():
    requests = alarms(Split(6, 54), (0.05, 0.01), looks=200, runs=4000) * 6
    assert np.mean(requests <= 1.5 * FIXED) >= 0.95
    assert requests.mean() <= FIXED


def test_no_test_at_all_could_catch_it_in_95_percent_of_runs_with_336_requests_a_side():
    """The most powerful test of one point of the hypothesis bounds every test of all of it (Neyman and Pearson)."""
    size, common = 336, 0.026
    numbers = np.arange(60)
    both = np.outer(stats.binom.pmf(numbers, size, 0.05), stats.binom.pmf(numbers, size, 0.01)).ravel()
    same = np.outer(stats.binom.pmf(numbers, size, common), stats.binom.pmf(numbers, size, common)).ravel()
    order = np.argsort(-both / same)
    allowed = same[order].cumsum() <= 0.05
    best = both[order][: int(allowed.sum()) + 1].sum()
    assert 0.93 < best < 0.95


@pytest.mark.parametrize(
    ("ratio", "worse", "share", "alpha"),
    [(0.01, 0.05, 0.5, 0.05), (0.01, 0.05, 0.1, 0.05), (0.001, 0.021, 0.1, 0.024), (0.05, 0.15, 0.1, 0.024)],
)
def test_power_is_reached_with_the_samples_that_are_asked_for(ratio: float, worse: float, share: float, alpha: float):
    needed = compared_samples(ratio, worse, share, alpha, 0.95)
    looks = 12
    split = Split(needed // looks, round(needed * (1 - share) / share) // looks)
    caught = np.mean(alarms(split, (worse, ratio), looks, runs=3000, alpha=alpha) < NEVER)
    assert 0.94 <= caught <= 0.995


def test_power_is_reached_against_a_limit():
    needed = limited_samples(0.01, 0.03, 0.05, 0.95)
    caught = 0.0
    for number in range(needed + 1):
        test = RatioTest()
        test.see(number, needed, 0.01)
        if test.log >= math.log(20):
            caught += float(stats.binom.pmf(number, needed, 0.03))
    assert 0.95 <= caught <= 0.97


def test_power_is_reached_against_a_rate():
    expected = rate_samples(0.2, 0.05, 0.95) / 0.8
    generator = np.random.default_rng(2)
    caught = 0
    for _ in range(1000):
        test = RateTest()
        test.see(int(generator.poisson(0.8 * expected)), expected)
        caught += test.log >= math.log(20)
    assert caught / 1000 >= 0.94


def test_more_samples_are_asked_for_where_less_is_to_be_seen():
    asked = [compared_samples(0.01, worse, 0.1, 0.05, 0.95) for worse in (0.1, 0.05, 0.03, 0.02)]
    assert asked == sorted(asked)
    assert compared_samples(0.01, 0.05, 0.1, 0.05, 0.95, step=3) > compared_samples(0.01, 0.05, 0.1, 0.05, 0.95)
    assert compared_samples(0.01, 0.0100001, 0.1, 0.05, 0.95) == MOST_SAMPLES


@pytest.mark.parametrize("beginning", ["a step", "within a step", "never"])
def test_harm_that_begins_late_is_not_hidden_by_luck_before(beginning: str):
    """A version without an error for an hour, while the baseline has 2 %, may not live on that."""
    test = TwoSampleTest()
    for _ in range(30):
        for _ in range(60):
            test.see((0, 20), (4, 180))
        if beginning == "within a step":
            test.renew()
    if beginning == "a step":
        test.begin_step()
    seconds = 0
    while test.log < math.log(20) and seconds < 600:
        test.see((2, 20), (4, 180))
        seconds += 2
    assert seconds == 600 if beginning == "never" else seconds <= 80


# -- means of windows


def crossed(windows: NDArray[np.float64], alpha: float) -> bool:
    test = MeanTest()
    for value in windows.tolist():
        test.see(value)
        if test.log >= -math.log(alpha):
            return True
    return False


@pytest.mark.parametrize("family", ["normal", "uneven"])
def test_windows_that_differ_by_chance_alarm_at_most_one_time_in_twenty(family: str):
    generator = np.random.default_rng(4)
    values = generator.normal(0, 3, (500, 300)) if family == "normal" else generator.gamma(2, 1, (500, 300)) - 2
    assert np.mean([crossed(run, 0.05) for run in values]) <= 0.05


def test_a_lower_mean_never_counts_against_a_version():
    generator = np.random.default_rng(4)
    assert not any(crossed(run, 0.05) for run in generator.normal(-1, 1, (200, 100)))


@pytest.mark.parametrize("effect", [0.5, 1.0, 3.0])
def test_power_is_reached_with_the_windows_that_are_asked_for(effect: float):
    generator = np.random.default_rng(4)
    runs = generator.normal(effect, 1, (600, mean_windows(effect, 0.05, 0.95)))
    assert np.mean([crossed(run, 0.05) for run in runs]) >= 0.94


def test_windows_that_are_all_the_same_are_certain_after_some():
    test = MeanTest()
    for number in range(8):
        assert (test.log >= math.log(20)) == (number >= 5)
        test.see(0.1)


# -- bands


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5])
def test_a_ratios_band_holds_it_at_every_look(ratio: float):
    generator = np.random.default_rng(6)
    missed = 0
    for _ in range(200):
        errors = np.cumsum(generator.binomial(20, ratio, 100))
        for look in range(0, 100, 3):
            low, high = ratio_band(int(errors[look]), 20 * (look + 1))
            if not low <= ratio <= high:
                missed += 1
                break
    assert missed <= 10


def test_a_ratios_band_ends_where_ratios_do_and_narrows():
    assert ratio_band(0, 0) == (0.0, 1.0)
    assert ratio_band(0, 100)[0] == 0.0
    assert ratio_band(100, 100)[1] == 1.0
    widths = [high - low for low, high in (ratio_band(of // 20, of) for of in (100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02


def test_a_means_band_holds_it_at_every_look():
    generator = np.random.default_rng(6)
    missed = 0
    for _ in range(200):
        values = generator.normal(7, 2, 60).tolist()
        bands = (mean_band(values[:count], 0.05) for count in range(2, 60, 2))
        missed += any(band is not None and not band[0] <= 7 <= band[1] for band in bands)
    assert missed <= 10
    assert mean_band([1.0], 0.05) is None
