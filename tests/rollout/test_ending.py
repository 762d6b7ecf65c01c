"""A rollback that ends a rollout finishes its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UserError
from rollout.driving.ending import recorded_end
from rollout.driving.state import RolloutState
from rollout.project import ROLLOUT_KEY, write_config
from rollout.records.record import Record, read_summary
from tests.rollout.world import NEW, OLD, World

WHY = "rollback by grace"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def state(world: World) -> RolloutState:
    """Of a rollout that somebody has paused in mid-bake."""
    state = world.rollout({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100})
    world.metrics = False
    world.clock.at(8.0, lambda: world.edit(request="pause", asked_by="ada"))
    stopped = world.start(state)
    assert stopped.phase == "paused"
    return stopped


def record(world: World, state: RolloutState) -> Record:
    return Record.of(world.project, world.endpoint, state.id)


def test_the_record_of_a_rollout_that_a_rollback_ended_says_so(world: World, state: RolloutState) -> None:
    with recorded_end(world.project, world.endpoint, WHY, world.said.append, world.clock):
        world.clock.sleep(3.0)
        write_config(world.endpoint, {ROLLOUT_KEY: None})
    found = read_summary(record(world, state))
    assert found is not None
    assert (found["outcome"], found["reason"], found["rollback"]["reason"]) == ("taken back", WHY, WHY)
    assert found["rollback"]["seconds"] == pytest.approx(3.0, abs=0.1)
    assert record(world, state).page.is_file()
    assert record(world, state).outline()["outcome"] == "taken back"


def fail(world: World, *, ended: bool) -> None:
    """A rollback that fails before or after it has ended the rollout."""
    with recorded_end(world.project, world.endpoint, WHY, world.said.append, world.clock):
        if ended:
            write_config(world.endpoint, {ROLLOUT_KEY: None})
        raise UserError("its stack did not follow")


@pytest.mark.parametrize("ended", [True, False])
def test_a_rollback_that_fails_leaves_a_record_if_it_has_ended_the_rollout(
    ended: bool, world: World, state: RolloutState
) -> None:
    with pytest.raises(UserError, match="its stack did not follow"):
        fail(world, ended=ended)
    assert (read_summary(record(world, state)) is not None) == ended


def test_a_record_that_its_driver_has_finished_meanwhile_stays(world: World, state: RolloutState) -> None:
    with recorded_end(world.project, world.endpoint, WHY, world.said.append, world.clock):
        assert world.driver().go_on(lambda found: found.aborted("ada")).phase == "aborted"
    found = read_summary(record(world, state))
    assert found is not None
    assert (found["outcome"], found["reason"]) == ("aborted", "aborted by ada")


def test_a_state_that_cannot_be_used_hinders_no_rollback(world: World, state: RolloutState) -> None:
    world.edit(phase="resting")
    with recorded_end(world.project, world.endpoint, WHY, world.said.append, world.clock):
        write_config(world.endpoint, {ROLLOUT_KEY: None})
    assert read_summary(record(world, state)) is None
