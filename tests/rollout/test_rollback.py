"""How versions stand to what a rollback needs of them, judged from their histories, and what a rollback makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pulumi.automation import ConfigValue, UpdateSummary

from infra.contracts import Amount, Room
from model_packaging.build import build_artifact
from model_packaging.stores.layout import Layout
from rollout.capacity import Capacity, CapacityError, Standing
from rollout.project import BusyError, Project, StackConfig, write_config
from rollout.pulumi_stack import Changes, NoStackError, StackError
from rollout.release import NotVerifiedError, Releases
from rollout.revisions import Revision, revisions
from rollout.rollback import Rollbacks
from tests.rollout.world import WorldClock

MODEL, VERSION, NEW = "tumour", "1.0.0", "2.0.0"
START = datetime(2026, 1, 1, tzinfo=UTC)
THEN, LATER = START + timedelta(minutes=5), START + timedelta(minutes=15)


class StandInReleases:
    """Stands in for `Releases`: histories and a data plane as a test says, and no engine."""

    def __init__(self, store: Path) -> None:
        self.histories: dict[str, list[UpdateSummary]] = {}
        self.replicas: dict[str, int] = {}
        self.total = Amount(cpu=8.0, memory=2**34, gpu=2)
        self.reserved = Amount(cpu=0.0, memory=0, gpu=0)
        self.weights = {VERSION: 90}
        self.shadow = {NEW: 10.0}
        self.broken: set[str] = set()
        """Names of stacks whose updates fail."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What another process does while an endpoint's weights move."""
        self._store = store

    def observer(self, stack: StackConfig) -> StandInReleases:
        return self

    def ready(self, team: str, model: str, versions: Iterable[str]) -> dict[str, int]:
        return {version: self.replicas.get(version, 0) for version in versions}

    def traffic(self, team: str, model: str) -> dict[str, Any]:
        return {"weights": self.weights, "shadow": self.shadow}

    def room(self) -> Room:
        return {"total": self.total, "reserved": self.reserved}

    def platform(self, environment: str) -> dict[str, str]:
        return {"artifact_store": str(self._store)}

    def pulumi(self, stack: StackConfig) -> Any:
        return StandInStack(self, stack)

    def revisions(self, endpoint: StackConfig) -> list[Revision]:
        return revisions(self.histories[endpoint.name], "lepton:endpoint")

    def explaining(self, stack: StackConfig) -> AbstractContextManager[None]:
        return nullcontext()

    def apply(self, endpoint: StackConfig, document: dict[str, Any], message: str, *, fast: bool = False) -> Changes:
        write_config(endpoint, {"lepton:endpoint": document})
        self.weights = endpoint.with_document(document).endpoint.weights
        self.meanwhile()
        return Changes({"update": 1}, 1.0)


class StandInStack:
    """Stands in for a version's `PulumiStack`, whose replicas are ready at once."""

    def __init__(self, releases: StandInReleases, stack: StackConfig) -> None:
        self._releases, self._stack = releases, stack

    def history(self) -> list[UpdateSummary]:
        return self._releases.histories.get(self._stack.name, [])

    def preview(self) -> None:
        if not self.history():
            raise NoStackError(f"{self._stack.address}: the backend has no such stack")

    def up(self, message: str, **_: Any) -> None:
        if self._stack.name in self._releases.broken:
            raise StackError(f"{self._stack.address}: no space left on device")
        document = self._stack.document()
        done = self._releases.histories.setdefault(self._stack.name, [])
        done.append(update(LATER + timedelta(minutes=len(done)), document, message=message))
        self._releases.replicas[document["version"]] = document.get("replicas", 1)


class Bench:
    """A project with an endpoint on disk, and versions that only the stand-in has deployed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "stacks" / "diagnostics"
        folder.mkdir(parents=True)
        (root / "Pulumi.yaml").write_text("name: lepton\n")
        (folder / "Pulumi.yaml").write_text("name: diagnostics\n")
        self.folder = folder
        variants = [{"version": VERSION, "weight": 1}]
        self._write(f"dev.{MODEL}", "endpoint", {"environment": "dev", "model": MODEL, "variants": variants})
        self.releases = StandInReleases(root / "store")
        self.project = Project(root)
        self.refused = ""
        self.clock = WorldClock()
        self.said: list[str] = []

    def _write(self, stack: str, kind: str, document: dict[str, Any]) -> None:
        (self.folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": {f"lepton:{kind}": document}}))

    def declare(self, **settings: Any) -> dict[str, Any]:
        """Has the version a config file."""
        self._write(f"dev.{MODEL}-{VERSION}", "version", version(**settings))
        return version(**settings)

    def package(self) -> None:
        folder = self.root / "model"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"weights")
        sample = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}
        described = {"framework": {"name": "none", "version": "1"}, "training_data": "none", "licence": "MIT"}
        (folder / "package.yaml").write_text(yaml.safe_dump(described | {"samples": [sample]}))
        build_artifact(folder, MODEL, VERSION, Layout(self.root / "store"))

    def replaced(self) -> None:
        """The version is deployed, and a newer one, which has all the traffic by now."""
        self._write(f"dev.{MODEL}-{NEW}", "version", version(version=NEW))
        self.deployed(update(START, self.declare()), ready=1)
        self.releases.histories[f"dev.{MODEL}-{NEW}"] = [update(START, version(version=NEW))]
        self.releases.replicas[NEW] = 1
        history: list[UpdateSummary] = []
        for moment, weights in ((START, {VERSION: 100, NEW: 0}), (LATER, {VERSION: 0, NEW: 100})):
            variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
            document = {"environment": "dev", "model": MODEL, "variants": variants}
            self._write(f"dev.{MODEL}", "endpoint", document)
            history.append(update(moment, document, kind_of_stack="endpoint"))
            self.releases.weights = weights
        self.releases.histories[f"dev.{MODEL}"] = history
        self.releases.shadow = {}

    def deployed(self, *updates: UpdateSummary, ready: int = 0) -> None:
        self.releases.histories[f"dev.{MODEL}-{VERSION}"] = list(updates)
        self.releases.replicas = {VERSION: ready}

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            cast("Releases", self.releases),
            self.project,
            self.said.append,
            refuse=lambda model, version: self.refused or None,
        )

    @property
    def rollbacks(self) -> Rollbacks:
        return Rollbacks(cast("Releases", self.releases), self.project, self.said.append, self.clock)

    @property
    def endpoint(self) -> StackConfig:
        return self.project.stack(f"diagnostics/dev.{MODEL}")

    def standing(self, replicas: int = 1, at: datetime | None = THEN) -> Standing:
        (found,) = self.capacity.survey(self.endpoint, {VERSION: replicas}, at)
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def packaged(bench: Bench) -> Bench:
    bench.package()
    return bench


def version(**settings: Any) -> dict[str, Any]:
    return {"environment": "dev", "model": MODEL, "version": VERSION} | settings


def update(
    moment: datetime,
    document: dict[str, Any],
    *,
    kind: str = "update",
    result: str = "succeeded",
    message: str = "up dev",
    secret: bool = False,
    kind_of_stack: str = "version",
) -> UpdateSummary:
    changes = cast("dict[Any, int]", {"update": 1})
    value = ConfigValue("[secret]" if secret else json.dumps(document), secret=secret)
    summary = UpdateSummary(kind, moment, message, {}, {}, result, moment, 0, None, changes)
    summary.config[f"lepton:{kind_of_stack}"] = value
    return summary


def test_a_version_that_is_as_it_was_needs_nothing(bench: Bench) -> None:
    bench.deployed(update(START, bench.declare(replicas=2)), ready=2)
    assert bench.standing().missing == ""


def test_a_key_that_is_spelled_out_with_its_default_is_no_change(bench: Bench) -> None:
    bench.deployed(update(START, version()), update(LATER, bench.declare(warm_up=10)), ready=1)
    assert bench.standing().missing == ""


def test_a_version_is_to_have_the_replicas_that_it_had(packaged: Bench) -> None:
    packaged.deployed(update(START, version(replicas=3)), update(LATER, packaged.declare(replicas=1)), ready=1)
    found = packaged.standing()
    assert (found.missing, found.obstacle) == ("it was scaled down to 1 replica", "")
    assert (found.document["replicas"], found.replicas, found.more) == (3, 3, 2)


SCALING = {"min": 2, "max": 8, "target": 0.5}


@pytest.mark.parametrize(("replicas", "first"), [(1, 2), (5, 5), (50, 8)])
def test_a_version_that_scales_comes_back_with_what_a_deploy_begins_with(
    packaged: Bench, replicas: int, first: int
) -> None:
    then = version(replicas=replicas, autoscaling=SCALING)
    packaged.deployed(update(START, then), update(LATER, packaged.declare(replicas=0, autoscaling=SCALING)))
    found = packaged.standing()
    assert found.missing == "it was scaled down to 0 replicas"
    assert (found.document["replicas"], found.replicas) == (replicas, first)


@pytest.mark.parametrize(("ready", "missing"), [(1, "1 of its 2 replicas ready"), (2, ""), (7, "")])
def test_a_version_that_scales_is_not_short_where_its_autoscaler_has_what_it_needs(
    packaged: Bench, ready: int, missing: str
) -> None:
    packaged.deployed(update(START, packaged.declare(autoscaling=SCALING)), ready=ready)
    found = packaged.standing()
    assert (found.missing, found.replicas) == (missing, max(ready, 2))


def test_what_a_driver_needs_of_a_version_that_scales_is_judged_by_what_is_ready(packaged: Bench) -> None:
    packaged.deployed(update(START, packaged.declare(autoscaling=SCALING)), ready=6)
    assert packaged.standing(replicas=6, at=None).missing == ""
    found = packaged.standing(replicas=7, at=None)
    assert (found.missing, found.document["replicas"], found.more) == ("6 of its 7 replicas ready", 7, 1)
    # More there never are.
    assert packaged.standing(replicas=9, at=None).replicas == 8


def test_without_a_moment_it_is_the_config_file_that_counts(packaged: Bench) -> None:
    declared = packaged.declare(replicas=0, warm_up=3)
    packaged.deployed(update(START, version(replicas=3)), update(LATER, declared))
    found = packaged.standing(replicas=2, at=None)
    assert found.document == declared | {"replicas": 2}


def test_a_version_that_was_changed_is_to_be_what_it_was(packaged: Bench) -> None:
    packaged.deployed(update(START, version()), update(LATER, packaged.declare(env={"THREADS": "3"})), ready=1)
    found = packaged.standing()
    assert found.missing == "it was changed since"
    assert "env" not in found.document


def test_replicas_that_are_not_ready_do_not_count(packaged: Bench) -> None:
    packaged.deployed(update(START, packaged.declare(replicas=2)), ready=1)
    assert packaged.standing().missing == "1 of its 2 replicas ready"


@pytest.mark.parametrize(("kind", "result"), [("destroy", "succeeded"), ("destroy", "failed"), ("update", "failed")])
def test_a_version_is_not_up_after_a_destroy_or_a_failure(packaged: Bench, kind: str, result: str) -> None:
    declared = packaged.declare()
    packaged.deployed(update(START, declared), update(LATER, declared, kind=kind, result=result), ready=1)
    assert packaged.standing().missing == "it is not up"
    # One that needs no replicas has to be up, too: the endpoint reads its outputs.
    found = packaged.standing(replicas=0)
    assert (found.missing, found.document["replicas"]) == ("it is not up", 0)


def test_a_file_that_is_gone_is_written_anew_from_the_history(packaged: Bench) -> None:
    packaged.deployed(update(START, version(warm_up=3)), ready=1)
    found = packaged.standing()
    assert (found.missing, found.obstacle) == ("its config file is gone", "")
    assert found.document["warm_up"] == 3


def test_neither_history_nor_file_is_an_obstacle(packaged: Bench) -> None:
    assert "bring the file back from Git" in packaged.standing().obstacle


def test_an_artifact_that_the_store_has_no_more_is_an_obstacle(bench: Bench) -> None:
    bench.deployed(update(START, bench.declare()))
    found = bench.standing()
    assert found.obstacle
    with pytest.raises(CapacityError, match=f"dev.{MODEL}-{VERSION}: 0 of its 1 replica ready; "):
        bench.capacity.bring([found])


def test_another_artifact_under_the_same_name_is_an_obstacle(packaged: Bench) -> None:
    packaged.deployed(update(START, packaged.declare(artifact="sha256:" + "0" * 64)))
    assert "under its name now" in packaged.standing().obstacle


def test_a_version_that_is_refused_does_not_come_back(packaged: Bench) -> None:
    packaged.refused = "it is retired"
    packaged.deployed(update(START, packaged.declare()))
    assert packaged.standing().obstacle == "it is retired"


def test_secrets_in_the_history_need_the_file(packaged: Bench) -> None:
    packaged.deployed(update(START, {}, secret=True))
    assert "holds secrets" in packaged.standing().obstacle
    packaged.declare(env={"TOKEN": {"secure": "v1:x"}})
    packaged.deployed(update(START, {}, secret=True), ready=1)
    found = packaged.standing()
    assert (found.missing, found.document["env"]) == ("", {"TOKEN": {"secure": "v1:x"}})


@pytest.mark.parametrize(("message", "known"), [("scale to 1 replica", True), ("deploy", False)])
def test_secrets_that_may_have_changed_since_are_an_obstacle(packaged: Bench, message: str, known: bool) -> None:
    packaged.declare(env={"TOKEN": {"secure": "v1:x"}})
    packaged.deployed(update(START, {}, secret=True), update(LATER, {}, secret=True, message=message), ready=1)
    assert (packaged.standing().obstacle == "") == known


def test_what_does_not_fit_is_an_obstacle_and_says_how_much_is_free(packaged: Bench) -> None:
    declared = packaged.declare(replicas=2, resources={"gpu": 1, "memory": "1Gi"})
    packaged.releases.reserved["gpu"] = 1
    packaged.deployed(update(START, declared), update(LATER, declared | {"replicas": 0}))
    assert packaged.standing().obstacle == "there is no room for it: 2 GPUs more are needed, and 1 of 2 are free"


def test_a_version_with_a_share_of_the_traffic_never_loses_all_replicas(bench: Bench) -> None:
    for shared in (VERSION, "2.0.0"):
        with pytest.raises(CapacityError, match=f"{shared} has a share of the traffic"):
            bench.capacity.reduce(bench.endpoint, {shared: 0})


def test_a_file_with_edits_that_nobody_has_deployed_is_not_scaled_down(bench: Bench) -> None:
    bench.deployed(update(START, version()))
    bench.declare(env={"THREADS": "3"})
    bench.releases.weights, bench.releases.shadow = {}, {}
    with pytest.raises(CapacityError, match="edits that nobody has deployed"):
        bench.capacity.reduce(bench.endpoint, {VERSION: 0})


def test_a_file_whose_edits_nobody_can_know_is_neither_scaled_down_nor_deployed(packaged: Bench) -> None:
    declared = packaged.declare(env={"TOKEN": {"secure": "v1:x"}, "THREADS": "3"})
    packaged.deployed(update(START, {}, secret=True), ready=1)
    packaged.releases.weights, packaged.releases.shadow = {}, {}

    assert packaged.capacity.reduce(packaged.endpoint, {VERSION: 0}) == []
    assert "edits that were never deployed; set its replicas to 0, and run `lepton deploy" in packaged.said[0]

    packaged.releases.replicas = {}
    found = packaged.standing()
    assert found.missing == "0 of its 1 replica ready"
    assert "edits that were never deployed; look, and run `lepton deploy" in found.obstacle
    # What the file says is what is wanted where no moment is to come back.
    without = packaged.standing(at=None)
    assert (without.obstacle, without.document) == ("", declared | {"replicas": 1})
    assert not without.message.startswith("scale to ")


def test_a_secret_that_came_since_is_a_change(packaged: Bench) -> None:
    packaged.declare(env={"TOKEN": {"secure": "v1:x"}})
    packaged.deployed(update(START, version()), update(LATER, {}, secret=True), ready=1)
    found = packaged.standing()
    assert (found.missing, found.obstacle, found.document) == ("it was changed since", "", version(replicas=1))


def test_the_abandoned_version_loses_its_replicas(bench: Bench) -> None:
    bench.replaced()
    report = bench.rollbacks.restore(bench.endpoint)
    assert bench.releases.weights == {VERSION: 100, NEW: 0}
    assert bench.releases.replicas == {VERSION: 1, NEW: 0}
    assert (report.scaled_down, report.problems) == ([NEW], [])


def test_a_failed_scale_down_is_told_and_not_counted(bench: Bench) -> None:
    bench.replaced()
    bench.releases.broken = {f"dev.{MODEL}-{NEW}"}
    report = bench.rollbacks.restore(bench.endpoint)
    assert (report.scaled_down, bench.releases.replicas[NEW]) == ([], 1)
    assert report.problems == [f"diagnostics/dev.{MODEL}-{NEW}: no space left on device"]
    assert not any("scale-down" in phase for phase in report.phases)


def test_a_version_that_loses_its_replicas_while_it_comes_back_gets_them_again_first(packaged: Bench) -> None:
    packaged.replaced()
    scaled = packaged.project.stack(f"diagnostics/dev.{MODEL}-{VERSION}")

    def another_scales_down() -> None:
        with held:
            held.enter_context(packaged.project.holding(scaled))
            write_config(scaled, {"lepton:version": version(replicas=0)})
            StandInStack(packaged.releases, scaled).up("scale to 0 replicas")
            # Its update isn't over when the replicas are gone.
            busy = held.pop_all()
            packaged.clock.at(5, busy.close)

    held = ExitStack()
    packaged.releases.meanwhile = another_scales_down
    report = packaged.rollbacks.restore(packaged.endpoint)

    assert packaged.releases.replicas == {VERSION: 1, NEW: 1}
    assert report.scaled_down == []
    assert [f"{VERSION} lost replicas" in problem for problem in report.problems] == [True]
    assert report.phases[f"capacity of {VERSION} again"] == pytest.approx(5, abs=1)


def test_a_version_that_cannot_be_brought_back_again_leaves_the_other_alone(packaged: Bench) -> None:
    packaged.replaced()
    packaged.releases.broken = {f"dev.{MODEL}-{VERSION}"}
    packaged.releases.meanwhile = lambda: packaged.releases.replicas.update({VERSION: 0})
    with pytest.raises(NotVerifiedError, match=f"the weights are back, and {VERSION} lost replicas"):
        packaged.rollbacks.restore(packaged.endpoint)
    assert packaged.releases.replicas[NEW] == 1


def test_a_rollback_waits_for_what_changes_the_endpoint_and_says_so_once(bench: Bench) -> None:
    bench.replaced()
    with ExitStack() as another:
        another.enter_context(bench.project.holding(bench.endpoint))
        bench.clock.at(10, another.close)
        bench.rollbacks.restore(bench.endpoint)
    assert bench.releases.weights == {VERSION: 100, NEW: 0}
    assert sum("waiting for another lepton" in line for line in bench.said) == 1


@pytest.mark.parametrize("patience", [0, 60])
def test_a_rollback_waits_so_long_and_no_longer(bench: Bench, patience: float) -> None:
    bench.replaced()
    began = bench.clock.monotonic()
    with bench.project.holding(bench.endpoint), pytest.raises(BusyError):
        bench.rollbacks.restore(bench.endpoint, patience=patience)
    assert bench.clock.monotonic() - began == pytest.approx(patience, abs=1)
    assert bench.releases.weights == {VERSION: 0, NEW: 100}


def test_a_drill_needs_no_preview_of_a_version_whose_stack_is_gone(packaged: Bench) -> None:
    packaged.replaced()
    packaged.deployed()
    report = packaged.rollbacks.drill(packaged.endpoint)
    assert report.problems == []
    assert any("has no such stack, so there is no preview of it" in line for line in packaged.said)
