"""A rollout's state: where it may go from where it is, and how its config file has it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from infra.settings import SettingsError
from infra.settings.rollout import RolloutSettings
from rollout.driving.state import ENDED, Follows, GateOutcome, Phase, RequestError, RolloutState, read_state
from rollout.project import ROLLOUT_KEY, write_config
from rollout.strategies import Step
from tests.rollout.world import NEW, OLD, World

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PHASES: tuple[Phase, ...] = get_args(Phase)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def state(world: World) -> RolloutState:
    return world.rollout({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100})


def at(state: RolloutState, phase: Phase, step: int = 0) -> RolloutState:
    return state.model_copy(update={"phase": phase, "step": step})


def test_the_config_file_has_no_defaults_and_loses_nothing(world: World, state: RolloutState) -> None:
    settings = RolloutSettings.model_validate(
        {
            "quiet": [{"start": "18:00", "end": "07:00", "days": ["sat"]}],
            "notify": [{"url": "http://hooks", "on": ["hold"]}],
            "gates": [{"metric": "latency_p99", "tolerance": 1.2}],
            "max_duration": "2h",
        }
    )
    outcome = GateOutcome(gate="latency-p99", version=NEW, verdict="pass", reason="12 ms: as the baseline's")
    follows = Follows(weights={OLD: 100}, driver="node.12.00ff")
    changes = {"settings": settings, "outcomes": (outcome,), "follows": follows, "driver": "1e5", "reason": "yes"}
    full = state.model_copy(update=changes)

    write_config(world.endpoint, {ROLLOUT_KEY: full.document()})

    assert read_state(world.endpoint) == full
    assert "alpha" not in world.endpoint.file.read_text()


def test_what_is_written_as_pulumi_reads_it_is_the_same(world: World, state: RolloutState) -> None:
    write_config(world.endpoint, {ROLLOUT_KEY: state.document()})
    assert world.endpoint.rollout() == state.document()
    assert list(yaml.safe_load(world.endpoint.file.read_text())["config"]) == ["lepton:endpoint", ROLLOUT_KEY]


def test_a_rollout_leaves_the_file_as_it_was(world: World, state: RolloutState) -> None:
    before = world.endpoint.file.read_text()
    write_config(world.endpoint, {ROLLOUT_KEY: state.document()})
    write_config(world.endpoint, {ROLLOUT_KEY: None})
    assert yaml.safe_load(world.endpoint.file.read_text()) == yaml.safe_load(before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phase": "resting"}, r"lepton:rollout\.phase: given 'resting'"),
        ({"strategy": None}, r"lepton:rollout\.strategy"),
        ({"steps": []}, "step 0 is none of its 0 steps"),
        ({"speed": 3}, r"lepton:rollout\.speed"),
    ],
)
def test_a_state_that_was_edited_by_hand_is_refused_and_says_what_to_do(
    world: World, state: RolloutState, change: dict[str, Any], said: str
) -> None:
    write_config(world.endpoint, {ROLLOUT_KEY: state.document() | change})
    with pytest.raises(SettingsError, match=said) as caught:
        read_state(world.endpoint)
    assert "put it back as Git or the stack's history has it" in str(caught.value)
    assert "take the key out, and then run `lepton rollout abort diagnostics/dev.scan`" in str(caught.value)
    assert "stacks/diagnostics/Pulumi.dev.scan.yaml" in str(caught.value)


def test_a_state_that_is_no_mapping_is_refused(world: World) -> None:
    write_config(world.endpoint, {ROLLOUT_KEY: "paused"})
    with pytest.raises(SettingsError, match="lepton:rollout"):
        read_state(world.endpoint)


@pytest.mark.parametrize(
    ("ended", "phase"), [("succeeded", "finishing"), ("taken back", "taking back"), ("aborted", "taking back")]
)
def test_an_end_that_is_still_in_the_file_is_not_done(
    world: World, state: RolloutState, ended: Phase, phase: Phase
) -> None:
    write_config(world.endpoint, {ROLLOUT_KEY: at(state, ended).document()})
    found = read_state(world.endpoint)
    assert found is not None
    assert found.phase == phase


def test_nothing_follows_the_end(state: RolloutState) -> None:
    for ended in ENDED:
        for phase in PHASES:
            with pytest.raises(RequestError, match=f"is {ended}, and can't be"):
                at(state, ended).enter(phase, NOW)


def test_whatever_has_not_ended_can_be_taken_back(state: RolloutState) -> None:
    for phase in PHASES:
        if phase not in (*ENDED, "taking back"):
            assert at(state, phase).enter("taking back", NOW).phase == "taking back"


def test_no_weight_is_set_before_preparing_and_nothing_bakes_before_it_is_set(state: RolloutState) -> None:
    only: dict[Phase, Phase] = {"moving": "preparing", "baking": "moving"}
    for phase in PHASES:
        for following, before in only.items():
            if phase != before:
                with pytest.raises(RequestError):
                    at(state, phase).enter(following, NOW)


def test_steps_are_passed_in_order_and_the_last_is_the_end(state: RolloutState) -> None:
    second = at(state, "baking").passed(NOW)
    assert (second.step, second.phase) == (1, "waiting")
    assert at(second, "baking", 1).passed(NOW).phase == "finishing"


def test_time_that_was_spent_adds_up(state: RolloutState) -> None:
    assert state.enter("preparing", NOW, spent=2.5).enter("moving", NOW, spent=1.5).spent == 4.0


def test_an_approval_is_of_one_step(world: World) -> None:
    state = world.rollout({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100}, approve=[10, 100])
    first = at(state, "awaiting approval").promoted(NOW, "bob")
    assert (first.phase, first.approved) == ("waiting", True)
    assert at(first, "paused").resumed(NOW).phase == "waiting"
    assert at(first, "baking").passed(NOW).phase == "awaiting approval"


@pytest.mark.parametrize("phase", ["preparing", "moving", "taking back"])
def test_what_is_being_done_can_not_be_skipped(state: RolloutState, phase: Phase) -> None:
    with pytest.raises(RequestError, match="there is nothing to skip"):
        at(state, phase).promoted(NOW, "bob")


def test_only_what_has_stopped_is_resumed(state: RolloutState) -> None:
    with pytest.raises(RequestError):
        at(state, "baking").resumed(NOW)


def test_newcomers_are_those_that_nothing_was_sent_to_before(state: RolloutState) -> None:
    copies = Step(weights={OLD: 100, NEW: 0}, shadow={NEW: 50.0}, bake_seconds=1, percent=0)
    shadowed = state.model_copy(update={"steps": (copies, *state.steps)})
    assert shadowed.newcomers == [NEW]
    assert at(shadowed, "waiting", 1).newcomers == []
    assert state.newcomers == [NEW]
