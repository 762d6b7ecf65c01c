"""The driver's state machine in a stand-in world: it ends as it should, wherever it is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollout.driving.driver import NoRolloutError, RolloutActiveError, SupersededError
from rollout.driving.state import RequestError, RolloutState, read_state
from rollout.project import ROLLOUT_KEY, write_config
from tests.rollout.world import ENDPOINT, NEW, OLD, Killed, World

START = {OLD: 100}
CANARY = {OLD: 90, NEW: 10}
DONE = {NEW: 100}
STEPS = ({OLD: 90, NEW: 10}, {OLD: 0, NEW: 100})
HOOKS = {"before": [{"command": ["true"]}], "after": [{"command": ["true"]}]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def state_of(world: World) -> RolloutState:
    state = read_state(world.endpoint)
    assert state is not None
    return state


# -- to the end, and back


def test_a_healthy_candidate_goes_through_every_step_to_the_target(world: World) -> None:
    state = world.start(world.rollout(*STEPS))

    assert state.phase == "succeeded"
    assert world.moves == [START, CANARY, DONE]
    assert world.endpoint.rollout() is None
    assert "baseline" not in world.endpoint.document()
    assert world.history[-1].message == f"rollout {state.id} succeeded: 1.0.0=0 1.1.0=100"
    assert world.told == ["start", "step", "step", "success"]


def test_capacity_and_warm_up_come_before_the_first_weight(world: World) -> None:
    world.start(world.rollout(*STEPS))

    first_weight = [index for index, effect in enumerate(world.effects) if effect == "apply"][1]
    assert world.effects.index("ensure") < world.effects.index("warm up") < first_weight
    assert world.effects.count("warm up") == 1


def test_a_candidate_that_fails_its_gate_is_taken_back_by_the_fast_path(world: World) -> None:
    world.errors = {NEW: 0.5}

    state = world.start(world.rollout(*STEPS))

    assert state.phase == "taken back"
    assert world.moves == [START, CANARY, START]
    assert "1.1.0 failed gate error-ratio" in world.history[-1].message
    assert world.effects.index("shift") < len(world.effects)
    assert world.replicas == {OLD: 2, NEW: 1}
    assert world.endpoint.rollout() is None
    assert world.endpoint.endpoint.weights == {OLD: 100}
    assert [outcome.verdict for outcome in state.outcomes] == ["fail"]


def test_a_baseline_that_was_named_is_named_again_after_taking_back(world: World) -> None:
    write_config(world.endpoint, {"lepton:endpoint": world.endpoint.document() | {"baseline": OLD}})
    world.errors = {NEW: 0.5}
    world.start(world.rollout(*STEPS).model_copy(update={"named_baseline": OLD}))
    assert world.endpoint.document()["baseline"] == OLD


def test_a_baseline_that_has_lost_its_share_passes_its_name_on(world: World) -> None:
    write_config(world.endpoint, {"lepton:endpoint": world.endpoint.document() | {"baseline": OLD}})
    world.start(world.rollout(*STEPS).model_copy(update={"named_baseline": OLD}))
    assert world.endpoint.document()["baseline"] == NEW


# -- killed


def run(root: Path, errors: float, kill_at: int | None) -> World:
    world = World(root, errors={NEW: errors}, kill_at=kill_at)
    state = world.rollout(*STEPS, hooks=HOOKS, keep="1s")
    if kill_at is None:
        world.start(state)
        return world
    driver = world.driver()
    driver.register(state)
    with pytest.raises(Killed):
        driver.go_on()
    return world


BOUNDARIES = {0.0: 52, 0.5: 36}
"""How many there are, by the share of the candidate's requests that fails."""


@pytest.mark.parametrize("errors", BOUNDARIES)
def test_every_boundary_is_tested(tmp_path: Path, errors: float) -> None:
    assert run(tmp_path, errors, None).boundaries == BOUNDARIES[errors]


@pytest.mark.parametrize(
    ("errors", "boundary"), [(errors, boundary) for errors, count in BOUNDARIES.items() for boundary in range(count)]
)
def test_a_driver_killed_anywhere_is_followed_by_one_that_ends_the_same(
    tmp_path: Path, errors: float, boundary: int
) -> None:
    world = run(tmp_path, errors, boundary)
    world.kill_at = None

    try:
        phase = world.driver().go_on().phase
    except NoRolloutError:
        # It was killed after its last update, once nothing was left to do but to tell of it.
        phase = "succeeded" if errors == 0 else "taken back"

    assert phase == ("succeeded" if errors == 0 else "taken back")
    assert world.moves == ([START, CANARY, DONE] if errors == 0 else [START, CANARY, START])
    assert world.endpoint.rollout() is None
    assert world.replicas == ({OLD: 0, NEW: 2} if errors == 0 else {OLD: 2, NEW: 1})


def test_what_was_baked_before_a_kill_counts_and_the_time_after_does_not(world: World) -> None:
    driver = world.driver()
    driver.register(world.rollout(CANARY, bake="10s", max_bake="60s"))

    def kill() -> None:
        raise Killed

    world.clock.at(7, kill)
    with pytest.raises(Killed):
        driver.go_on()
    seen = world.looks
    world.clock.sleep(3600)

    assert world.driver().go_on().phase == "succeeded"
    assert 0 < seen < 10
    assert 10 <= world.looks <= 12


# -- gates that can't say


def test_without_metrics_the_bake_extends_and_then_it_is_held(world: World) -> None:
    world.metrics = False

    state = world.start(world.rollout(*STEPS))

    assert state.phase == "held"
    assert "inconclusive after 20 s" in state.reason
    assert "the metrics server does not answer" in state.reason
    assert world.shares == CANARY


def test_metrics_that_come_back_in_mid_bake_let_it_go_on(world: World) -> None:
    world.metrics = False
    world.clock.at(8, lambda: setattr(world, "metrics", True))
    assert world.start(world.rollout(*STEPS)).phase == "succeeded"


def test_an_inconclusive_step_is_taken_back_where_the_settings_say_so(world: World) -> None:
    world.metrics = False
    state = world.start(world.rollout(*STEPS, on_inconclusive="rollback"))
    assert state.phase == "taken back"
    assert world.shares == START


def test_weights_that_can_not_be_read_for_a_while_are_tolerated(world: World) -> None:
    world.clock.at(1, lambda: setattr(world, "readable", False))
    world.clock.at(15, lambda: setattr(world, "readable", True))
    assert world.start(world.rollout(CANARY, bake="20s", max_bake="60s")).phase == "succeeded"


def test_weights_that_can_not_be_read_for_long_hold_it(world: World) -> None:
    world.clock.at(1, lambda: setattr(world, "readable", False))
    state = world.start(world.rollout(CANARY, bake="90s", max_bake="90s"))
    assert state.phase == "held"
    assert "could not be read for 30 s" in state.reason


def test_a_clock_that_jumps_ends_no_bake_early_and_none_never(world: World) -> None:
    for jump in (86_400, -2 * 86_400):
        world.clock.at(3, lambda jump=jump: world.clock.jump(jump))
    before = world.clock.monotonic()
    assert world.start(world.rollout(CANARY, bake="10s", max_bake="60s")).phase == "succeeded"
    assert 10 <= world.clock.monotonic() - before < 15


@pytest.mark.parametrize("jump", [86_400, -86_400], ids=["ahead", "back"])
def test_a_clock_that_jumps_while_no_driver_lives_ends_no_bake_early_and_none_never(world: World, jump: int) -> None:
    driver = world.driver()
    driver.register(world.rollout(CANARY, bake="10s", max_bake="60s"))
    world.clock.at(5, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        driver.go_on()
    world.clock.jump(jump)
    assert world.driver().go_on().phase == "succeeded"
    assert 10 <= world.looks <= 16


# -- other hands


def test_weights_that_somebody_else_moved_pause_it_and_stay(world: World) -> None:
    world.clock.at(1, lambda: world.move({OLD: 70, NEW: 30}))

    state = world.start(world.rollout(*STEPS))

    assert state.phase == "paused"
    assert "somebody else has changed the traffic: the data plane has 1.0.0=70 1.1.0=30" in state.reason
    assert world.shares == {OLD: 70, NEW: 30}
    assert world.told[-1] == "hold"


def test_resume_sets_the_weights_of_its_step_again_and_says_so(world: World) -> None:
    world.clock.at(1, lambda: world.move({OLD: 70, NEW: 30}))
    world.start(world.rollout(*STEPS))

    state = world.driver().go_on(lambda state: state.resumed(world.clock.now()))

    assert state.phase == "succeeded"
    assert world.moves == [START, CANARY, {OLD: 70, NEW: 30}, CANARY, DONE]
    assert "the data plane has 1.0.0=70 1.1.0=30; the weights of the step will be set again" in world.said


def test_a_config_file_with_other_weights_pauses_it(world: World) -> None:
    variants = [{"version": OLD, "weight": 1}, {"version": NEW, "weight": 1}]
    edited = {"lepton:endpoint": world.endpoint.document() | {"variants": variants}}
    world.clock.at(1, lambda: write_config(world.endpoint, edited))
    state = world.start(world.rollout(*STEPS))
    assert state.phase == "paused"
    assert "Pulumi.dev.scan.yaml has 1.0.0=1 1.1.0=1" in state.reason


def test_a_rollout_that_another_command_paused_is_not_acted_on(world: World) -> None:
    world.clock.at(1, lambda: world.edit(phase="paused", reason="traffic set by bob: 1.0.0=100"))
    state = world.start(world.rollout(*STEPS))
    assert (state.phase, state.reason) == ("paused", "traffic set by bob: 1.0.0=100")
    assert state_of(world).phase == "paused"
    assert world.shares == CANARY


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda world: world.edit(driver="other"), "driver other has taken the rollout over"),
        (lambda world: write_config(world.endpoint, {ROLLOUT_KEY: None}), "has no rollout where it had"),
        (lambda world: world.edit(id="20270101-000000-0002"), "has rollout 20270101-000000-0002"),
        (lambda world: world.edit(phase="somewhere"), "lepton:rollout.phase: given 'somewhere'"),
        (lambda world: world.edit(step=7), "step 7 is none of its 2 steps"),
    ],
    ids=["another driver", "gone", "another rollout", "unusable", "impossible"],
)
def test_a_driver_whose_rollout_is_not_its_own_any_more_touches_nothing(world: World, change: Any, said: str) -> None:
    world.clock.at(1, lambda: change(world))
    with pytest.raises(SupersededError, match=said):
        world.start(world.rollout(*STEPS))
    assert world.shares == CANARY


def test_a_driver_whose_update_the_stack_refuses_touches_nothing_more(world: World) -> None:
    def elsewhere() -> None:
        world.outputs = world.outputs | {"rollout": {"id": "20261121-120000-0001", "driver": "elsewhere", "step": 0}}

    world.clock.at(1, elsewhere)
    with pytest.raises(SupersededError, match="the stack was changed meanwhile"):
        world.start(world.rollout(*STEPS))
    assert world.shares == CANARY


def test_a_second_rollout_is_refused_while_one_is_under_way(world: World) -> None:
    world.metrics = False
    world.start(world.rollout(*STEPS))
    with pytest.raises(RolloutActiveError, match=r"under way, held at step 1 of 2; go on with `lepton rollout resume"):
        world.driver().register(world.rollout({OLD: 0, NEW: 1}))


def test_a_fresh_checkout_goes_on_with_what_the_stack_knows(world: World) -> None:
    driver = world.driver()
    driver.register(world.rollout(*STEPS))
    world.clock.at(1, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        driver.go_on()
    write_config(world.endpoint, {ROLLOUT_KEY: None})

    assert world.driver().go_on().phase == "succeeded"
    assert world.moves == [START, CANARY, DONE]


def test_a_checkout_that_was_left_behind_knows_that_the_rollout_has_ended(world: World) -> None:
    world.metrics = False
    world.start(world.rollout(*STEPS))
    behind = world.endpoint.file.read_text()
    world.driver().go_on(lambda state: state.aborted("ada"))
    world.endpoint.file.write_text(behind)

    with pytest.raises(NoRolloutError):
        world.driver().go_on()
    assert world.shares == START


def test_of_two_rollouts_that_start_in_two_checkouts_the_second_is_refused(world: World) -> None:
    first = world.rollout(*STEPS)
    driver = world.driver()
    driver.register(first.model_copy(update={"id": "20261121-120000-0002"}))
    here = world.endpoint.file.read_text()
    write_config(world.endpoint, {ROLLOUT_KEY: None})
    world.metrics = False
    world.start(first)
    world.endpoint.file.write_text(here)

    with pytest.raises(RequestError, match="rollout 20261121-120000-0001 is under way, started by ada"):
        driver.go_on()
    assert world.shares == CANARY


# -- requests


def ask(world: World, request: str) -> None:
    world.edit(request=request, asked_by="bob")


def test_pause_stops_it_where_it_is(world: World) -> None:
    world.clock.at(1, lambda: ask(world, "pause"))
    state = world.start(world.rollout(*STEPS))
    assert (state.phase, state.reason) == ("paused", "paused by bob")
    assert world.shares == CANARY
    assert state_of(world).request is None


def test_a_step_that_was_paused_bakes_anew(world: World) -> None:
    world.clock.at(8, lambda: ask(world, "pause"))
    world.start(world.rollout(CANARY, bake="10s", max_bake="60s"))
    before = world.looks
    assert world.driver().go_on(lambda state: state.resumed(world.clock.now())).phase == "succeeded"
    assert world.looks - before >= 10


def test_promote_ends_a_bake(world: World) -> None:
    world.metrics = False
    world.clock.at(3, lambda: ask(world, "promote"))
    world.clock.at(8, lambda: ask(world, "promote"))
    assert world.start(world.rollout(*STEPS)).phase == "succeeded"


def test_abort_takes_it_back(world: World) -> None:
    world.clock.at(1, lambda: ask(world, "abort"))
    state = world.start(world.rollout(*STEPS))
    assert (state.phase, state.reason) == ("aborted", "aborted by bob")
    assert world.shares == START
    assert world.endpoint.rollout() is None


def test_a_step_waits_for_approval_and_for_nothing_less(world: World) -> None:
    world.clock.at(100, lambda: ask(world, "promote"))
    before = world.clock.monotonic()
    assert world.start(world.rollout(*STEPS, approve=[100])).phase == "succeeded"
    assert world.clock.monotonic() - before > 100
    assert world.told.count("hold") == 1


def test_pausing_is_no_way_round_an_approval(world: World) -> None:
    world.clock.at(10, lambda: ask(world, "pause"))
    state = world.start(world.rollout(*STEPS, approve=[100]))
    assert state.resumed(world.clock.now()).phase == "awaiting approval"


# -- waiting


def test_no_step_begins_in_a_frozen_environment(world: World) -> None:
    world.freeze("the audit")
    world.clock.at(50, lambda: world.freeze(None))
    before = world.clock.monotonic()
    assert world.start(world.rollout(CANARY)).phase == "succeeded"
    assert world.clock.monotonic() - before > 50
    assert "dev is frozen: the audit" in world.said


def test_no_step_begins_in_quiet_hours(world: World) -> None:
    quiet = [{"start": "11:00", "end": "12:01"}]
    before = world.clock.monotonic()
    assert world.start(world.rollout(CANARY, quiet=quiet)).phase == "succeeded"
    assert world.clock.monotonic() - before > 60
    assert "quiet hours, until 2026-11-21 12:01 UTC" in world.said


def test_a_rollout_that_takes_too_long_is_taken_back(world: World) -> None:
    world.freeze("for ever")
    state = world.start(world.rollout(*STEPS, max_duration="30s"))
    assert state.phase == "taken back"
    assert "not done within its maximum duration, 30 s" in state.reason


# -- steps that fail


def test_a_candidate_without_a_ready_replica_fails_before_any_weight(world: World) -> None:
    world.ready = False
    world.clock.at(1, lambda: setattr(world, "ready", True))
    state = world.start(world.rollout(*STEPS))
    assert state.phase == "taken back"
    assert "not ready within 120 s" in state.reason
    assert world.moves == [START]


def test_a_candidate_that_fails_its_samples_fails_before_any_weight(world: World) -> None:
    world.broken = {"warm up": 1}
    assert world.start(world.rollout(*STEPS)).reason == "request 1 got 500"
    assert world.moves == [START]


def test_an_update_that_fails_once_is_tried_again(world: World) -> None:
    world.broken = {"up": 2}
    assert world.start(world.rollout(*STEPS)).phase == "succeeded"


def test_an_update_that_fails_again_and_again_fails_its_step(world: World) -> None:
    world.broken = {"up": 6}
    state = world.start(world.rollout(*STEPS))
    assert state.phase == "taken back"
    assert "no space left on device" in state.reason
    assert world.moves == [START]


def test_weights_that_the_data_plane_disagrees_with_fail_their_step(world: World) -> None:
    world.broken = {"verify": 1}
    state = world.start(world.rollout(*STEPS))
    assert (state.phase, state.reason) == ("taken back", f"{ENDPOINT}: asked for other weights")
    assert world.shares == START


def test_taking_back_is_tried_until_it_is_done(world: World) -> None:
    world.errors = {NEW: 0.5}
    world.clock.at(1, lambda: world.broken.update(up=7))
    assert world.start(world.rollout(*STEPS)).phase == "taken back"
    assert (world.outputs["weights"], world.shares) == (START, START)


def test_taking_back_goes_by_the_stack_where_the_fast_path_is_closed(world: World) -> None:
    world.errors = {NEW: 0.5}
    world.broken = {"shift": 1}
    assert world.start(world.rollout(*STEPS)).phase == "taken back"
    assert world.shares == START


def test_replicas_that_were_given_up_are_back_before_traffic_is(world: World) -> None:
    world.errors = {NEW: 0.5}
    world.clock.at(1, lambda: world.replicas.update({OLD: 0}))
    assert world.start(world.rollout(*STEPS)).phase == "taken back"
    assert world.replicas[OLD] == 2


def test_a_failure_only_holds_it_where_the_settings_say_so(world: World) -> None:
    world.errors = {NEW: 0.5}
    state = world.start(world.rollout(*STEPS, on_failure="hold"))
    assert state.phase == "held"
    assert "failed gate" in state.reason
    assert world.shares == CANARY


def test_a_hook_that_fails_fails_its_step(world: World) -> None:
    world.broken = {"hook": 1}
    state = world.start(world.rollout(*STEPS, hooks=HOOKS))
    assert (state.phase, world.moves) == ("taken back", [START])


def test_hooks_run_before_and_after_each_step(world: World) -> None:
    world.start(world.rollout(*STEPS, hooks=HOOKS))
    assert world.hooks == ["1 preparing", "1 baking", "2 preparing", "2 baking"]


# -- the end


def test_the_old_side_is_kept_for_a_while_and_then_scaled_down(world: World) -> None:
    world.clock.at(50, lambda: world.hooks.append(f"{world.replicas[OLD]} old"))
    world.start(world.rollout(*STEPS, keep="60s"))
    assert world.hooks == ["2 old"]
    assert world.replicas == {OLD: 0, NEW: 2}


def test_while_the_old_side_is_kept_it_can_be_gone_back_to(world: World) -> None:
    world.clock.at(50, lambda: ask(world, "abort"))
    assert world.start(world.rollout(*STEPS, keep="600s")).phase == "aborted"
    assert world.shares == START


def test_ab_ends_with_its_winner(world: World) -> None:
    world.clock.at(8, lambda: setattr(world, "winner", NEW))
    state = world.start(world.rollout({OLD: 50, NEW: 50}, strategy="ab"))
    assert state.phase == "succeeded"
    assert world.moves == [START, {OLD: 50, NEW: 50}, DONE]


def test_ab_without_a_winner_is_inconclusive(world: World) -> None:
    state = world.start(world.rollout({OLD: 50, NEW: 50}, strategy="ab"))
    assert state.phase == "held"
    assert "no version has won yet" in state.reason


def test_adaptive_steps_follow_the_scores_and_end_at_the_best(world: World) -> None:
    world.scores = {OLD: 2.0, NEW: 1.0}
    steps = ({OLD: 90, NEW: 10}, {OLD: 50, NEW: 50}, {OLD: 0, NEW: 100})
    state = world.start(world.rollout(*steps, strategy="adaptive"))
    assert state.phase == "succeeded"
    assert world.moves == [START, CANARY, {OLD: 70, NEW: 30}, {NEW: 100}]
