"""Verdicts: what gates say of versions whose behaviour is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.settings.rollout import Gate, RolloutSettings, ScoreWeights
from infra.single_node.machine.stats import BUCKETS_MS
from rollout.analysis.judge import Judge, Verdict, question_alpha, samples_needed
from rollout.analysis.samples import Counts, Look

OLD, NEW = "1.0.0", "2.0.0"
ERRORS, LATENCY = Gate(metric="error_ratio"), Gate(metric="latency_p95", tolerance=1.5)

Latency = Callable[[np.random.Generator, int], NDArray[np.float64]]


def usual(generator: np.random.Generator, requests: int) -> NDArray[np.float64]:
    return generator.lognormal(3.0, 0.5, requests)


def heavy(generator: np.random.Generator, requests: int) -> NDArray[np.float64]:
    """Pareto's, whose variance is infinite, and nearly its mean too."""
    return 10 * (1 + generator.pareto(1.1, requests))


@dataclass(frozen=True)
class Behaviour:
    errors: float = 0.0
    latency: Latency | None = None
    slower: float = 1.0
    loses: float = 0.0
    """Share of its requests that never end."""
    cpu: float = 0.01

    def counts(self, generator: np.random.Generator, drawn: int) -> Counts:
        requests = int(generator.binomial(drawn, 1 - self.loses))
        errors = int(generator.binomial(requests, self.errors))
        if self.latency is None:
            return Counts(requests, errors, cpu_seconds=self.cpu * requests)
        taken = np.sort(self.slower * self.latency(generator, requests))
        below = np.searchsorted(taken, BUCKETS_MS, side="right").tolist()
        latency: dict[float, int] = dict(zip(map(float, BUCKETS_MS), below, strict=True)) | {math.inf: requests}
        return Counts(requests, errors, latency, self.cpu * requests)


@dataclass
class Endpoint:
    """Looks at an endpoint whose versions behave as said."""

    versions: Mapping[str, Behaviour]
    weights: Mapping[str, int] = field(default_factory=lambda: {OLD: 90, NEW: 10})
    rate: float = 100.0
    seed: int = 1
    now: float = 0.0

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def look(self, seconds: float = 2.0, **changed: Any) -> Look:
        self.now += seconds
        total = sum(self.weights.values())
        shares = [self.weights.get(version, 0) / total for version in self.versions]
        drawn = self.generator.multinomial(int(self.generator.poisson(self.rate * seconds)), shares)
        counts = {
            version: behaviour.counts(self.generator, int(number))
            for (version, behaviour), number in zip(self.versions.items(), drawn, strict=True)
        }
        return dataclasses.replace(Look(self.now, seconds, counts, weights=dict(self.weights)), **changed)


def judge_of(*gates: Gate, candidates: Sequence[str] = (NEW,), **settings: Any) -> Judge:
    judge = Judge(RolloutSettings(gates=gates, **settings), OLD, candidates)
    judge.begin_step(0)
    return judge


def watch(judge: Judge, endpoint: Endpoint, seconds: float) -> None:
    for _ in range(round(seconds / 2)):
        judge.see(endpoint.look())


def seconds_to_fail(judge: Judge, endpoint: Endpoint, seconds: float) -> float:
    """Until some gate fails; infinite if none does."""
    for number in range(round(seconds / 2)):
        judge.see(endpoint.look())
        if any(verdict.word == "fail" for verdict in judge.verdicts()):
            return 2.0 * (number + 1)
    return math.inf


def said(judge: Judge) -> Verdict:
    (verdict,) = judge.verdicts()
    return verdict


# -- errors


def test_a_version_that_is_as_good_passes_once_there_are_enough_requests():
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(0.01), NEW: Behaviour(0.01)})
    judge.see(endpoint.look())
    verdict = said(judge)
    assert verdict.word == "inconclusive"
    while verdict.samples < verdict.needed:
        assert verdict.word == "inconclusive"
        judge.see(endpoint.look())
        verdict = said(judge)
    assert verdict.word == "pass"
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < 0.01 < verdict.high
    assert verdict.baseline == pytest.approx(0.01, abs=0.004)


def test_a_reason_has_the_numbers():
    judge = judge_of(ERRORS)
    judge.see(Look(1, 2, {OLD: Counts(2160, 9), NEW: Counts(240, 0)}, weights={OLD: 90, NEW: 10}))
    verdict = said(judge)
    assert verdict.reason.startswith(f"seen 240 of {verdict.needed} requests; ")
    assert "0 errors of 240 requests (0 %) against 9 of 2,160 (0.417 %): e-value 0." in verdict.reason
    judge.see(Look(3, 2, {OLD: Counts(2160, 0), NEW: Counts(240, 24)}, weights={OLD: 90, NEW: 10}))
    verdict = said(judge)
    assert verdict.word == "fail"
    assert verdict.reason.startswith("24 errors of 480 requests (5 %) against 9 of 4,320 (0.208 %): e-value ")
    assert verdict.reason.endswith(", fails at 21.1")
    assert verdict.evidence > 21.1
    assert verdict.value == 0.05


def test_a_gate_that_failed_stays_so():
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(0.0), NEW: Behaviour(0.2)})
    watch(judge, endpoint, 30)
    failed = said(judge)
    endpoint.versions = {OLD: Behaviour(0.2), NEW: Behaviour(0.0)}
    watch(judge, endpoint, 60)
    assert said(judge) == failed
    assert failed.word == "fail"


def test_the_same_looks_give_the_same_verdicts():
    endpoint = Endpoint({OLD: Behaviour(0.01, usual), NEW: Behaviour(0.02, usual)})
    looks = [endpoint.look() for _ in range(60)]
    verdicts: list[list[Verdict]] = []
    for _ in range(2):
        judge = judge_of(ERRORS, LATENCY)
        for number, look in enumerate(looks):
            judge.begin_step(number // 20)
            judge.see(look)
        verdicts.append(judge.verdicts())
    assert verdicts[0] == verdicts[1]


def test_a_new_step_counts_its_samples_from_zero():
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(0.01), NEW: Behaviour(0.01)})
    watch(judge, endpoint, 300)
    assert said(judge).word == "pass"
    judge.begin_step(1)
    judge.see(endpoint.look())
    assert said(judge).word == "inconclusive"
    assert said(judge).samples < 50


def test_a_tolerance_is_of_the_odds():
    endpoint = {OLD: Behaviour(0.02), NEW: Behaviour(0.035)}
    strict, lenient = judge_of(ERRORS), judge_of(Gate(metric="error_ratio", tolerance=2.0))
    watch(strict, Endpoint(endpoint), 600)
    watch(lenient, Endpoint(endpoint), 600)
    assert said(strict).word == "fail"
    assert said(lenient).word == "pass"


def test_a_limit_holds_also_where_the_baseline_is_as_bad():
    both = {OLD: Behaviour(0.05), NEW: Behaviour(0.05)}
    limited = judge_of(Gate(metric="error_ratio", compare=False, limit=0.02))
    watch(limited, Endpoint(both), 120)
    assert said(limited).word == "fail"
    assert "with a limit of 2 %" in said(limited).reason
    compared = judge_of(Gate(metric="error_ratio", detect=0.05))
    watch(compared, Endpoint(both), 300)
    assert said(compared).word == "pass"


def test_alpha_is_shared_by_all_questions():
    gates = (Gate(metric="error_ratio", limit=0.1), LATENCY)
    assert question_alpha(RolloutSettings(gates=gates), 2) == pytest.approx(0.95 * 0.05 / 6)


# -- harm that is caught, and how soon


def test_five_percent_of_errors_in_a_tenth_of_the_traffic_are_caught_in_seconds():
    """With the gates that are the default. A look comes each 2 s, so a median of 6 s is three looks."""

    def seconds(baseline: float) -> NDArray[np.float64]:
        versions = {OLD: Behaviour(baseline), NEW: Behaviour(0.05)}
        return np.array(
            [seconds_to_fail(judge_of(ERRORS, LATENCY), Endpoint(versions, seed=seed), 300) for seed in range(60)]
        )

    healthy = seconds(0.0)
    assert np.percentile(healthy, 50) <= 8
    assert np.percentile(healthy, 95) <= 15
    assert np.percentile(seconds(0.01), 95) <= 60


@pytest.mark.parametrize("latency", [usual, heavy])
def test_a_version_that_takes_three_times_as_long_is_caught(latency: Latency):
    versions = {OLD: Behaviour(0, latency), NEW: Behaviour(0, latency, slower=3.0)}
    seconds = [seconds_to_fail(judge_of(ERRORS, LATENCY), Endpoint(versions, seed=seed), 300) for seed in range(20)]
    assert np.percentile(seconds, 90) <= (10 if latency is usual else 90)


@pytest.mark.parametrize("quantile", ["p50", "p95", "p99"])
def test_each_percentile_is_watched(quantile: str):
    gate = Gate.model_validate({"metric": f"latency_{quantile}", "tolerance": 1.2})
    judge = judge_of(gate)
    versions = {OLD: Behaviour(0, usual), NEW: Behaviour(0, usual, slower=2.0)}
    assert seconds_to_fail(judge, Endpoint(versions), 300) <= 60
    assert "ms against" in said(judge).reason


def test_a_latency_limit_is_of_the_percentile():
    versions = {OLD: Behaviour(0, usual), NEW: Behaviour(0, usual)}
    too_low = judge_of(Gate(metric="latency_p95", compare=False, limit=30.0))
    watch(too_low, Endpoint(versions), 120)
    assert said(too_low).word == "fail"
    assert "took over 30 ms where 5 % may" in said(too_low).reason
    enough = judge_of(Gate(metric="latency_p95", compare=False, limit=50.0))
    watch(enough, Endpoint(versions), 120)
    assert said(enough).word == "pass"


def test_a_verdict_names_the_bound_that_a_latency_was_judged_by():
    judge = judge_of(Gate(metric="latency_p95", compare=False, limit=45.0))
    watch(judge, Endpoint({OLD: Behaviour(latency=usual), NEW: Behaviour(latency=usual)}), 20)
    assert "took over 50 ms, the histogram's bound from the limit of 45 ms, where 5 % may" in said(judge).reason


def test_a_latency_limit_above_every_bound_never_passes():
    judge = judge_of(Gate(metric="latency_p95", compare=False, limit=1e9))
    watch(judge, Endpoint({OLD: Behaviour(latency=usual), NEW: Behaviour(latency=usual)}), 60)
    assert said(judge).word == "inconclusive"
    assert "above the histogram's last bound" in said(judge).reason


def test_a_latencys_value_and_band_are_in_milliseconds():
    judge = judge_of(LATENCY)
    watch(judge, Endpoint({OLD: Behaviour(0, usual), NEW: Behaviour(0, usual)}), 120)
    verdict, true = said(judge), math.exp(3.0 + 1.645 * 0.5)
    assert verdict.value == pytest.approx(true, rel=0.1)
    assert verdict.baseline == pytest.approx(true, rel=0.05)
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < true < verdict.high <= 80


def test_harm_in_the_last_step_is_caught_by_what_the_baseline_was():
    """All requests go to the candidate then: there is no baseline in the same seconds."""
    judge, endpoint = judge_of(ERRORS, LATENCY), Endpoint({OLD: Behaviour(0.005, usual), NEW: Behaviour(0.005, usual)})
    watch(judge, endpoint, 120)
    endpoint.weights = {OLD: 0, NEW: 100}
    judge.begin_step(1)
    watch(judge, endpoint, 120)
    assert {verdict.word for verdict in judge.verdicts()} == {"pass"}
    endpoint.versions = {OLD: Behaviour(), NEW: Behaviour(0.03, usual)}
    assert seconds_to_fail(judge, endpoint, 60) <= 60


def test_a_candidate_without_any_baseline_ever_is_inconclusive():
    judge, endpoint = judge_of(ERRORS), Endpoint({NEW: Behaviour()}, weights={OLD: 0, NEW: 100})
    watch(judge, endpoint, 300)
    assert said(judge).word == "inconclusive"
    assert said(judge).reason.startswith(f"nothing is known of {OLD} to compare with; ")


# -- no false alarms


@pytest.mark.parametrize("latency", [usual, heavy])
def test_no_difference_does_not_alarm(latency: Latency):
    """Ten minutes of looks, both failing 1 %; at most one run in twenty may."""
    versions = {OLD: Behaviour(0.01, latency), NEW: Behaviour(0.01, latency)}
    strict = Gate(metric="latency_p95")
    alarmed = 0
    for seed in range(25):
        judge, endpoint = judge_of(ERRORS, strict), Endpoint(versions, seed=seed)
        watch(judge, endpoint, 600)
        alarmed += any(verdict.word == "fail" for verdict in judge.verdicts())
    assert alarmed <= 1


# -- nothing to see


def test_no_data_is_never_a_pass():
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(), NEW: Behaviour()})
    assert said(judge).word == "inconclusive"
    assert said(judge).reason.startswith(f"nothing is known of {NEW} yet")
    watch(judge, endpoint, 300)
    assert said(judge).word == "pass"
    for _ in range(8):
        judge.see(Look(endpoint.now, 2.0, problem="Prometheus does not answer"))
    assert said(judge).word == "inconclusive"
    assert said(judge).reason.startswith(f"nothing is known of {NEW} for 16 s (Prometheus does not answer); ")
    judge.see(endpoint.look())
    assert said(judge).word == "pass"


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_series_that_ended_is_never_a_pass(version: str):
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(), NEW: Behaviour()})
    watch(judge, endpoint, 300)
    for _ in range(8):
        look = endpoint.look()
        judge.see(dataclasses.replace(look, counts={v: c for v, c in look.counts.items() if v != version}))
    assert said(judge).word == "inconclusive"
    assert version in said(judge).reason.split(";")[0]


def test_a_version_that_hangs_is_never_a_pass_and_does_not_fail_by_that_alone():
    judge, endpoint = judge_of(ERRORS), Endpoint({OLD: Behaviour(), NEW: Behaviour()})
    watch(judge, endpoint, 300)
    endpoint.versions = {OLD: Behaviour(), NEW: Behaviour(loses=1.0)}
    watch(judge, endpoint, 10)
    assert said(judge).word == "inconclusive"
    assert "no request of 2.0.0 has ended while its weight would give it" in said(judge).reason


def test_a_version_that_gets_nothing_is_not_judged():
    judge = judge_of(ERRORS, candidates=(NEW, "3.0.0"))
    versions = {OLD: Behaviour(), NEW: Behaviour(), "3.0.0": Behaviour()}
    endpoint = Endpoint(versions, weights={OLD: 90, NEW: 10, "3.0.0": 0})
    judge.see(endpoint.look())
    assert [verdict.version for verdict in judge.verdicts()] == [NEW]
    judge.see(endpoint.look(shadow={"3.0.0": 100.0}))
    assert [verdict.version for verdict in judge.verdicts()] == [NEW, "3.0.0"]


# -- throughput


def test_a_version_that_loses_requests_fails_by_throughput():
    judge = judge_of(Gate(metric="throughput"))
    endpoint = Endpoint({OLD: Behaviour(), NEW: Behaviour(loses=0.3)}, weights={OLD: 50, NEW: 50})
    assert seconds_to_fail(judge, endpoint, 300) <= 120
    assert "requests where its weight would give it" in said(judge).reason


def test_a_version_that_answers_its_share_passes_by_throughput():
    judge, endpoint = judge_of(Gate(metric="throughput", limit=5.0)), Endpoint({OLD: Behaviour(), NEW: Behaviour()})
    watch(judge, endpoint, 900)
    verdict = said(judge)
    assert verdict.word == "pass"
    assert verdict.value == pytest.approx(10, rel=0.1)
    assert verdict.baseline == pytest.approx(10, rel=0.1)


def test_a_version_below_its_rate_fails_by_throughput():
    judge = judge_of(Gate(metric="throughput", compare=False, limit=15.0))
    assert seconds_to_fail(judge, Endpoint({OLD: Behaviour(), NEW: Behaviour()}), 300) <= 60
    assert "requests/s with a limit of 15" in said(judge).reason


def test_throughput_waits_for_metrics_after_weights_moved():
    judge = judge_of(Gate(metric="throughput"))
    endpoint = Endpoint({OLD: Behaviour(), NEW: Behaviour()}, weights={OLD: 99, NEW: 1})
    for _ in range(4):
        # Half of the traffic by now, but not yet in the metrics.
        judge.see(endpoint.look(weights={OLD: 50, NEW: 50}))
    endpoint.weights = {OLD: 50, NEW: 50}
    watch(judge, endpoint, 300)
    assert said(judge).word == "pass"


# -- values by window

ACCURACY = Gate(metric="promql", name="accuracy", query="up", better="higher", tolerance=0.98, limit=0.7)


def valued(old: float | None, new: float | None, number: int, weights: Mapping[str, int] | None = None) -> Look:
    noise = 0.01 * math.sin(1.7 * number)
    values = {OLD: old + noise if old is not None else None, NEW: new - 0.5 * noise if new is not None else None}
    known = {version: value for version, value in values.items() if value is not None}
    weights = {OLD: 50, NEW: 50} if weights is None else weights
    counts = {OLD: Counts(500), NEW: Counts(500)}
    return Look(10.0 * number, 10.0, counts, {"accuracy": known}, weights=dict(weights))


@pytest.mark.parametrize(
    ("old", "new", "word"), [(0.9, 0.9, "pass"), (0.9, 0.8, "fail"), (0.9, 0.99, "pass"), (0.6, 0.6, "fail")]
)
def test_a_querys_values_are_compared_and_limited(old: float, new: float, word: str):
    judge = judge_of(ACCURACY)
    for number in range(40):
        judge.see(valued(old, new, number))
        assert number > 3 or said(judge).word == "inconclusive"
    assert said(judge).word == word
    assert said(judge).value == pytest.approx(new, abs=0.01)
    assert "windows against" in said(judge).reason


def test_a_query_that_has_no_value_any_longer_is_never_a_pass():
    judge = judge_of(ACCURACY)
    for number in range(40):
        judge.see(valued(0.9, 0.9, number))
    judge.see(dataclasses.replace(valued(0.9, None, 40), problems={"accuracy": "2.0.0: gave 0 values"}))
    assert said(judge).word == "inconclusive"
    assert said(judge).reason.startswith("2.0.0: gave 0 values; ")
    judge.see(valued(0.9, 0.9, 41))
    assert said(judge).word == "pass"


def test_without_a_baseline_now_values_are_compared_with_what_it_was():
    judge = judge_of(ACCURACY)
    for number in range(10):
        judge.see(valued(0.9, 0.9, number))
    judge.begin_step(1)
    for number in range(10, 40):
        judge.see(valued(None, 0.8, number, {OLD: 0, NEW: 100}))
    assert said(judge).word == "fail"


# -- the score


def test_the_baselines_score_is_the_sum_of_the_weights_and_lower_is_better():
    weights = ScoreWeights(response_time=2.0, resources=1.0, errors=0.5)
    judge = judge_of(ERRORS, candidates=(NEW, "3.0.0"), score=weights)
    versions = {
        OLD: Behaviour(0.01, usual),
        NEW: Behaviour(0.01, usual, slower=2.0, cpu=0.03),
        "3.0.0": Behaviour(0.03, usual, slower=0.5),
    }
    watch(judge, Endpoint(versions, weights={OLD: 40, NEW: 30, "3.0.0": 30}), 300)
    scores = judge.scores()
    assert scores[OLD] == pytest.approx(3.5)
    assert scores[NEW] == pytest.approx(2 * 2.0 + 3.0 + 0.5, rel=0.05)
    assert scores["3.0.0"] == pytest.approx(2 * 0.5 + 1.0 + 0.5 * 2, rel=0.1)


def test_without_a_known_baseline_nothing_has_a_score():
    assert judge_of(ERRORS).scores() == {}


@pytest.mark.parametrize(("slower", "word"), [(1.0, "pass"), (2.0, "fail")])
def test_the_score_is_judged_by_windows(slower: float, word: str):
    judge = judge_of(Gate(metric="score", tolerance=1.1))
    versions = {OLD: Behaviour(0.0, usual), NEW: Behaviour(0.0, usual, slower=slower)}
    watch(judge, Endpoint(versions), 400)
    assert said(judge).word == word
    assert said(judge).value == pytest.approx(1 + slower, rel=0.1)


# -- without requests


@pytest.mark.parametrize("gate", [ERRORS, LATENCY, Gate(metric="throughput", limit=50.0), Gate(metric="score")])
def test_a_version_that_is_sent_nothing_before_a_switch_does_not_fail_by_that(gate: Gate):
    judge, endpoint = judge_of(gate), Endpoint({OLD: Behaviour(), NEW: Behaviour()}, weights={OLD: 100, NEW: 0})
    watch(judge, endpoint, 120)
    assert judge.verdicts() == []
    judge.begin_step(1)
    endpoint.weights = {OLD: 0, NEW: 100}
    watch(judge, endpoint, 60)
    assert said(judge).word != "fail"


# -- a winner


@pytest.mark.parametrize("gate", [ERRORS, Gate(metric="latency_p95"), Gate(metric="score")])
def test_the_version_that_is_better_than_every_other_wins(gate: Gate):
    good, bad = Behaviour(0.002, usual), Behaviour(0.05, usual, slower=2.0)
    judge = judge_of(gate, candidates=(NEW, "3.0.0"), strategy="ab")
    endpoint = Endpoint({OLD: bad, NEW: good, "3.0.0": bad}, weights={OLD: 1, NEW: 1, "3.0.0": 1})
    judge.see(endpoint.look())
    assert judge.winner() is None
    watch(judge, endpoint, 400)
    assert judge.winner() == NEW


def test_of_two_that_are_as_good_none_wins():
    judge = judge_of(ERRORS, candidates=(NEW, "3.0.0"), strategy="ab")
    good, bad = Behaviour(0.002), Behaviour(0.05)
    watch(judge, Endpoint({OLD: bad, NEW: good, "3.0.0": good}, weights={OLD: 1, NEW: 1, "3.0.0": 1}), 400)
    assert judge.winner() is None


def test_a_rollout_that_adapts_looks_for_a_winner_too():
    judge = judge_of(ERRORS, strategy="adaptive")
    endpoint = Endpoint({OLD: Behaviour(0.05), NEW: Behaviour(0.002)})
    judge.see(endpoint.look())
    assert judge.winner() is None
    watch(judge, endpoint, 400)
    assert judge.winner() == NEW


def test_only_a_rollout_that_looks_for_a_winner_has_one():
    judge = judge_of(ERRORS)
    watch(judge, Endpoint({OLD: Behaviour(0.3), NEW: Behaviour()}), 120)
    assert judge.winner() is None


# -- how many samples


@pytest.mark.parametrize("gate", [ERRORS, LATENCY, Gate(metric="throughput"), Gate(metric="score"), ACCURACY])
def test_each_gate_knows_how_many_samples_it_needs(gate: Gate):
    settings = RolloutSettings(gates=(gate,))
    few, many = (samples_needed(gate, settings, 0.01, share, step=0) for share in (0.1, 0.5))
    assert 5 <= few < 10_000
    assert 5 <= many < 10_000
    assert samples_needed(gate, settings, 0.01, 0.1, step=4) > few
    stricter = settings.model_copy(update={"power": 0.99})
    assert samples_needed(gate, stricter, 0.01, 0.1) >= few


def test_harm_of_the_size_that_is_asked_for_is_caught_with_the_samples_that_are_needed():
    caught = 0
    for seed in range(100):
        judge = judge_of(ERRORS)
        endpoint = Endpoint({OLD: Behaviour(0.01), NEW: Behaviour(0.03)}, seed=seed)
        verdict = said(judge)
        while verdict.word == "inconclusive":
            watch(judge, endpoint, 10)
            verdict = said(judge)
        caught += verdict.word == "fail"
    assert caught >= 93
