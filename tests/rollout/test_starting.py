"""What a rollout starts with, and can be taken back to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from infra.contracts import Amount
from infra.settings.rollout import RolloutSettings
from rollout.driving.starting import new_rollout
from rollout.planning.peak import Peak
from rollout.planning.plan import Duration, Plan
from rollout.project import write_config
from rollout.release import Releases
from rollout.strategies import plan_steps
from tests.rollout.world import ENDPOINT, NEW, OLD, World


@pytest.mark.parametrize(
    ("autoscaling", "replicas"), [(None, 1), ({"max": 30, "target": 0.5}, 20)], ids=["fixed", "scales"]
)
def test_a_version_that_serves_under_an_autoscaler_is_taken_back_to_what_serves(
    tmp_path: Path, autoscaling: dict[str, float] | None, replicas: int
) -> None:
    world = World(tmp_path)
    world.replicas = {OLD: 20, NEW: 3}
    world.outputs = {"desired_replicas": 1}
    for version in (OLD, NEW):
        stack = world.project.version_of(world.endpoint, version)
        write_config(
            stack, {"lepton:version": stack.document() | ({"autoscaling": autoscaling} if autoscaling else {})}
        )
    settings = RolloutSettings()
    steps = tuple(plan_steps({OLD: 100}, {NEW: 100}, settings, {OLD: 1, NEW: 1}))
    nothing: Amount = {"cpu": 0, "memory": 0, "gpu": 0}
    fits = Peak(nothing, nothing, nothing)
    plan = Plan(ENDPOINT, "canary", {OLD: 100}, {NEW: 100}, steps, fits, (), (), Duration(1, 1), None, (), ())
    stacks = world.means().releases
    releases = cast("Releases", SimpleNamespace(revisions=lambda _: [], pulumi=stacks.pulumi, observer=stacks.observer))
    state = new_rollout(releases, world.project, world.endpoint, plan, settings, "ada", world.clock.now())
    # The new one has no weight to go back to.
    assert state.initial.capacity == {OLD: replicas, NEW: 1}
