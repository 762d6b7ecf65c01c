"""The guard's rules, limits and loop, with a clock, eyes and hands of the test's own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings.rollout import GuardSettings
from rollout.analysis.samples import Counts
from rollout.guarding.guard import Event, Guard, GuardedEndpoints, GuardedError, Memories, guarding
from rollout.guarding.lookout import Sight
from rollout.guarding.rules import (
    BACKOFF_SECONDS,
    BLIND_SECONDS,
    HOUR_SECONDS,
    Detector,
    Drop,
    Memory,
    NoWayBackError,
    VariantWatch,
    apportion,
    drop,
    way_back,
)
from rollout.project import Project, StackConfig
from rollout.revisions import Revision

GOOD = Counts(requests=40, errors=0)
BAD = Counts(requests=40, errors=20)
LOOK = 2.0


# -- evidence


def drawn(chance: random.Random, share: float, requests: int) -> int:
    return sum(chance.random() < share for _ in range(requests))


def looks_until_sure(chance: random.Random, share: float, *, limit: float, threshold: float, requests: int) -> int:
    detector, looks = Detector(limit, threshold), 0
    while not detector.is_sure:
        detector.see(drawn(chance, share, requests), requests)
        looks += 1
    return looks


@pytest.mark.parametrize("requests", [1, 20])
def test_a_share_at_its_limit_is_taken_for_one_above_it_as_rarely_as_said(requests: int) -> None:
    chance = random.Random(5)
    waits = [looks_until_sure(chance, 0.05, limit=0.05, threshold=50, requests=requests) for _ in range(60)]
    assert sum(waits) / len(waits) >= 50


def test_harm_is_found_within_few_requests() -> None:
    chance = random.Random(5)
    year = 365 * 86400 / LOOK
    seen = sorted(looks_until_sure(chance, 0.5, limit=0.05, threshold=year, requests=5) * 5 for _ in range(200))
    assert seen[189] <= 60, "requests, in 19 of 20 runs"


def test_an_old_good_time_does_not_hide_new_harm() -> None:
    fresh, old = Detector(0.05, 1e6), Detector(0.05, 1e6)
    for _ in range(10_000):
        old.see(0, 100)
    for detector in (fresh, old):
        detector.see(12, 20)
    assert fresh.is_sure
    assert old.is_sure


def watch(*, recover: float = 0.5, **rule: Any) -> VariantWatch:
    guard = GuardSettings.model_validate({"rules": [{"lasting": "10s"} | rule], "recover": recover})
    return VariantWatch("2.0.0", guard)


def see(watched: VariantWatch, counts: Counts | None, looks: int = 1) -> None:
    for _ in range(looks):
        watched.see_requests(LOOK, counts)


def is_due(watched: VariantWatch) -> bool:
    return any(finding.is_due for finding in watched.findings())


def test_harm_is_due_once_it_has_lasted() -> None:
    watched = watch(error_ratio=0.05)
    see(watched, GOOD, 5)
    see(watched, BAD, 5)
    (finding,) = watched.findings()
    assert not finding.is_due
    see(watched, BAD)
    (finding,) = watched.findings()
    assert finding.is_due
    assert finding.reason == "50.0% of 240 requests failed, and 5.00% may"


def test_what_is_beyond_its_limit_is_well_only_below_a_share_of_it() -> None:
    watched = watch(error_ratio=0.2, recover=0.5)
    see(watched, BAD, 300)
    see(watched, Counts(requests=40, errors=6), 50)
    assert watched.findings(), "15 % is between 10 % and 20 %"
    assert not is_due(watched), "and not above the limit now"
    see(watched, Counts(requests=40, errors=1), 20)
    assert not watched.findings()


def test_a_break_starts_the_time_anew() -> None:
    watched = watch(error_ratio=0.05)
    see(watched, BAD, 4)
    see(watched, GOOD, 20)
    see(watched, BAD, 4)
    assert not is_due(watched)


def test_without_data_nothing_is_due_and_nothing_well() -> None:
    watched = watch(error_ratio=0.05)
    see(watched, BAD, 3)
    see(watched, None, 20)
    assert watched.findings()
    assert not is_due(watched)
    see(watched, Counts(), 20)
    assert not is_due(watched), "no requests are none that failed"


def test_a_long_time_without_data_counts_as_a_break() -> None:
    watched = watch(error_ratio=0.05)
    see(watched, BAD, 5)
    see(watched, None, int(BLIND_SECONDS / LOOK) + 1)
    see(watched, BAD, 2)
    assert not is_due(watched)


def latencies(fast: int, slow: int) -> Counts:
    """Requests of 80 ms and of 300 ms."""
    return Counts(fast + slow, 0, {50: 0, 100: fast, 200: fast, 400: fast + slow, float("inf"): fast + slow})


def test_a_percentile_is_above_its_limit_where_one_request_in_twenty_is_slower() -> None:
    slow, well = watch(latency_p95=200), watch(latency_p95=200)
    for _ in range(30):
        see(slow, latencies(30, 10))
        see(well, latencies(39, 1))
    assert is_due(slow)
    assert not well.findings()


def test_a_request_between_two_bounds_is_never_held_against_a_variant() -> None:
    watched = watch(latency_p95=350)
    see(watched, latencies(0, 40), 30)
    assert not watched.findings(), "the bound above 350 is 400, and all were below that"


def test_too_few_replicas_are_due_once_that_has_lasted() -> None:
    watched = watch(ready=2)
    for ready in (1, 1, 1, 1, 1, 1):
        assert not is_due(watched)
        watched.see_ready(LOOK, ready)
    assert is_due(watched)
    watched.see_ready(LOOK, None)
    assert not is_due(watched), "what can't be read is no reason to act"
    watched.see_ready(LOOK, 2)
    assert not watched.findings()


# -- what to do


weights_by_version = st.dictionaries(
    st.sampled_from(["1.0.0", "1.1.0", "2.0.0", "3.0.0"]), st.integers(0, 1000), min_size=1
)


@given(weights_by_version, st.data())
def test_a_drop_never_takes_the_last_weight_and_keeps_the_sum(weights: dict[str, int], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(sorted(weights)))
    ready = {name: data.draw(st.integers(0, 2)) for name in weights}
    beyond = data.draw(st.sets(st.sampled_from(sorted(weights))))
    dropped = drop(version, weights, ready, beyond)
    if isinstance(dropped, str):
        return
    assert dropped.weights.keys() == weights.keys()
    assert dropped.weights[version] == 0
    assert sum(dropped.weights.values()) == sum(weights.values()) > 0
    for name, weight in dropped.weights.items():
        if name != version:
            assert weight >= weights[name]
        if weight > weights[name]:
            assert weights[name] > 0
            assert ready[name] > 0
            assert name not in beyond


def test_a_share_goes_to_the_others_by_their_weights() -> None:
    weights = {"1.0.0": 60, "1.1.0": 30, "2.0.0": 10}
    assert drop("2.0.0", weights, dict.fromkeys(weights, 1), []) == Drop({"1.0.0": 67, "1.1.0": 33, "2.0.0": 0})
    assert apportion(1, {"1.0.0": 1, "1.1.0": 1}) == {"1.0.0": 1, "1.1.0": 0}


def test_a_variant_is_not_dropped_for_others_that_are_no_better() -> None:
    said = drop("2.0.0", {"1.0.0": 50, "2.0.0": 50}, {"1.0.0": 1, "2.0.0": 1}, ["1.0.0", "2.0.0"])
    assert isinstance(said, str)
    assert "no other variant is well" in said


def revision(number: int, weights: Mapping[str, int], rollout: dict[str, Any] | None = None) -> Revision:
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    moment = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(minutes=number)
    return Revision(number, {"variants": variants}, "", moment, 1.0, None, rollout=rollout)


def test_the_way_back_gives_the_harmful_version_no_weight() -> None:
    steps = [{"weights": {"1.0.0": 90, "2.0.0": 10}}, {"weights": {"1.0.0": 0, "2.0.0": 100}}]
    found = [
        revision(1, {"1.0.0": 100}),
        revision(2, {"1.0.0": 90, "2.0.0": 10}, {"id": "a", "steps": steps}),
        revision(3, {"1.0.0": 0, "2.0.0": 100}, {"id": "a", "steps": steps}),
    ]
    assert way_back(found, "2.0.0", [], []).number == 1
    for dropped, left in ((["1.0.0"], []), ([], [{"1.0.0": 100}])):
        with pytest.raises(NoWayBackError):
            way_back(found, "2.0.0", dropped, left)


# -- limits


def guard_settings(**more: Any) -> GuardSettings:
    return GuardSettings.model_validate({"rules": [{"error_ratio": 0.05}], "cooldown": "300s"} | more)


@given(
    st.integers(1, 4),
    st.floats(1, 2000),
    st.lists(st.tuples(st.floats(0, 2000), st.sampled_from(["done", "failed", "killed", "restart"])), max_size=80),
)
def test_never_more_actions_than_allowed_in_any_hour(
    most: int, cooldown: float, events: list[tuple[float, str]]
) -> None:
    limits = guard_settings(max_actions=most, cooldown=f"{cooldown:.3f}s")
    memory, now = Memory(), 1e6
    begun: list[float] = []
    for seconds, what in events:
        now += seconds
        if what == "restart":
            memory = Memory.of(memory.document(), now)
            continue
        if memory.refusal(limits, now) is not None:
            continue
        action = memory.begin("drop 2.0.0", now, "")
        begun.append(now)
        if what != "killed":
            action.ended, action.ok = now, what == "done"
    for moment in begun:
        assert sum(moment <= other < moment + HOUR_SECONDS for other in begun) <= most
    for before, after in pairwise(begun):
        assert after - before >= limits.cooldown


def test_after_failures_it_waits_longer_each_time() -> None:
    limits = guard_settings(cooldown="1s", max_actions=20)
    memory, now = Memory(), 1e6
    for failures in range(1, 5):
        action = memory.begin("drop 2.0.0", now, "")
        action.ended, action.ok = now, False
        wait = BACKOFF_SECONDS * 2 ** (failures - 1)
        assert memory.refusal(limits, now + wait - 1) is not None
        now += wait
        assert memory.refusal(limits, now) is None


def test_a_reboot_shortens_no_wait() -> None:
    memory = Memory()
    memory.begin("drop 2.0.0", 1e6, "").ended = 1e6
    after = Memory.of(memory.document(), 100.0)
    assert after.refusal(guard_settings(), 299.0) is not None
    assert after.refusal(guard_settings(), 301.0) is None


@pytest.mark.parametrize("document", [None, [], {}, {"actions": [{"when": 1}]}, {"actions": 7, "dropped": None}])
def test_a_memory_that_cannot_be_read_counts_as_an_action_of_now(document: Any) -> None:
    assert Memory.of(document, 1e6).refusal(guard_settings(), 1e6 + 299) is not None


# -- the loop


class ScriptedClock:
    def __init__(self) -> None:
        self.seconds = 1e6

    def now(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=self.seconds - 1e6)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class ScriptedLookout:
    """What it sees is what the test says."""

    def __init__(self) -> None:
        self.sights: dict[str, Sight] = {}

    def look(self, endpoint: StackConfig) -> Sight:
        return self.sights.get(endpoint.address, Sight(LOOK, problem="nothing to see"))

    def forget(self, address: str) -> None:
        self.sights.pop(address, None)


class ScriptedAnswer:
    def __init__(self, answer: dict[str, Any] | None) -> None:
        self._answer = answer

    def answer(self) -> dict[str, Any] | None:
        return self._answer


class ScriptedActor:
    """Carries nothing out; each order is answered as the test said when it came."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.answer_with: dict[str, Any] | None = {"result": "done", "text": "done"}

    def __call__(self, order: Mapping[str, Any]) -> ScriptedAnswer:
        self.orders.append(dict(order))
        return ScriptedAnswer(self.answer_with)


class QuickMemories(Memories):
    """Without a disk, which takes its time for each of a thousand looks."""

    def __init__(self) -> None:
        self._documents: dict[str, Any] = {}

    def load(self, address: str, now: float) -> Memory:
        return Memory.of(self._documents[address], now) if address in self._documents else Memory()

    def save(self, address: str, memory: Memory) -> None:
        self._documents[address] = memory.document()


class Scene:
    """A project with guarded endpoints, a guard, and all that it sees, does and says."""

    def __init__(self, root: Path, memories: Memories | None = None) -> None:
        self._memories = memories or Memories(root / ".state")
        (root / "Pulumi.yaml").write_text("name: lepton\n")
        (root / "stacks" / "diagnostics").mkdir(parents=True)
        (root / "stacks" / "diagnostics" / "Pulumi.yaml").write_text("name: diagnostics\n")
        self.root = root
        self.clock, self.lookout, self.actor = ScriptedClock(), ScriptedLookout(), ScriptedActor()
        self.events: list[Event] = []
        self.guard = self.restarted()

    def restarted(self) -> Guard:
        endpoints = GuardedEndpoints(Project(self.root), "dev")
        self.guard = Guard(
            endpoints,
            self.lookout,
            self.actor,
            self._memories,
            lambda event, _: self.events.append(event),
            self.clock,
        )
        return self.guard

    def write(self, model: str = "tumour", guard: dict[str, Any] | None = None, **more: Any) -> str:
        document = {
            "environment": "dev",
            "model": model,
            "variants": [{"version": "1.0.0", "weight": 90}, {"version": "2.0.0", "weight": 10}],
        }
        rules = guard or {"rules": [{"error_ratio": 0.05, "lasting": "10s"}]}
        self.file(model).write_text(yaml.safe_dump({"config": {"lepton:endpoint": document | {"guard": rules} | more}}))
        return f"diagnostics/dev.{model}"

    def file(self, model: str) -> Path:
        return self.root / "stacks" / "diagnostics" / f"Pulumi.dev.{model}.yaml"

    def sees(self, address: str, looks: int = 1, **given: Any) -> None:
        """Has the guard look some times, and see these counts by version, other variants good."""
        weights = given.get("weights", {"1.0.0": 90, "2.0.0": 10})
        counts = given.get("counts", {"2.0.0": BAD})
        if counts is not None:
            counts = dict.fromkeys(weights, GOOD) | counts
        ready = given.get("ready", dict.fromkeys(weights, 1))
        for _ in range(looks):
            self.shows(address, Sight(LOOK, weights, ready, counts))

    def shows(self, address: str, sight: Sight) -> None:
        """Has the guard look once, and see this."""
        self.lookout.sights[address] = sight
        self.clock.sleep(LOOK)
        self.guard.look()

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_failing_variant_is_dropped_once_it_has_lasted(scene: Scene) -> None:
    address = scene.write()
    scene.sees(address, 5)
    assert not scene.actor.orders
    scene.sees(address, 2)
    (order,) = scene.actor.orders
    assert (order["do"], order["endpoint"], order["weights"]) == ("drop", address, {"1.0.0": 100, "2.0.0": 0})
    assert scene.told("done") == ["done"]


def test_after_an_action_nothing_is_done_for_a_while_however_bad_it_is(scene: Scene) -> None:
    address = scene.write()
    scene.sees(address, 100)
    assert len(scene.actor.orders) == 1
    assert len(scene.told("held back")) == 1
    scene.sees(address, 100)
    assert len(scene.actor.orders) == 2


def test_the_last_variant_with_weight_is_never_dropped(scene: Scene) -> None:
    address = scene.write()
    scene.sees(address, 20, weights={"1.0.0": 0, "2.0.0": 100})
    assert not scene.actor.orders
    assert scene.told("held back") == ["nothing is done about 2.0.0: 2.0.0 is the only variant with weight"]


def test_a_guard_that_was_killed_is_followed_by_one_that_knows(scene: Scene) -> None:
    address = scene.write()
    scene.sees(address, 5)
    scene.restarted()
    scene.sees(address, 2)
    assert len(scene.actor.orders) == 1, "the seconds before count"
    scene.actor.answer_with = None
    scene.restarted()
    scene.sees(address, 20)
    assert len(scene.actor.orders) == 1, "and so does the action"


def test_a_guard_that_was_away_for_long_starts_its_time_anew(scene: Scene) -> None:
    address = scene.write()
    scene.sees(address, 5)
    scene.restarted()
    scene.clock.sleep(BLIND_SECONDS)
    scene.sees(address, 3)
    assert not scene.actor.orders


def test_an_action_that_another_command_was_in_the_way_of_is_tried_again_and_not_counted(scene: Scene) -> None:
    address = scene.write(guard={"rules": [{"error_ratio": 0.05, "lasting": "2s"}], "max_actions": 1})
    scene.actor.answer_with = {"result": "busy", "problem": "another lepton is changing it"}
    scene.sees(address, 20)
    assert len(scene.actor.orders) > 2
    assert len(scene.told("held back")) == 1
    scene.actor.answer_with = {"result": "done", "text": "done"}
    scene.sees(address, 10)
    assert scene.told("done") == ["done"]


def test_what_cannot_be_written_down_is_not_done(scene: Scene) -> None:
    (scene.root / ".state").write_text("no folder")
    scene.sees(scene.write(), 20)
    assert not scene.actor.orders
    assert any("what can't be written down is not done" in text for text in scene.told("held back"))


def test_a_rollback_knows_what_it_may_not_go_back_to(scene: Scene) -> None:
    address = scene.write(guard={"rules": [{"error_ratio": 0.05, "lasting": "2s", "action": "rollback"}]})
    scene.sees(address, 5)
    scene.sees(address, 200, weights={"1.0.0": 100}, counts={"1.0.0": BAD})
    first, second = scene.actor.orders[:2]
    assert first["left"] == [{"1.0.0": 90, "2.0.0": 10}]
    assert second["left"] == [{"1.0.0": 90, "2.0.0": 10}, {"1.0.0": 100}]


def test_a_broken_file_is_told_once_and_keeps_no_other_from_being_watched(scene: Scene) -> None:
    address, other = scene.write(), scene.write("other")
    scene.sees(address, 1, counts={})
    scene.file("tumour").write_text("config: [")
    scene.sees(other, 10)
    assert [order["endpoint"] for order in scene.actor.orders] == [other]
    broken = [event for event in scene.events if event.kind == "problem" and not event.endpoint]
    assert len(broken) == 1
    assert "Pulumi.dev.tumour.yaml" in broken[0].text
    scene.sees(address, 10)
    assert len(scene.actor.orders) == 2, "it keeps the rules that it had"


def test_new_endpoints_and_new_rules_are_taken_up(scene: Scene) -> None:
    scene.guard.look()
    address = scene.write(guard={"rules": [{"error_ratio": 0.9}]})
    scene.sees(address, 20)
    assert not scene.actor.orders
    scene.write(guard={"rules": [{"error_ratio": 0.05, "lasting": "2s"}]})
    scene.sees(address, 4)
    assert len(scene.actor.orders) == 1
    scene.file("tumour").unlink()
    scene.guard.look()
    assert len(scene.told("watching")) == 3


def test_only_one_guard_looks_after_an_endpoint(tmp_path: Path) -> None:
    with guarding(tmp_path, ["diagnostics"]), guarding(tmp_path, ["other"]):
        for teams in ([], ["diagnostics"], ["third", "other"]):
            with pytest.raises(GuardedError, match="another guard"), guarding(tmp_path, teams):
                pass
    with guarding(tmp_path, []), pytest.raises(GuardedError), guarding(tmp_path, ["diagnostics"]):
        pass


nothing_bad = st.sampled_from([None, Counts(), Counts(requests=30)])


@settings(max_examples=30)
@given(st.lists(st.tuples(nothing_bad, st.booleans()), min_size=10, max_size=60))
def test_without_data_it_never_acts(tmp_path_factory: pytest.TempPathFactory, seen: list[Any]) -> None:
    scene = Scene(tmp_path_factory.mktemp("scene"), QuickMemories())
    rule = {"error_ratio": 0.01, "latency_p95": 1, "ready": 1, "lasting": "2s"}
    address = scene.write(guard={"rules": [rule], "cooldown": "1s"})
    weights = {"1.0.0": 90, "2.0.0": 10}
    for found, readable in seen:
        known = {"1.0.0": GOOD} if found is None else {"1.0.0": GOOD, "2.0.0": found}
        scene.shows(address, Sight(LOOK, weights, dict.fromkeys(weights, 1) if readable else None, known))
    assert not scene.actor.orders


seen_of_a_variant = st.sampled_from([BAD, BAD, BAD, GOOD, Counts(), None])


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            seen_of_a_variant,
            seen_of_a_variant,
            st.integers(0, 120),
            st.sampled_from([0, 10, 50, 100]),
            st.sampled_from(["done", "done", "failed", "busy"]),
        ),
        min_size=20,
        max_size=80,
    )
)
def test_whatever_it_sees_it_acts_within_its_limits(tmp_path_factory: pytest.TempPathFactory, seen: list[Any]) -> None:
    scene = Scene(tmp_path_factory.mktemp("scene"), QuickMemories())
    rules = {"rules": [{"error_ratio": 0.05, "lasting": "2s"}], "cooldown": "60s", "max_actions": 2}
    address = scene.write(guard=rules)
    begun: list[float] = []
    for of_one, of_two, pause, weight, result in seen:
        scene.clock.sleep(pause)
        scene.actor.answer_with = {"result": result, "text": result}
        ordered = len(scene.actor.orders)
        weights = {"1.0.0": 100 - weight, "2.0.0": weight}
        known = {version: found for version, found in (("1.0.0", of_one), ("2.0.0", of_two)) if found is not None}
        scene.shows(address, Sight(LOOK, weights, dict.fromkeys(weights, 1), known))
        if len(scene.actor.orders) > ordered:
            order = scene.actor.orders[-1]
            assert 0 < weights[order["version"]] < 100
            assert known[order["version"]].requests > 0
            if result != "busy":
                begun.append(scene.clock.seconds)
    for moment in begun:
        assert sum(moment <= other < moment + HOUR_SECONDS for other in begun) <= 2
    for before, after in pairwise(begun):
        assert after - before >= 60
