"""The driver's state machine in a stand-in world: it ends as it should, wherever it is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from infra.contracts import Amount
from infra.settings import SettingsError
from infra.settings.fence import Fence
from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import Judge
from rollout.analysis.samples import Look
from rollout.driving.asking import pause_undriven
from rollout.driving.driver import (
    Driver,
    NoRolloutError,
    RolloutActiveError,
    StepError,
    SupersededError,
    _Disturbed,
    _Undecidable,
)
from rollout.driving.starting import new_rollout
from rollout.driving.state import Phase, RequestError, RolloutState, read_state
from rollout.planning.peak import Peak
from rollout.planning.plan import Duration, Plan
from rollout.project import ROLLOUT_KEY, write_config
from rollout.pulumi_stack import StackError
from rollout.release import Releases
from rollout.strategies import plan_steps
from tests.rollout.world import ENDPOINT, NEW, OLD, Killed, World, _Metrics

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


def taken_over_elsewhere(world: World) -> None:
    world.outputs = world.outputs | {"rollout": world.outputs["rollout"] | {"driver": "elsewhere"}}


def test_a_driver_that_was_taken_over_elsewhere_takes_nothing_back(world: World) -> None:
    world.errors = {NEW: 0.5}
    world.clock.at(1, lambda: taken_over_elsewhere(world))
    with pytest.raises(SupersededError, match="the stack was changed meanwhile"):
        world.start(world.rollout(*STEPS))
    assert world.moves == [START, CANARY]


def test_a_driver_that_was_taken_over_elsewhere_scales_nothing_down(world: World) -> None:
    world.clock.at(30, lambda: taken_over_elsewhere(world))
    with pytest.raises(SupersededError, match="somebody else has updated the stack"):
        world.start(world.rollout(*STEPS, keep="60s"))
    assert world.replicas[OLD] == 2


def test_weights_that_somebody_has_set_while_it_was_taken_back_stay(world: World) -> None:
    def set_traffic() -> None:
        world.edit(phase="paused", reason="traffic set by bob: 1.0.0=70 1.1.0=30")
        world.move({OLD: 70, NEW: 30})

    world.errors = {NEW: 0.5}
    world.clock.at(1, lambda: world.broken.update(up=7))
    world.clock.at(6, set_traffic)
    assert world.start(world.rollout(*STEPS)).phase == "paused"
    assert world.shares == {OLD: 70, NEW: 30}


def refusal(world: World) -> str | None:
    """Why an update by what the file says would be refused."""
    fence = Fence.model_validate(world.endpoint.rollout())
    return fence.refusal(world.endpoint.endpoint.weights, world.outputs)


@pytest.mark.parametrize("seconds", [1, 4], ids=["in its first step", "in its last"])
def test_a_file_that_a_rollout_has_left_behind_is_fenced(world: World, seconds: int) -> None:
    driver = world.driver()
    driver.register(world.rollout(*STEPS, keep="60s"))
    world.clock.at(seconds, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        driver.go_on()
    behind = world.endpoint.file.read_text()
    assert state_of(world).phase in ("baking", "finishing")
    assert refusal(world) is None, "what is in force may be made again"

    world.driver().go_on(lambda state: state.aborted("ada"))
    after = world.endpoint.document()
    world.endpoint.file.write_text(behind)
    said = refusal(world)
    assert said is not None
    assert "the stack was changed meanwhile: it has 1.0.0=100 by driver driver-2" in said

    # Somebody deploys the endpoint as it was before the rollout, and is now.
    world.update(after, None, "deploy")
    said = refusal(world)
    assert said is not None
    assert "it has 1.0.0=100 by no rollout" in said


def test_a_file_of_an_earlier_step_is_fenced(world: World) -> None:
    behind: list[str] = []
    world.clock.at(1, lambda: behind.append(world.endpoint.file.read_text()))
    world.clock.at(30, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        world.start(world.rollout(*STEPS, keep="60s"))
    assert refusal(world) is None
    world.endpoint.file.write_text(behind[0])
    assert refusal(world) is not None


def test_a_file_is_fenced_from_the_moment_a_driver_has_it(world: World) -> None:
    driver = world.driver()
    driver.register(world.rollout(*STEPS))
    world.kill_at = world.boundaries
    with pytest.raises(Killed):
        driver.go_on()
    assert refusal(world) is None
    world.outputs = world.outputs | {"weights": {OLD: 50}}
    assert refusal(world) is not None


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


def test_the_first_step_waits_for_approval_too(world: World) -> None:
    settings = RolloutSettings.model_validate({"approve": [10], "bake": "2s", "max_bake": "20s"})
    steps = tuple(plan_steps(START, DONE, settings.model_copy(update={"steps": (10.0, 100.0)}), {OLD: 2, NEW: 2}))
    nothing: Amount = {"cpu": 0, "memory": 0, "gpu": 0}
    fits = Peak(nothing, nothing, nothing)
    plan = Plan(ENDPOINT, "canary", START, DONE, steps, fits, (), (), Duration(1, 1), None, (), ())
    releases = cast("Releases", SimpleNamespace(revisions=lambda _: [], pulumi=world.means().releases.pulumi))
    state = new_rollout(releases, world.project, world.endpoint, plan, settings, "ada", world.clock.now())
    world.clock.at(100, lambda: ask(world, "promote"))
    world.clock.at(99, lambda: world.hooks.append(str(world.shares)))

    assert state.phase == "awaiting approval"
    assert world.start(state).phase == "succeeded"
    assert world.hooks == [str(START)]


# -- on from a stop


def resume(world: World) -> RolloutState:
    return world.driver().go_on(lambda state: state.resumed(world.clock.now()))


def promote(world: World) -> RolloutState:
    return world.driver().go_on(lambda state: state.promoted(world.clock.now(), "bob"))


@pytest.mark.parametrize("go_on", [resume, promote])
def test_a_hold_for_its_duration_ends_with_a_persons_word(world: World, go_on: Callable[[World], RolloutState]) -> None:
    world.freeze("the audit")
    held = world.start(world.rollout(*STEPS, max_duration="30s", on_failure="hold"))
    assert (held.phase, held.reason) == ("held", "not done within its maximum duration, 30 s")
    world.freeze(None)
    assert go_on(world).phase == "succeeded"
    assert world.moves == [START, CANARY, DONE]


def test_promote_skips_no_step_whose_weights_were_never_set(world: World) -> None:
    world.broken = {"warm up": 1}
    held = world.start(world.rollout(*STEPS, on_failure="hold"))
    assert (held.phase, held.in_force.weights) == ("held", START)
    assert promote(world).phase == "succeeded"
    assert world.moves == [START, CANARY, DONE]


def test_promote_skips_a_step_whose_weights_are_in_force(world: World) -> None:
    world.errors = {NEW: 0.5}
    held = world.start(world.rollout(*STEPS, on_failure="hold"))
    assert (held.phase, held.summary()["weights"]) == ("held", CANARY)
    world.errors = {}
    before = world.looks
    assert promote(world).phase == "succeeded"
    assert world.moves == [START, CANARY, DONE]
    assert world.looks - before <= 5


@pytest.mark.parametrize("go_on", [resume, promote])
def test_a_finish_that_nobody_could_watch_is_held_and_goes_on_without_another_bake(
    world: World, go_on: Callable[[World], RolloutState]
) -> None:
    world.clock.at(20, lambda: setattr(world, "readable", False))
    held = world.start(world.rollout(*STEPS, keep="100s"))
    assert held.phase == "held"
    assert "could not be read for 30 s" in held.reason
    assert held.in_force.weights == STEPS[1]
    world.readable = True
    before = world.looks
    assert go_on(world).phase == "succeeded"
    # One look goes with the setting of weights, and none with a bake.
    assert world.looks - before <= 1
    assert world.replicas == {OLD: 0, NEW: 2}


PROBLEMS = [_Disturbed("moved"), _Undecidable("blind"), StepError("no"), StackError("no"), OSError("full")]
DRIVEN: list[Phase] = ["awaiting approval", "waiting", "preparing", "moving", "baking", "finishing"]
"""What goes wrong in taking back is tried again, and leads nowhere else."""


@pytest.mark.parametrize("on_failure", ["hold", "rollback"])
@pytest.mark.parametrize("phase", DRIVEN)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: type(problem).__name__)
def test_whatever_goes_wrong_in_whatever_phase_leads_on(
    world: World, problem: Exception, phase: Phase, on_failure: str
) -> None:
    def fail(state: RolloutState) -> RolloutState:
        raise problem

    start = world.rollout(*STEPS, on_failure=on_failure)
    driver = world.driver()
    driver._phases = {**driver._phases, phase: fail}
    driver.register(start.model_copy(update={"phase": phase}) if phase == "awaiting approval" else start)

    stopped = {"_Disturbed": "paused", "_Undecidable": "held"}
    failed = "held" if on_failure == "hold" else "taken back"
    assert driver.go_on().phase == stopped.get(type(problem).__name__, failed)


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


def test_a_candidate_that_dies_in_a_bake_is_taken_back_though_no_metric_names_it(world: World) -> None:
    world.clock.at(20, lambda: world.replicas.update({NEW: 0}))
    state = world.start(world.rollout(*STEPS, gates=[], bake="60s", max_bake="60s"))
    assert state.phase == "taken back"
    assert f"{NEW} gets requests, and has had no ready replica for 10 s" in state.reason
    assert world.moves[-1] == START


def test_a_candidate_that_is_back_soon_goes_on(world: World) -> None:
    world.clock.at(20, lambda: world.replicas.update({NEW: 0}))
    world.clock.at(28, lambda: world.replicas.update({NEW: 1}))
    world.clock.at(35, lambda: world.replicas.update({NEW: 0}))
    world.clock.at(43, lambda: world.replicas.update({NEW: 1}))
    assert world.start(world.rollout(*STEPS, gates=[], bake="60s", max_bake="60s")).phase == "succeeded"


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


def test_the_hook_after_a_step_has_what_its_own_gates_said(world: World) -> None:
    found: list[Any] = []
    means = replace(world.means(), run_hooks=lambda hooks, facts, folder: found.append((facts["phase"], facts)))
    driver = Driver(means, ENDPOINT, "driver-1")
    driver.register(world.rollout(*STEPS, hooks=HOOKS))
    driver.go_on()
    said = [[each["reason"] for each in facts["outcomes"]] for phase, facts in found if phase == "baking"]
    assert said == [["0 of 20 failed"], ["0 of 200 failed"]]


# -- blue-green


def blue_green(world: World, **settings: Any) -> RolloutState:
    state = world.rollout({OLD: 100, NEW: 0}, {OLD: 0, NEW: 100}, strategy="blue-green", **settings)
    # The stand-in's percentages are the new version's weights.
    assert [step.percent for step in state.steps] == [0.0, 100.0]
    return state


def test_the_new_side_answers_its_samples_before_it_is_looked_at_without_weight(world: World) -> None:
    world.clock.at(1, lambda: world.hooks.append(str(world.effects.count("warm up"))))
    assert world.start(blue_green(world, bake="10s")).phase == "succeeded"
    assert world.hooks == ["1"]


def test_a_new_side_that_fails_its_samples_is_never_switched_to(world: World) -> None:
    world.broken = {"warm up": 1}
    before = world.clock.monotonic()
    assert world.start(blue_green(world, bake="10s")).reason == "request 1 got 500"
    assert world.moves == [START]
    assert world.clock.monotonic() - before < 10


def test_a_gate_that_needs_no_requests_fails_the_new_side_without_weight(world: World) -> None:
    gate = {"metric": "promql", "name": "accuracy", "query": "q", "better": "higher", "compare": False, "limit": 0.9}
    values = cycle([0.1, 0.2, 0.3])

    def look(versions: Sequence[str]) -> Look:
        return replace(_Metrics(world).look(versions), values={"accuracy": {NEW: next(values)}})

    means = replace(
        world.means(),
        sampler=lambda endpoint, state: SimpleNamespace(look=look),
        judge=lambda state: Judge(state.settings, state.baseline, state.candidates),
    )
    driver = Driver(means, ENDPOINT, "driver-1")
    driver.register(blue_green(world, gates=[gate], bake="60s", max_bake="60s"))
    state = driver.go_on()
    assert state.phase == "taken back"
    assert state.reason.startswith("1.1.0 failed gate accuracy")
    assert world.moves == [START]


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


ADAPTIVE = ({OLD: 90, NEW: 10}, {OLD: 50, NEW: 50}, {OLD: 0, NEW: 100})


def test_adaptive_steps_follow_the_scores_and_end_at_a_version_that_is_better_beyond_chance(world: World) -> None:
    world.scores, world.winner = {OLD: 2.0, NEW: 1.0}, NEW
    state = world.start(world.rollout(*ADAPTIVE, strategy="adaptive"))
    assert state.phase == "succeeded"
    assert world.moves == [START, CANARY, {OLD: 70, NEW: 30}, {NEW: 100}]


def test_adaptive_ends_with_a_mixture_where_the_best_score_may_be_chance(world: World) -> None:
    world.scores = {OLD: 2.0, NEW: 1.0}
    state = world.start(world.rollout(*ADAPTIVE, strategy="adaptive"))
    assert state.phase == "succeeded"
    assert world.moves == [START, CANARY, {OLD: 70, NEW: 30}, {OLD: 50, NEW: 50}]
    said = "no version is better than the others beyond chance: the rollout ends with 1.0.0=50 1.1.0=50"
    assert said in world.said


# -- checkouts and files as people have them


def write(file: Path, text: str) -> None:
    file.write_text(text)


def test_a_fresh_checkout_goes_on_from_the_second_step(world: World) -> None:
    committed = world.endpoint.file.read_text()
    world.clock.at(6, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        world.start(world.rollout({OLD: 90, NEW: 10}, {OLD: 50, NEW: 50}, {OLD: 0, NEW: 100}, bake="4s"))
    assert world.shares == {OLD: 50, NEW: 50}
    world.endpoint.file.write_text(committed + "# mine\n")

    assert world.driver().go_on().phase == "succeeded"

    assert world.moves == [START, CANARY, {OLD: 50, NEW: 50}, DONE]
    assert "it has the traffic of the stack's last update now: 1.0.0=50 1.1.0=50" in " ".join(world.said)
    assert "# mine" in world.endpoint.file.read_text()


def test_a_fresh_checkout_that_pauses_first_can_go_on_too(world: World) -> None:
    committed = world.endpoint.file.read_text()
    world.clock.at(6, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        world.start(world.rollout({OLD: 90, NEW: 10}, {OLD: 50, NEW: 50}, {OLD: 0, NEW: 100}, bake="4s"))
    world.endpoint.file.write_text(committed)

    pause_undriven(world.project, world.means().releases, world.endpoint, "bob", world.clock)

    assert world.endpoint.endpoint.weights == {OLD: 50, NEW: 50}
    assert world.driver().go_on(lambda state: state.resumed(world.clock.now())).phase == "succeeded"


def test_a_checkout_without_the_candidate_does_not_go_on_but_can_abort(world: World) -> None:
    committed = world.endpoint.file.read_text()
    world.clock.at(1, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        world.start(world.rollout(*STEPS))
    world.endpoint.file.write_text(committed)
    (world.endpoint.file.parent / f"Pulumi.dev.scan-{NEW}.yaml").unlink()

    with pytest.raises(SettingsError, match=r"1\.1\.0: that version of scan has no stack"):
        world.driver().go_on()
    assert world.shares == CANARY
    assert world.endpoint.file.read_text() == committed

    assert world.driver().go_on(lambda state: state.aborted("ada")).phase == "aborted"
    assert world.shares == START


@pytest.mark.parametrize("half", ["config:\n  lepton:endp", "", None], ids=["cut off", "empty", "gone"])
def test_a_config_file_that_is_just_being_saved_is_read_again(world: World, half: str | None) -> None:
    file, kept = world.endpoint.file, list[str]()

    def begin_saving() -> None:
        kept.append(file.read_text())
        file.unlink() if half is None else file.write_text(half)

    world.clock.at(3, begin_saving)
    world.clock.at(20, lambda: write(file, kept[0]))

    assert world.start(world.rollout(CANARY, bake="40s", max_bake="90s")).phase == "succeeded"


def test_a_config_file_that_stays_unusable_ends_the_driver(world: World) -> None:
    world.clock.at(1, lambda: write(world.endpoint.file, "config:\n  lepton:endp"))
    before = world.clock.monotonic()
    with pytest.raises(SupersededError, match="a stack's config file is a mapping"):
        world.start(world.rollout(*STEPS))
    assert 30 < world.clock.monotonic() - before < 40
    assert world.shares == CANARY


def test_a_platform_file_that_is_just_being_saved_ends_no_wait(world: World) -> None:
    world.freeze("the audit")
    world.clock.at(5, lambda: write(world.root / "stacks/platform/Pulumi.dev.yaml", ""))
    world.clock.at(10, lambda: world.freeze(None))
    assert world.start(world.rollout(CANARY)).phase == "succeeded"


def test_a_variant_that_was_written_and_never_deployed_is_deployed_before_it_is_warmed_up(world: World) -> None:
    variants = [{"version": OLD, "weight": 100}, {"version": NEW, "weight": 0}]
    write_config(world.endpoint, {"lepton:endpoint": world.endpoint.document() | {"variants": variants}})

    assert world.start(world.rollout(*STEPS)).phase == "succeeded"

    update = next(index for index, effect in enumerate(world.effects) if effect == "up")
    assert update < world.effects.index("warm up")
    assert world.history[1].message.endswith("step 1/2: 1.1.0 without weight")
