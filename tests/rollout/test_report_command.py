"""`lepton rollout report`: which rollouts left a record, and where the page of one is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from cli.errors import ErrorsAsText
from cli.rollout.report import report
from rollout.project import ROLLOUT_KEY, Project, write_config
from rollout.records.record import folder_of
from tests.rollout.record_samples import Behaviour, Simulation, canary, state, taken_back

_ENDPOINT = "radiology/dev.tumour"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one endpoint, around the current folder."""
    endpoint = {"environment": "dev", "model": "tumour", "variants": [{"version": "1.0.0", "weight": 1}]}
    files = {
        "Pulumi.yaml": {"name": "lepton", "runtime": "python"},
        "stacks/radiology/Pulumi.yaml": {"name": "radiology", "runtime": "python"},
        "stacks/radiology/Pulumi.dev.tumour.yaml": {"config": {"lepton:endpoint": endpoint}},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def _records(project: Project) -> Path:
    return folder_of(project, project.stack(_ENDPOINT))


def _run(*arguments: str) -> Result:
    app = typer.Typer(cls=ErrorsAsText)
    app.command()(report)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["report", *arguments])


def test_rollouts_are_listed_oldest_first(project: Project) -> None:
    taken_back(_records(project) / "20261121-154220-3f2a")
    under_way = state(canary(10, 100), id="20261122-080000-0000", by="grace@example.org")
    Simulation(_records(project) / under_way.id, under_way, {}).enter("held", reason="no data")
    listed = _run(_ENDPOINT)
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert "20261121-154220-3f2a" in lines[1]
    assert "taken back" in lines[1]
    assert "2026-11-21 15:42:20 " in lines[1]
    record = json.loads(_run(_ENDPOINT, "20261121-154220-3f2a", "--json").stdout)
    assert f" {record['seconds']:.0f} s " in lines[1]
    assert "20261122-080000-0000" in lines[-1]
    assert "held" in lines[-1]
    assert [item["outcome"] for item in json.loads(_run(_ENDPOINT, "--json").stdout)] == ["taken back", "held"]


def test_an_endpoint_without_a_rollout_says_so(project: Project) -> None:
    assert "no rollout has left a record" in _run(_ENDPOINT).stdout
    assert json.loads(_run(_ENDPOINT, "--json").stdout) == []


@pytest.mark.parametrize("name", ["20261121-154220-3f2a", "last"])
def test_the_page_of_a_rollout_is_named(name: str, project: Project) -> None:
    page = taken_back(_records(project) / "20261121-154220-3f2a").record.page
    found = _run(_ENDPOINT, name)
    assert found.stdout == f"{page}\n"
    assert json.loads(_run(_ENDPOINT, name, "--json").stdout)["outcome"] == "taken back"


def test_a_rollout_under_way_is_drawn_as_it_is(project: Project) -> None:
    behaviours = {"1.0.0": Behaviour(), "1.1.0": Behaviour()}
    simulated = Simulation(_records(project) / "20261121-154220-3f2a", state(canary(10, 100)), behaviours)
    simulated.bake(0, 5)
    write_config(project.stack(_ENDPOINT), {ROLLOUT_KEY: simulated.state.document()})
    assert not simulated.record.page.exists()
    assert _run(_ENDPOINT, "last").stdout == f"{simulated.record.page}\n"
    assert "baking" in simulated.record.page.read_text()
    assert not (simulated.record.folder / "record.json").exists()


def test_a_rollout_that_ended_elsewhere_has_no_page(project: Project) -> None:
    Simulation(_records(project) / "20261121-154220-3f2a", state(canary(10, 100)), {}).enter("held")
    found = _run(_ENDPOINT, "last")
    assert found.exit_code == 2
    assert "left no page" in " ".join(found.stderr.split())


def test_an_unknown_rollout_is_wrong_usage(project: Project) -> None:
    found = _run(_ENDPOINT, "20200101-000000-0000")
    assert found.exit_code == 2
    assert "no record of rollout" in " ".join(found.stderr.split())
