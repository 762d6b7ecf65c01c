"""Rollbacks by the real engine, with load on the endpoint: capacity first, then the weights, and nothing lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.contracts import Observer
from model_packaging.catalogue.catalogue import Catalogue
from rollout.driving.state import RolloutState
from rollout.project import ROLLOUT_KEY, Project, write_config
from rollout.pulumi_stack import NoStackError
from rollout.release import Releases
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import TEAM, Sandbox

OLD, NEW = "1.0.0", "2.0.0"
MODELS = ("scaled", "gone", "urgent")


@pytest.fixture(scope="module")
def served(project: Sandbox) -> Sandbox:
    """Two versions of each model; all traffic goes to the new one, which came after the old one."""
    for model in MODELS:
        for version in (OLD, NEW):
            project.write_version(model, version)
        project.write_endpoint(model, {OLD: 100, NEW: 0})
    # A server that starts only while a file is there.
    command = settings_of(project, "scaled", OLD)["server"]["command"]
    (project.root / "may-start").touch()
    quoted = " ".join(f"'{word}'" for word in command)
    script = f"test -e {project.root / 'may-start'} && exec {quoted}"
    project.write_version("scaled", OLD, package=False, server={"command": ["sh", "-c", script]})
    project.must("up", "dev", "--requests", "0")
    changes = [
        project.start("lepton", "traffic", "set", endpoint_of(model), f"{OLD}=0", f"{NEW}=100") for model in MODELS
    ]
    assert [project.finish(change).status for change in changes] == [0, 0, 0]
    return project


def endpoint_of(model: str) -> str:
    return f"{TEAM}/dev.{model}"


def edit_version(project: Sandbox, model: str, version: str, **settings: Any) -> None:
    """What a person does who edits a version's file, and deploys it."""
    file = project.config(f"dev.{model}-{version}")
    content = yaml.safe_load(file.read_text())
    content["config"]["lepton:version"] |= settings
    file.write_text("# kept by radiology\n" + yaml.safe_dump(content, sort_keys=False))
    project.must("deploy", f"{TEAM}/dev.{model}-{version}")


def settings_of(project: Sandbox, model: str, version: str) -> dict[str, Any]:
    return yaml.safe_load(project.config(f"dev.{model}-{version}").read_text())["config"]["lepton:version"]


def stacks_in_the_catalogue(project: Sandbox, model: str, version: str) -> set[str]:
    with Catalogue(f"sqlite:///{project.root / '.state' / 'catalogue.sqlite'}") as catalogue:
        return {each.stack for each in catalogue.show(model, version).deployed}


@cache
def observer(root: Path) -> Observer:
    project = Project(root)
    return Releases(project).observer(project.stack(endpoint_of(MODELS[0])))


def weights(project: Sandbox, model: str) -> dict[str, int]:
    """As the data plane has them."""
    return observer(project.root).traffic(TEAM, model)["weights"]


def everything(project: Sandbox, model: str) -> dict[str, Any]:
    """All that a rollback of a model's endpoint could change."""
    files = {path.name: path.read_text() for path in (project.root / "stacks" / TEAM).glob("Pulumi.*.yaml")}
    backend = project.root / ".state" / "backend" / ".pulumi"
    states = {
        str(path.relative_to(backend)): path.read_bytes()
        for folder in ("history", "stacks", "locks")
        for path in (backend / folder).rglob("*")
        if path.is_file()
    }
    servers = {version: project.server_pids(model, version) for version in (OLD, NEW)}
    return {"files": files, "states": states, "servers": servers, "weights": weights(project, model)}


class Watch:
    """Looks at an endpoint's data plane again and again: its weights, and the replicas that are ready."""

    def __init__(self, project: Sandbox, model: str) -> None:
        self._observer, self._model = observer(project.root), model
        self.seen: list[tuple[dict[str, int], dict[str, int]]] = []
        """Weights, and then ready replicas, by version."""
        self._stop = threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            weights = self._observer.traffic(TEAM, self._model)["weights"]
            self.seen.append((weights, self._observer.ready(TEAM, self._model, [OLD, NEW])))

    def ready_before_weight(self, version: str) -> bool:
        """Whether the version was seen without weight and not ready, without weight and ready, and then with weight."""
        states = [(bool(ready[version]), bool(weights.get(version))) for weights, ready in self.seen]
        return list(dict.fromkeys(states)) == [(False, False), (True, False), (True, True)]


def test_a_version_that_was_scaled_down_is_ready_again_before_weights_move_or_nothing_does(served: Sandbox) -> None:
    edit_version(served, "scaled", OLD, replicas=0)
    assert served.server_pids("scaled", OLD) == []
    (served.root / "may-start").unlink()
    before = everything(served, "scaled")
    with Load(infer_url(served.url, "scaled")) as load:
        outcome = served.lepton("rollback", endpoint_of("scaled"))
    after = everything(served, "scaled")
    assert outcome.status == 1
    assert "exited 3 times before it was ready" in outcome.err
    assert load.lost() == []
    for part in ("files", "servers", "weights"):
        assert after[part] == before[part]

    (served.root / "may-start").touch()
    with Load(infer_url(served.url, "scaled")) as load, Watch(served, "scaled")() as watch:
        report = served.must("rollback", endpoint_of("scaled"), "--json").json
    assert load.lost() == []
    assert watch.ready_before_weight(OLD)
    assert report["weights"] == weights(served, "scaled") == {OLD: 100, NEW: 0}
    assert [entry["phase"] for entry in report["phases"]] == [
        "history",
        "capacity check",
        f"capacity of {OLD}",
        "weights",
        f"scale-down of {NEW}",
    ]
    assert report["seconds"] == pytest.approx(sum(entry["seconds"] for entry in report["phases"]))
    assert "# kept by radiology" in served.config(f"dev.scaled-{OLD}").read_text()
    # The abandoned version has no replicas, and its file says so.
    assert served.server_pids("scaled", NEW) == []
    assert settings_of(served, "scaled", NEW)["replicas"] == 0

    # A rollback of the rollback brings them back, before its weights move.
    with Load(infer_url(served.url, "scaled")) as load, Watch(served, "scaled")() as watch:
        served.must("rollback", endpoint_of("scaled"))
    assert load.lost() == []
    assert watch.ready_before_weight(NEW)
    assert weights(served, "scaled") == {OLD: 0, NEW: 100}


def test_a_version_that_is_gone_comes_back_from_its_history_or_nothing_moves(served: Sandbox) -> None:
    endpoint = endpoint_of("gone")
    served.must("traffic", "set", endpoint, f"{NEW}=100", "--drop", OLD)
    assert endpoint not in stacks_in_the_catalogue(served, "gone", OLD)
    assert served.pulumi("destroy", "--yes", "--stack", f"dev.gone-{OLD}").status == 0
    before = settings_of(served, "gone", OLD)
    served.config(f"dev.gone-{OLD}").unlink()
    served.store.delete("gone", OLD)
    untouched = everything(served, "gone")

    drill = served.lepton("rollback", endpoint, "--to-version", OLD, "--drill")
    refused = served.lepton("rollback", endpoint, "--to-version", OLD)

    assert (drill.status, refused.status) == (1, 1)
    for said in (drill.err, refused.err):
        assert f"dev.gone-{OLD}: it is not up; " in said
        assert "gone" in said.partition("it is not up; ")[2]
    assert everything(served, "gone") == untouched

    served.package("gone", OLD)
    rehearsed = served.must("rollback", endpoint, "--to-version", OLD, "--drill", "--json").json
    assert rehearsed["problems"] == []
    assert [entry["version"] for entry in rehearsed["capacity"] if not entry["ready"]] == [OLD]
    assert everything(served, "gone") == untouched

    with Load(infer_url(served.url, "gone")) as load, Watch(served, "gone")() as watch:
        served.must("rollback", endpoint, "--to-version", OLD)
    assert load.lost() == []
    assert watch.ready_before_weight(OLD)
    assert weights(served, "gone") == {OLD: 100, NEW: 0}
    assert settings_of(served, "gone", OLD) == before | {"replicas": 1}
    assert endpoint in stacks_in_the_catalogue(served, "gone", OLD)


def test_a_preview_without_a_stack_says_so(served: Sandbox) -> None:
    served.write_version("urgent", "3.0.0", package=False)
    project = Project(served.root)
    with pytest.raises(NoStackError):
        Releases(project).pulumi(project.stack(f"{TEAM}/dev.urgent-3.0.0")).preview()


def test_a_version_that_was_changed_is_as_it_was_again(served: Sandbox) -> None:
    edit_version(served, "urgent", OLD, env={"THREADS": "3"})
    outcome = served.must("rollback", endpoint_of("urgent"), "--to-revision", "1", "--now", "--keep")
    assert "it was changed since" in outcome.err
    assert "capacity comes first" in outcome.err
    assert "env" not in settings_of(served, "urgent", OLD)
    assert "# kept by radiology" in served.config(f"dev.urgent-{OLD}").read_text()
    assert weights(served, "urgent") == {OLD: 100, NEW: 0}


def test_in_an_emergency_the_data_plane_goes_first_and_the_stack_follows(served: Sandbox) -> None:
    endpoint = endpoint_of("urgent")
    served.must("traffic", "set", endpoint, f"{OLD}=0", f"{NEW}=100")
    with Load(infer_url(served.url, "urgent")) as load:
        report = served.must("rollback", endpoint, "--to-version", OLD, "--now", "--keep", "--json").json
    assert load.lost() == []
    seconds = {entry["phase"]: entry["seconds"] for entry in report["phases"]}
    assert list(seconds) == ["history", "capacity check", "data plane", "stack", "agreement"]
    assert seconds["data plane"] < seconds["stack"]
    assert weights(served, "urgent") == {OLD: 100, NEW: 0}
    assert "nothing changed" in served.must("deploy", endpoint).out
    assert len(served.server_pids("urgent", NEW)) == 1


def test_weights_that_the_stack_could_not_follow_stay_and_say_how_it_does(served: Sandbox) -> None:
    endpoint = endpoint_of("urgent")
    served.must("traffic", "set", endpoint, f"{OLD}=20", f"{NEW}=80")
    locks = served.root / ".state" / "backend" / ".pulumi" / "locks" / "organization" / TEAM / "dev.urgent"
    lock = locks / "held.json"
    locks.mkdir(parents=True, exist_ok=True)
    held = {"pid": 1, "username": "ana", "hostname": "elsewhere", "timestamp": datetime.now(UTC).isoformat()}
    lock.write_text(json.dumps(held))
    outcome = served.lepton("rollback", endpoint, "--to-version", OLD, "--now", "--keep")
    lock.unlink()
    assert outcome.status == 1
    assert f"`lepton deploy {endpoint}`" in outcome.err
    assert weights(served, "urgent") == {OLD: 100, NEW: 0}
    assert "1 updated" in served.must("deploy", endpoint).out
    assert weights(served, "urgent") == {OLD: 100, NEW: 0}


def test_hands_on_the_traffic_pause_a_rollout_and_a_rollback_ends_it(served: Sandbox) -> None:
    endpoint = endpoint_of("urgent")
    begin_rollout(served.root, endpoint)
    paused = served.must("traffic", "set", endpoint, f"{OLD}=60", f"{NEW}=40")
    state = Project(served.root).stack(endpoint).rollout()
    assert state is not None
    assert state["phase"] == "paused"
    assert state["reason"].startswith("traffic set by ")
    assert "pauses its rollout 20260101-000000-abcd" in paused.err

    report = served.must("rollback", endpoint, "--keep", "--json").json

    assert report["ended_rollout"] == "20260101-000000-abcd"
    left = served.must("rollout", "report", endpoint, "last", "--json").json
    assert (left["id"], left["outcome"]) == ("20260101-000000-abcd", "taken back")
    assert left["reason"].startswith("rollback by ")
    assert report["weights"] == {OLD: 100, NEW: 0}
    assert Project(served.root).stack(endpoint).rollout() is None
    history = served.must("history", endpoint, "--json").json
    assert [entry["rollout"] and entry["rollout"]["id"] for entry in history[-2:]] == ["20260101-000000-abcd", None]
    assert history[-1]["by"]
    assert "20260101-000000-abcd canary 1/1" in served.must("history", endpoint).out
    old, new = history[-2]["revision"], history[-1]["revision"]
    difference = served.must("history", endpoint, "--diff", str(old), str(new), "--json").json
    assert difference["weights"] == {"old": {OLD: 60, NEW: 40}, "new": {OLD: 100, NEW: 0}}


def begin_rollout(root: Path, endpoint: str) -> None:
    """What a driver leaves that was killed after it wrote its state."""
    stack = Project(root).stack(endpoint)
    state = RolloutState.model_validate(
        {
            "id": "20260101-000000-abcd",
            "by": "ana",
            "driver": "one",
            "strategy": "canary",
            "settings": {},
            "initial": {"weights": {OLD: 100, NEW: 0}, "bake_seconds": 0, "percent": 0},
            "baseline": OLD,
            "candidates": [NEW],
            "steps": [{"weights": {OLD: 0, NEW: 100}, "bake_seconds": 1, "percent": 100}],
            "phase": "baking",
            "since": "2026-01-01T00:00:00+00:00",
            "started": "2026-01-01T00:00:00+00:00",
        }
    )
    write_config(stack, {ROLLOUT_KEY: state.document()})
