"""The steps of every strategy: what holds of all of them, and what each is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from infra.settings.rollout import RolloutSettings, StrategyName
from rollout.strategies import Step, StrategyError, adapt, moving, plan_steps, winner_step

STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
patient = settings(suppress_health_check=[HealthCheck.too_slow])
"""Of the machine: it may be busy."""

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "2.0.0", "3.0.0")


def options(strategy: StrategyName, **other: Any) -> RolloutSettings:
    return RolloutSettings(strategy=strategy, **other)


def weights_of(steps: list[Step]) -> list[tuple[int, ...]]:
    return [tuple(step.weights.values()) for step in steps]


def shares(weights: Mapping[str, int]) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {version: Fraction(weight, total) for version, weight in weights.items()}


class Case:
    """A move drawn at random, and its steps."""

    def __init__(
        self, current: dict[str, int], target: dict[str, int], replicas: dict[str, int], settings: RolloutSettings
    ) -> None:
        self.versions = list(dict.fromkeys([*current, *target]))
        self.current = shares({version: current.get(version, 0) for version in self.versions})
        self.target = shares({version: target.get(version, 0) for version in self.versions})
        self.replicas = replicas
        self.settings = settings
        try:
            self.steps = plan_steps(current, target, settings, replicas)
        except StrategyError:
            # What is refused is the business of other tests.
            assume(False)
        self.moving = [version for version in self.versions if self.current[version] != self.target[version]]
        self.bystanders = [version for version in self.versions if version not in self.moving]

    def __repr__(self) -> str:
        return f"{self.settings.strategy} {self.current} -> {self.target} {self.replicas}: {self.steps}"


@st.composite
def cases(draw: st.DrawFn, *strategies: StrategyName) -> Case:
    versions = draw(st.lists(st.sampled_from(VERSIONS), min_size=2, max_size=5, unique=True))
    weight = st.one_of(st.integers(0, 20), st.integers(0, 1000), st.just(0))
    current = {version: draw(weight) for version in versions}
    target = {version: draw(weight) for version in versions}
    assume(any(current.values()) and any(target.values()))
    if draw(st.booleans()):
        # Some stand by: what the others have together is divided anew, and theirs is as it was.
        still = versions[: len(versions) // 2]
        movers = [version for version in versions if version not in still]
        pool, wanted = sum(current[v] for v in movers), sum(target[v] for v in movers)
        assume(pool and wanted)
        target = {v: current[v] * wanted if v in still else target[v] * pool for v in versions}
    percent = st.floats(0.5, 100).map(lambda value: round(value, 1))
    rising = st.lists(percent, min_size=1, max_size=6, unique=True).map(lambda found: tuple(sorted(found)))
    surge, unavailable = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any))
    steps: Any = draw(st.one_of(rising, st.sampled_from(["linear", "exponential"])))
    chosen = RolloutSettings(
        strategy=draw(st.sampled_from(strategies or STRATEGIES)),
        steps=steps,
        factor=draw(st.floats(1.1, 4)),
        max_surge=surge,
        max_unavailable=unavailable,
        shadow_percent=draw(st.floats(1, 100)),
    )
    replicas = {version: draw(st.integers(0, 8)) for version in versions}
    return Case(current, target, replicas, chosen)


# -- what holds of every strategy


@patient
@given(cases())
def test_weights_are_integers_with_one_sum_and_never_all_0(case: Case) -> None:
    sums = {sum(step.weights.values()) for step in case.steps}
    assert len(sums) == 1
    assert 0 < sums.pop() <= 1_000_000
    for step in case.steps:
        assert list(step.weights) == case.versions
        assert all(type(weight) is int and weight >= 0 for weight in step.weights.values())


@patient
@given(cases())
def test_the_last_step_is_the_target(case: Case) -> None:
    assert shares(case.steps[-1].weights) == case.target
    assert case.steps[-1].percent == 100


@patient
@given(cases())
def test_bystanders_keep_exactly_their_share(case: Case) -> None:
    for step in case.steps:
        now = shares(step.weights)
        assert {v: now[v] for v in case.bystanders} == {v: case.current[v] for v in case.bystanders}
        assert not set(case.bystanders) & (step.capacity.keys() | step.shadow.keys())


@patient
@given(cases())
def test_percentages_never_fall_and_100_is_the_target(case: Case) -> None:
    percents = [step.percent for step in case.steps]
    assert percents == sorted(percents)
    assert percents[0] >= 0
    for step in case.steps:
        assert (step.percent == 100) == (shares(step.weights) == case.target)


@patient
@given(cases("canary", "blue-green", "canary-blue-green", "shadow", "ab", "adaptive"))
def test_a_percentage_is_how_far_every_share_has_come(case: Case) -> None:
    for step in case.steps:
        for version, share in shares(step.weights).items():
            come = case.current[version] + (case.target[version] - case.current[version]) * step.percent / 100
            # At most one unit of rounding.
            assert abs(float(share - come)) < 1 / sum(step.weights.values())


@patient
@given(cases())
def test_percentages_rise_with_every_move_of_what_gains(case: Case) -> None:
    gaining = [v for v in case.versions if case.target[v] > case.current[v]]
    before, gained = 0.0, sum((case.current[v] for v in gaining), Fraction())
    for step in case.steps:
        now = sum((shares(step.weights)[v] for v in gaining), Fraction())
        if len(gaining) == 1 and now - gained > Fraction(1, sum(step.weights.values())):
            assert step.percent > before
        before, gained = step.percent, now


@patient
@given(cases())
def test_nobody_has_requests_without_a_replica(case: Case) -> None:
    for step in case.steps:
        for version in case.moving:
            has_requests = step.weights[version] > 0 or version in step.shadow
            if has_requests and (case.target[version] > case.current[version] or case.replicas[version]):
                assert step.capacity[version] >= 1


@patient
@given(cases())
def test_gates_look_where_something_new_has_requests_and_nowhere_else(case: Case) -> None:
    for step in case.steps:
        if step.bake_seconds == 0:
            assert not step.shadow
        if step.percent == 0 and case.settings.strategy != "blue-green":
            assert bool(step.shadow) == (step.bake_seconds > 0)
    assert any(step.bake_seconds for step in case.steps)


@patient
@given(cases("canary", "blue-green", "canary-blue-green", "shadow", "ab", "adaptive"))
def test_weights_alone_take_a_step_back(case: Case) -> None:
    """Nobody has fewer replicas than at the start, or in any step before."""
    before = {v: case.replicas[v] for v in case.moving if case.current[v] > case.target[v] and case.replicas[v]}
    for step in case.steps:
        assert all(step.capacity[version] >= replicas for version, replicas in before.items())
        before = step.capacity


@patient
@given(cases("rolling"))
def test_rolling_stays_within_its_limits_there_and_back(case: Case) -> None:
    before = {v: case.replicas[v] if case.current[v] else 0 for v in case.moving}
    start, end = sum(before.values()), sum(case.steps[-1].capacity.values())
    for step in case.steps:
        # Each version has the more of both on the way, whichever way it is.
        on_the_way = sum(max(before[v], step.capacity[v]) for v in case.moving)
        assert on_the_way <= max(start, end) + case.settings.max_surge
        assert sum(step.capacity.values()) >= max(1, min(start, end) - case.settings.max_unavailable)
        assert step.capacity != before
        before = step.capacity


@patient
@given(cases("rolling"))
def test_rolling_moves_every_version_s_replicas_one_way(case: Case) -> None:
    for version in case.moving:
        counts = [step.capacity[version] for step in case.steps]
        if case.target[version] > case.current[version]:
            assert counts == sorted(counts)
        else:
            assert counts == sorted(counts, reverse=True)


# -- canary


def test_a_canary_has_the_given_percentages_in_weights_as_they_are_read() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary", steps=(5, 25, 100)), {"a": 1, "b": 1})
    assert weights_of(steps) == [(95, 5), (75, 25), (0, 100)]
    assert [step.percent for step in steps] == [5, 25, 100]


def test_percentages_that_end_early_are_followed_by_the_target() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary", steps=(10,)), {})
    assert weights_of(steps) == [(90, 10), (0, 100)]


def test_linear_steps_add_and_exponential_ones_multiply() -> None:
    linear = plan_steps({"a": 1}, {"b": 1}, options("canary", steps="linear", first=10, increment=30), {})
    assert [step.percent for step in linear] == [10, 40, 70, 100]
    exponential = plan_steps({"a": 1}, {"b": 1}, options("canary", steps="exponential", first=2, factor=3), {})
    assert [step.percent for step in exponential] == [2, 6, 18, 54, 100]


def test_steps_that_would_never_end_are_refused() -> None:
    slow = options("canary", steps="exponential", factor=1.001)
    with pytest.raises(StrategyError, match=r"factor 1\.001 are more than 100; let them grow faster"):
        plan_steps({"a": 1}, {"b": 1}, slow, {})


def test_percentages_are_of_what_moves_and_bystanders_stay() -> None:
    steps = plan_steps({"a": 80, "b": 20}, {"c": 80, "b": 20}, options("canary", steps=(25, 100)), {})
    assert [step.weights for step in steps] == [{"a": 60, "b": 20, "c": 20}, {"a": 0, "b": 20, "c": 80}]


def test_shares_that_no_common_sum_says_are_rounded_and_the_target_is_exact() -> None:
    current, target = {"a": 7919, "b": 1}, {"a": 1, "b": 7877}
    steps = plan_steps(current, target, options("canary", steps=(33.3, 100)), {})
    total = sum(steps[0].weights.values())
    assert total <= 1_000_000
    exact = Fraction(7919, 7920) + Fraction(333, 1000) * (Fraction(1, 7878) - Fraction(7919, 7920))
    assert abs(steps[0].weights["a"] - exact * total) < 1
    assert shares(steps[1].weights) == shares(target)


def test_a_target_that_weights_cant_say_is_refused() -> None:
    with pytest.raises(StrategyError, match="b=1 a=1000000: the sum of these is above 1000000"):
        plan_steps({"b": 1}, {"a": 1_000_000, "b": 1}, options("canary"), {})


def test_a_percentage_that_weights_cant_say_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"b would have less than 1 of 1000000"):
        plan_steps({"a": 1}, {"b": 1}, options("canary", steps=(0.00001,)), {})


def test_a_version_without_replicas_grows_with_its_share() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary", steps=(5, 50, 100)), {"a": 6, "b": 0})
    assert [step.capacity for step in steps] == [{"a": 6, "b": 1}, {"a": 6, "b": 3}, {"a": 6, "b": 6}]


def test_replicas_that_a_config_asks_for_stay() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary"), {"a": 6, "b": 2})
    assert {step.capacity["b"] for step in steps} == {2}


def test_somebody_approves_the_steps_that_are_to_be_approved() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary", steps=(5, 50, 100), approve=(50,)), {})
    assert [step.approval for step in steps] == [False, True, False]


def test_a_percentage_to_approve_that_is_skipped_is_approved_with_the_next() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("blue-green", approve=(50,)), {})
    assert [step.approval for step in steps] == [False, True]


def test_a_percentage_to_approve_above_100_is_refused() -> None:
    with pytest.raises(StrategyError, match="approve: given 101"):
        plan_steps({"a": 1}, {"b": 1}, options("canary", approve=(101,)), {})


# -- the others


def test_rolling_moves_replica_by_replica_and_weights_follow() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("rolling"), {"a": 4, "b": 4})
    assert weights_of(steps) == [(75, 25), (50, 50), (25, 75), (0, 100)]
    assert [step.capacity for step in steps] == [
        {"a": 3, "b": 1},
        {"a": 2, "b": 2},
        {"a": 1, "b": 3},
        {"a": 0, "b": 4},
    ]


def test_rolling_without_a_surge_takes_a_replica_away_first() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("rolling", max_surge=0, max_unavailable=1), {"a": 2, "b": 2})
    assert [step.capacity for step in steps] == [{"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 0, "b": 2}]
    assert weights_of(steps) == [(100, 0), (0, 100), (0, 100)]
    assert [step.bake_seconds > 0 for step in steps] == [False, True, False]


def test_rolling_counts_a_replica_by_what_it_serves_in_the_end() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("rolling"), {"a": 4, "b": 2})
    half = next(step for step in steps if step.capacity["b"] == 1)
    served = {"a": Fraction(half.capacity["a"], 4), "b": Fraction(1, 2)}
    assert shares(half.weights) == {version: part / sum(served.values()) for version, part in served.items()}


def test_rolling_a_single_replica_needs_a_surge() -> None:
    with pytest.raises(StrategyError, match="max_surge 0 lets none come; raise max_surge to 1"):
        plan_steps({"a": 1}, {"b": 1}, options("rolling", max_surge=0, max_unavailable=1), {"a": 1, "b": 1})


def test_rolling_a_version_that_serves_with_no_replica_is_refused() -> None:
    with pytest.raises(StrategyError, match="the config of a asks for none while it has weight"):
        plan_steps({"a": 1}, {"b": 1}, options("rolling"), {"a": 0, "b": 1})


def test_rolling_where_no_replica_changes_is_refused() -> None:
    with pytest.raises(StrategyError, match="use canary"):
        plan_steps({"a": 3, "b": 1}, {"a": 2, "b": 2}, options("rolling"), {"a": 1, "b": 1})


def test_blue_green_has_the_whole_new_side_ready_before_it_switches() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("blue-green"), {"a": 3, "b": 0})
    assert weights_of(steps) == [(100, 0), (0, 100)]
    assert [step.capacity for step in steps] == [{"a": 3, "b": 3}] * 2
    assert [step.percent for step in steps] == [0, 100]


def test_canary_blue_green_switches_after_the_steps_below_half() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary-blue-green", steps=(5, 20, 60, 100)), {"a": 3})
    assert weights_of(steps) == [(100, 0), (95, 5), (80, 20), (0, 100)]
    assert all(step.capacity == {"a": 3, "b": 3} for step in steps)


def test_canary_blue_green_has_a_canary_however_great_its_first_step_is() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("canary-blue-green", steps=(60, 100)), {})
    assert [step.percent for step in steps] == [0, 60, 100]


def test_a_shadow_gets_copies_until_the_first_weights_move() -> None:
    steps = plan_steps({"a": 1}, {"b": 1}, options("shadow", steps=(10, 100), shadow_percent=50), {"a": 2})
    assert weights_of(steps) == [(100, 0), (90, 10), (0, 100)]
    assert [step.shadow for step in steps] == [{"b": 50.0}, {}, {}]
    assert steps[0].bake_seconds > 0


def test_new_versions_are_the_shadow_one_after_the_other() -> None:
    steps = plan_steps({"a": 1}, {"a": 1, "b": 1, "c": 1}, options("shadow", steps=(100,)), {})
    assert [step.shadow for step in steps] == [{"b": 100.0}, {"c": 100.0}, {}]


def test_a_shadow_has_the_replicas_for_its_copies() -> None:
    steps = plan_steps({"a": 1}, {"a": 3, "b": 1}, options("shadow"), {"a": 4, "b": 0})
    assert steps[0].capacity["b"] == 4


def test_a_version_with_requests_is_no_shadow() -> None:
    with pytest.raises(StrategyError, match="use canary"):
        plan_steps({"a": 9, "b": 1}, {"a": 1, "b": 9}, options("shadow"), {})


def test_ab_has_the_target_s_shares_and_the_replicas_to_win_with() -> None:
    (step,) = plan_steps({"a": 1}, {"a": 50, "b": 50}, options("ab"), {"a": 3, "b": 0})
    assert step.weights == {"a": 50, "b": 50}
    assert step.capacity == {"a": 3, "b": 3}


def test_ab_with_one_version_is_refused() -> None:
    with pytest.raises(StrategyError, match="only b is to have a share"):
        plan_steps({"a": 1}, {"b": 1}, options("ab"), {})


def test_the_winner_gets_what_was_compared_and_bystanders_keep_theirs() -> None:
    current, target = {"a": 80, "x": 20}, {"a": 40, "b": 40, "x": 20}
    (step,) = plan_steps(current, target, options("ab"), {"a": 1, "b": 1})
    won = winner_step(step, "b", moving(current, target))
    assert won.weights == {"a": 0, "x": 20, "b": 80}
    assert sum(won.weights.values()) == sum(step.weights.values())
    assert won.capacity == step.capacity
    with pytest.raises(StrategyError, match="x can't win among a, b"):
        winner_step(step, "x", moving(current, target))


# -- adaptive


def step_of(**weights: int) -> Step:
    return Step(weights=weights, bake_seconds=60, percent=5)


@patient
@given(
    st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 10_000), min_size=1),
    st.dictionaries(st.sampled_from(VERSIONS), st.one_of(st.floats(0, 100), st.just(math.inf), st.just(math.nan))),
)
def test_scores_move_weights_within_their_bounds(weights: dict[str, int], scores: dict[str, float]) -> None:
    step = step_of(**weights)
    after = adapt(step, scores)
    moved = [v for v in weights if weights[v] and math.isfinite(scores.get(v, math.nan))]
    whole = sum(weights[v] for v in moved)
    assert sum(after.weights.values()) == sum(weights.values())
    assert {v: after.weights[v] for v in weights if v not in moved} == {
        v: weights[v] for v in weights if v not in moved
    }
    for v in moved:
        assert abs(after.weights[v] - weights[v]) <= 0.2 * whole + 1
        assert after.weights[v] >= min(0.05 * whole, weights[v]) - 1
        assert after.weights[v] >= 1


def test_equal_scores_move_nothing() -> None:
    step = step_of(a=9500, b=400, c=100)
    assert adapt(step, {"a": 2.0, "b": 2.0, "c": 2.0}) == step
    assert adapt(step, {"a": 0.0, "b": 0.0, "c": 0.0}) == step


def test_a_score_alone_moves_nothing() -> None:
    step = step_of(a=9500, b=500)
    assert adapt(step, {"b": 0.1}) == step


def test_better_scores_never_lose_weight_to_worse_ones() -> None:
    after = adapt(step_of(a=5000, b=3000, c=2000), {"a": 2.2, "b": 2.0, "c": 1.5})
    assert after.weights["c"] > 2000
    assert after.weights["a"] < 5000


@pytest.mark.parametrize("best", ["a", "b", "c"])
def test_weights_come_to_the_version_with_the_best_score(best: str) -> None:
    current, target = {"a": 1}, {"a": 1, "b": 1, "c": 1}
    step = plan_steps(current, target, options("adaptive"), {})[0]
    scores = {"a": 2.2, "b": 2.2, "c": 2.2} | {best: 2.0}
    whole = sum(step.weights.values())
    floors = {v: min(0.05 * whole, weight) for v, weight in step.weights.items()}
    for _ in range(60):
        step = adapt(step, scores)
    assert step.weights[best] >= whole - sum(floor for v, floor in floors.items() if v != best) - 2


# -- what none can do


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_to_move_is_an_error(strategy: StrategyName) -> None:
    with pytest.raises(StrategyError, match="nothing to move: the endpoint has the shares of a=2 b=4 already"):
        plan_steps({"a": 1, "b": 2}, {"a": 2, "b": 4}, options(strategy), {})


@pytest.mark.parametrize("wrong", [{}, {"a": 0}, {"a": -1, "b": 2}])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_that_nobody_can_have_are_an_error(strategy: StrategyName, wrong: dict[str, int]) -> None:
    with pytest.raises(StrategyError, match="weights are integers from 0, and one is above 0"):
        plan_steps({"a": 1}, wrong, options(strategy), {})
    with pytest.raises(StrategyError, match="weights are integers from 0, and one is above 0"):
        plan_steps(wrong, {"a": 1}, options(strategy), {})
