"""What a plan says: the target, the peak, the time, and what gates need."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import Amount, Room
from infra.settings import EndpointSettings, PlatformSettings, VersionSettings
from infra.settings.rollout import Gate, RolloutSettings
from infra.settings.version import Resources
from rollout.analysis.judge import samples_needed
from rollout.analysis.samples import WINDOW_SECONDS
from rollout.planning import cautions
from rollout.planning.gate_needs import gate_needs
from rollout.planning.peak import peak
from rollout.planning.plan import UPDATE_SECONDS, expected_duration
from rollout.planning.target import TargetError, target_weights
from rollout.project import Project
from rollout.strategies import plan_steps
from rollout.strategies.move import Move

GIB = 2**30


def endpoint(**weights: int) -> EndpointSettings:
    variants = [{"version": f"{name[1:]}.0.0", "weight": weight} for name, weight in weights.items()]
    return EndpointSettings.model_validate({"environment": "dev", "model": "scan", "variants": variants})


def version(number: str, **settings: Any) -> VersionSettings:
    return VersionSettings.model_validate({"environment": "dev", "model": "scan", "version": number, **settings})


def replica(**resources: Any) -> Resources:
    return Resources.model_validate(resources)


def room(*, cpu: float = 8, memory: int = 16 * GIB, gpu: int = 4, reserved: Amount | None = None) -> Room:
    return {
        "total": {"cpu": cpu, "memory": memory, "gpu": gpu},
        "reserved": reserved or {"cpu": 0, "memory": 0, "gpu": 0},
    }


def steps_of(strategy: Any, replicas: dict[str, int], **options: Any) -> Any:
    settings = RolloutSettings(strategy=strategy, **options)
    old, new = replicas
    return plan_steps({old: 1}, {new: 1}, settings, replicas)


# -- where traffic is to go


def test_one_version_takes_what_the_baseline_has() -> None:
    assert target_weights(endpoint(v1=90, v2=10), {"3.0.0": None}) == {"1.0.0": 0, "2.0.0": 1, "3.0.0": 9}


def test_a_variant_adds_what_the_baseline_has_to_its_own() -> None:
    assert target_weights(endpoint(v1=70, v2=10, v3=20), {"2.0.0": None}) == {"1.0.0": 0, "2.0.0": 4, "3.0.0": 1}


def test_several_versions_divide_what_the_baseline_has() -> None:
    found = target_weights(endpoint(v1=80, v9=20), {"2.0.0": 30, "3.0.0": 70})
    assert found == {"1.0.0": 0, "9.0.0": 5, "2.0.0": 6, "3.0.0": 14}


def test_a_baseline_that_is_named_keeps_its_share() -> None:
    assert target_weights(endpoint(v1=100), {"1.0.0": 50, "2.0.0": 50}) == {"1.0.0": 1, "2.0.0": 1}


def test_a_version_may_be_asked_for_with_100() -> None:
    assert target_weights(endpoint(v1=7), {"2.0.0": 100}) == {"1.0.0": 0, "2.0.0": 1}


def test_a_share_alone_leaves_the_rest_open() -> None:
    with pytest.raises(TargetError, match=r"leaves open who has the rest; .* such as --to 1\.0\.0=70"):
        target_weights(endpoint(v1=1), {"2.0.0": 30})


def test_a_version_without_a_share_beside_others_is_refused() -> None:
    with pytest.raises(TargetError, match=r"--to 3\.0\.0 says no share"):
        target_weights(endpoint(v1=1), {"2.0.0": 30, "3.0.0": None})


def test_shares_that_are_all_0_are_refused() -> None:
    with pytest.raises(TargetError, match="one is above 0"):
        target_weights(endpoint(v1=1), {"2.0.0": 0, "3.0.0": 0})


def test_a_baseline_without_weight_is_refused() -> None:
    settings = endpoint(v1=0, v2=1).model_copy(update={"baseline": "1.0.0"})
    with pytest.raises(TargetError, match=r"the baseline 1\.0\.0 has no weight"):
        target_weights(settings, {"3.0.0": None})


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 100), st.integers(0, 100))
def test_versions_that_are_not_named_keep_their_share(baseline: int, other: int, one: int, two: int) -> None:
    two_variants = endpoint(v1=baseline, v2=other).model_copy(update={"baseline": "1.0.0"})
    if one + two:
        found = target_weights(two_variants, {"3.0.0": one, "4.0.0": two})
        assert found["2.0.0"] * (baseline + other) == other * sum(found.values())
        assert found["1.0.0"] == 0


# -- the peak


def test_a_peak_has_both_sides_up_at_once() -> None:
    resources = {"a": replica(cpu=1, memory="2Gi", gpu=1), "b": replica(cpu=0.5, memory="1Gi")}
    now = Amount(cpu=2, memory=4 * GIB, gpu=2)
    found = peak(steps_of("blue-green", {"a": 2, "b": 2}), {"a": 2}, resources, room(reserved=now))
    assert found.needed == {"cpu": 3, "memory": 6 * GIB, "gpu": 2}
    assert found.reserved == now
    assert found.lacking == {}


def test_a_peak_counts_the_surge_between_two_steps() -> None:
    resources = {"a": replica(gpu=1), "b": replica(gpu=1)}
    now = Amount(cpu=0, memory=0, gpu=4)
    found = peak(steps_of("rolling", {"a": 4, "b": 4}), {"a": 4}, resources, room(gpu=4, reserved=now))
    assert found.needed["gpu"] == 5
    assert found.lacking == {"gpu": 1}


def test_rolling_without_a_surge_fits_where_nothing_is_free() -> None:
    resources = {"a": replica(gpu=1), "b": replica(gpu=1)}
    steps = steps_of("rolling", {"a": 4, "b": 4}, max_surge=0, max_unavailable=1)
    found = peak(steps, {"a": 4}, resources, room(gpu=4, reserved=Amount(cpu=0, memory=0, gpu=4)))
    assert found.lacking == {}


def test_replicas_that_are_up_already_are_not_counted_again() -> None:
    resources = {"a": replica(gpu=1), "b": replica(gpu=1)}
    now = Amount(cpu=0, memory=0, gpu=4)
    found = peak(steps_of("canary", {"a": 2, "b": 2}), {"a": 2, "b": 2}, resources, room(gpu=4, reserved=now))
    assert found.needed["gpu"] == 4


def test_what_others_have_overbooked_is_no_lack_of_the_rollout() -> None:
    resources = {"a": replica(cpu=1), "b": replica(memory="1Gi")}
    now = Amount(cpu=9, memory=GIB, gpu=0)
    found = peak(steps_of("canary", {"a": 1, "b": 1}), {"a": 1}, resources, room(cpu=8, reserved=now))
    assert found.lacking == {}


# -- the time


def test_the_shortest_time_is_that_of_bakes_and_updates() -> None:
    settings = RolloutSettings(steps=(5, 100), bake="1m", max_bake="10m", keep="5m")  # pyright: ignore[reportArgumentType]
    versions = {"a": version("1.0.0"), "b": version("2.0.0", ready_timeout="90s")}
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {"a": 1, "b": 1})
    found = expected_duration(steps, {"a": 1}, settings, versions)
    # Two steps, and one version that comes up.
    assert found.shortest == 2 * 60 + 300 + 3 * UPDATE_SECONDS
    assert found.longest == 2 * 600 + 300 + 3 * UPDATE_SECONDS + 90


def test_a_step_without_requests_of_anything_new_waits_for_no_gate() -> None:
    settings = RolloutSettings(strategy="blue-green")
    versions = {"a": version("1.0.0"), "b": version("2.0.0")}
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {"a": 1, "b": 1})
    found = expected_duration(steps, {"a": 1, "b": 1}, settings, versions)
    assert found.shortest == settings.bake + settings.bake + 2 * UPDATE_SECONDS
    assert found.longest == settings.bake + settings.max_bake + 2 * UPDATE_SECONDS


# -- the gates


def test_gates_need_more_time_the_smaller_the_share() -> None:
    settings = RolloutSettings(steps=(5, 50, 100), gates=(Gate(metric="error_ratio"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    needs = gate_needs(steps, ["b"], "a", settings, rate=10, error_ratio=0.01)
    assert [(need.step, need.gate, need.version, need.unit) for need in needs] == [
        (0, "error-ratio", "b", "requests"),
        (1, "error-ratio", "b", "requests"),
        (2, "error-ratio", "b", "requests"),
    ]
    first = needs[0]
    assert first.samples == samples_needed(settings.gates[0], settings, 0.01, 0.05)
    assert first.seconds == pytest.approx(first.samples / 0.5)
    assert needs[1].seconds == pytest.approx(needs[1].samples / 5)
    assert (needs[1].seconds or 0) < (first.seconds or 0)


def test_a_gate_that_cant_have_its_requests_in_time_is_said_so() -> None:
    settings = RolloutSettings(steps=(5, 100), gates=(Gate(metric="error_ratio"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    slow = gate_needs(steps, ["b"], "a", settings, rate=0.1, error_ratio=0)
    fast = gate_needs(steps, ["b"], "a", settings, rate=10_000, error_ratio=0)
    assert [need.within for need in slow] == [False, False]
    assert [need.within for need in fast] == [True, True]


@pytest.mark.parametrize("rate", [None, 0.0])
def test_without_a_rate_nobody_knows_how_long_gates_take(rate: float | None) -> None:
    settings = RolloutSettings(gates=(Gate(metric="latency_p95"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    for need in gate_needs(steps, ["b"], "a", settings, rate=rate, error_ratio=0):
        assert need.samples > 0
        assert (need.seconds, need.within) == (None, None)


def test_a_score_asks_for_windows_whatever_the_rate() -> None:
    settings = RolloutSettings(steps=(100,), gates=(Gate(metric="score"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    (need,) = gate_needs(steps, ["b"], "a", settings, rate=None, error_ratio=0)
    assert need.unit == "windows"
    assert need.seconds == need.samples * WINDOW_SECONDS


def test_a_shadow_s_gates_count_its_copies() -> None:
    settings = RolloutSettings(strategy="shadow", steps=(100,), shadow_percent=50, gates=(Gate(metric="error_ratio"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    copies, _ = gate_needs(steps, ["b"], "a", settings, rate=10, error_ratio=0)
    assert copies.seconds == pytest.approx(copies.samples / 5)


def test_gates_ask_nothing_of_a_step_that_gives_nobody_new_requests() -> None:
    settings = RolloutSettings(strategy="blue-green")
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    assert {need.step for need in gate_needs(steps, ["b"], "a", settings, rate=10, error_ratio=0)} == {1}


# -- what somebody should know


def test_a_freeze_quiet_hours_a_shadow_and_another_rollout_are_said(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: lepton\n")
    team = tmp_path / "stacks" / "diagnostics"
    team.mkdir(parents=True)
    (team / "Pulumi.yaml").write_text("name: diagnostics\n")
    document = {
        "environment": "dev",
        "model": "scan",
        "variants": [{"version": "1.0.0", "weight": 1}],
        "shadow": {"version": "3.0.0", "percent": 5},
    }
    config = {"lepton:endpoint": document, "lepton:rollout": {"id": "20261121-154220-3f2a"}}
    (team / "Pulumi.dev.scan.yaml").write_text(yaml.safe_dump({"config": config}))
    stack = Project(tmp_path).stack("diagnostics/dev.scan")
    platform = PlatformSettings.model_validate({"environment": "dev", "mode": "single-node", "freeze": "audit"})
    said = list(cautions.obstacles(stack, platform, datetime(2026, 11, 21, 6, 0, tzinfo=UTC)))
    assert said == [
        "a rollout of diagnostics/dev.scan is under way; no other can start before it ends",
        "dev is frozen: audit; no step begins",
        "quiet hours: no step begins before 2026-11-21 06:00 UTC",
        "3.0.0 gets no copies of requests while the rollout is under way",
    ]


def test_fewer_replicas_than_the_old_side_has_are_said() -> None:
    def said(replicas: int) -> list[str]:
        counts = {"a": 4, "b": replicas}
        move = Move.between({"a": 1}, {"b": 1}, counts)
        return list(cautions.few_replicas(move, steps_of("canary", counts)[-1]))

    assert said(1) == [
        "b has 1 of the 4 replicas that a would have for 100% of the traffic; its config can ask for more"
    ]
    assert said(4) == said(0) == []


def test_a_version_that_comes_up_without_promised_resources_is_said() -> None:
    versions = {"a": version("1.0.0"), "b": version("2.0.0"), "c": version("3.0.0", resources={"gpu": 1})}
    steps = plan_steps({"a": 1}, {"b": 1, "c": 1}, RolloutSettings(), {"a": 1, "b": 1, "c": 1})
    (said,) = cautions.unlimited(steps, {"a": 1}, versions)
    assert said.startswith("b says nothing of its resources")


def test_a_rollout_that_outlasts_its_greatest_duration_is_said() -> None:
    settings = RolloutSettings(max_duration="90s")  # pyright: ignore[reportArgumentType]
    assert list(cautions.hurried(settings, 90)) == []
    assert list(cautions.hurried(settings, 91)) == ["it takes 91 s at least, and max_duration ends it after 90 s"]


def test_gates_without_requests_are_said() -> None:
    settings = RolloutSettings()
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    needs = gate_needs(steps, ["b"], "a", settings, rate=None, error_ratio=0)
    (said,) = cautions.unjudged(steps, needs, settings, None)
    assert "never pass" in said


def test_a_gate_that_outlasts_the_greatest_bake_is_said_with_its_step() -> None:
    settings = RolloutSettings(steps=(5, 100), gates=(Gate(metric="error_ratio"),))
    steps = plan_steps({"a": 1}, {"b": 1}, settings, {})
    rate = 1.0
    needs = gate_needs(steps, ["b"], "a", settings, rate=rate, error_ratio=0)
    (said,) = cautions.unjudged(steps, needs, settings, rate)
    assert said.startswith(f"step 1 (5 %): gate error-ratio needs {needs[0].samples} requests of b")


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (100, []),
        (60, ["gate slow: its limit of 60 ms is no bound of the histogram; judged is the share above 100 ms"]),
        (500, ["gate slow never passes: its limit of 500 ms is above the histogram's last bound"]),
    ],
)
def test_a_limit_that_is_no_bound_of_the_histogram_is_said(limit: float, said: list[str]) -> None:
    settings = RolloutSettings(gates=(Gate(metric="latency_p95", name="slow", limit=limit),))
    assert list(cautions.rounded_limits(settings, [50, 100, float("inf")])) == said
    assert list(cautions.rounded_limits(settings, [])) == []
