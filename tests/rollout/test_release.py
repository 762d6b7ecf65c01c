"""What a change of an endpoint leaves behind when somebody else has changed its stack, or rolls it out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.contracts import ObservationError, Observer
from infra.settings.fence import Fence
from rollout.driving.driver import NoRolloutError
from rollout.driving.state import ENDED, Phase, RequestError
from rollout.project import ROLLOUT_KEY, StackConfig, write_config
from rollout.pulumi_stack import Changes, StackError, StackLockedError
from rollout.release import FencedError, Releases
from tests.rollout.world import ENDPOINT, NEW, OLD, World

START = {OLD: 100}
CANARY = {OLD: 90, NEW: 10}
OTHER = {OLD: 70, NEW: 30}


class StandInReleases(Releases):
    """`Releases` whose engine and data plane are the stand-in world's."""

    def __init__(self, world: World) -> None:
        super().__init__(world.project, world.said.append, world.clock)
        self._world = world
        self.readable = True
        """Whether the backend says what the stack exports."""
        self.meanwhile: dict[str, int] | None = None
        """Weights that somebody else gives the data plane during the update."""

    def pulumi(self, stack: StackConfig) -> Any:
        return SimpleNamespace(up=self._up, outputs=self._read)

    def observer(self, stack: StackConfig) -> Observer:
        return self._world.means().releases.observer(stack)

    def platform(self, environment: str) -> Any:
        return {}

    def _read(self) -> dict[str, Any]:
        if not self.readable:
            raise StackError("the backend does not answer")
        return self._world.outputs

    def _up(self, message: str, notify: object) -> Changes:
        endpoint = self._world.endpoint
        if self.meanwhile is not None:
            self._world.move(self.meanwhile)
        try:
            self._world.update(endpoint.document(), endpoint.rollout(), message)
        except StackError as error:
            raise StackError(f"Pulumi.dev.scan.yaml: lepton:rollout.follows: {error}") from None
        return Changes({}, 1.0)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint whose rollout bakes its canary, or has been left so by its driver."""
    world = World(tmp_path, metrics=False)
    world.start(world.rollout(CANARY, {OLD: 0, NEW: 100}))
    world.edit(phase="baking")
    shifter = SimpleNamespace(shift=lambda team, model, weights: world.move(weights))
    monkeypatch.setattr("rollout.release.shifter_of", lambda platform: shifter)
    return world


@pytest.fixture
def releases(world: World) -> StandInReleases:
    return StandInReleases(world)


def elsewhere(world: World) -> None:
    """Another checkout's driver has made the stack's last update."""
    world.outputs = world.outputs | {"rollout": world.outputs["rollout"] | {"driver": "elsewhere"}}


def take_back(world: World, releases: Releases) -> None:
    document = world.endpoint.document() | {"variants": [{"version": OLD, "weight": 100}]}
    releases.apply(world.endpoint, document, "taken back", rollout=world.endpoint.rollout(), fast=True)


def test_a_shift_that_the_stack_would_refuse_is_not_made(world: World, releases: StandInReleases) -> None:
    elsewhere(world)
    file, moves = world.endpoint.file.read_text(), list(world.moves)
    with pytest.raises(FencedError, match="the stack was changed meanwhile"):
        take_back(world, releases)
    assert (world.endpoint.file.read_text(), world.moves) == (file, moves)


def test_a_shift_that_the_stack_refuses_is_undone(world: World, releases: StandInReleases) -> None:
    elsewhere(world)
    releases.readable = False
    before = world.endpoint
    with pytest.raises(FencedError, match="the stack was changed meanwhile"):
        take_back(world, releases)
    assert world.moves[-2:] == [START, CANARY]
    assert (world.endpoint.document(), world.endpoint.rollout()) == (before.document(), before.rollout())


def test_a_refused_shift_is_not_undone_over_the_weights_of_whoever_came_between(
    world: World, releases: StandInReleases
) -> None:
    elsewhere(world)
    releases.readable, releases.meanwhile = False, OTHER
    with pytest.raises(FencedError):
        take_back(world, releases)
    assert world.shares == OTHER


def test_weights_set_in_a_rollout_pause_it_and_their_file_is_fenced(world: World, releases: StandInReleases) -> None:
    releases.set_weights(world.endpoint, OTHER, by="bob")

    state = world.endpoint.rollout()
    assert state is not None
    assert (state["phase"], state["reason"]) == ("paused", "traffic set by bob: 1.0.0=70 1.1.0=30")
    assert world.shares == OTHER
    fence = Fence.model_validate(state)
    assert fence.refusal(OTHER, world.outputs) is None, "it may be made again"
    elsewhere(world)
    assert fence.refusal(OTHER, world.outputs) is not None


def test_weights_are_set_where_the_backend_can_not_say_what_the_stack_has(
    world: World, releases: StandInReleases
) -> None:
    releases.readable = False
    releases.set_weights(world.endpoint, OTHER)
    assert world.shares == OTHER


def test_no_weights_are_set_while_a_driver_takes_the_rollout_back(world: World, releases: StandInReleases) -> None:
    world.edit(phase="taking back")
    file = world.endpoint.file.read_text()
    with (
        world.project.driving(world.endpoint),
        pytest.raises(RequestError, match="is being taken back; try again when it is over"),
    ):
        releases.set_weights(world.endpoint, OTHER)
    assert (world.endpoint.file.read_text(), world.shares) == (file, CANARY)


@pytest.mark.parametrize("phase", ["taking back", *ENDED])
def test_weights_end_a_rollout_that_nothing_but_its_end_is_missing_of(
    world: World, releases: StandInReleases, phase: Phase
) -> None:
    world.edit(phase=phase)
    releases.set_weights(world.endpoint, OTHER)
    assert ROLLOUT_KEY not in world.endpoint.file.read_text()
    assert (world.outputs["weights"], world.shares) == (OTHER, OTHER)
    with pytest.raises(NoRolloutError):
        world.driver().go_on()


def test_weights_of_an_endpoint_without_a_rollout_are_set(world: World, releases: StandInReleases) -> None:
    write_config(world.endpoint, {ROLLOUT_KEY: None})
    releases.set_weights(world.project.stack(ENDPOINT), OTHER)
    assert world.shares == OTHER


class _Reasons:
    """Stands in for an observer that knows why replicas aren't ready, or can't be asked."""

    def __init__(self, known: list[str] | None) -> None:
        self._known = known

    def why_not_ready(self, team: str, model: str, version: str) -> list[str]:
        if self._known is None:
            raise ObservationError("the cluster's API server can't be reached")
        return [f"{reason} for {team} {model} {version}" for reason in self._known]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["pool h100 lacks a GPU"], "never ready\n{address}: pool h100 lacks a GPU for diagnostics scan 1.0.0"),
        ([], "never ready"),
        (None, "never ready"),
    ],
)
def test_a_version_that_does_not_come_up_says_what_the_data_plane_knows_of_it(
    world: World, known: list[str] | None, said: str
) -> None:
    releases = Releases(world.project)
    releases.observer = lambda stack: _Reasons(known)  # pyright: ignore[reportAttributeAccessIssue]
    version = world.project.stack(f"diagnostics/dev.scan-{OLD}")
    with pytest.raises(StackError) as refused, releases.explaining(version):
        raise StackError("never ready")
    assert str(refused.value) == said.format(address=version.address)


def test_that_another_update_holds_a_version_is_explained_no_further(world: World) -> None:
    releases = Releases(world.project)
    releases.observer = lambda stack: _Reasons(["never asked"])  # pyright: ignore[reportAttributeAccessIssue]
    with (
        pytest.raises(StackLockedError, match=r"^locked$"),
        releases.explaining(world.project.stack(f"diagnostics/dev.scan-{OLD}")),
    ):
        raise StackLockedError("locked")
