"""Building from elsewhere than a folder: MLflow and Hugging Face, each with a description of a few lines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.package import app
from model_packaging.artifact import Artifact
from model_packaging.errors import SourceRefused
from model_packaging.sources.fetching import fetched
from model_packaging.stores.layout import Layout
from tests.packaging.test_source_huggingface import COMMIT, make_snapshot
from tests.packaging.test_source_mlflow import Tracking


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def build(source: str, description: dict[str, object], folder: Path) -> Artifact:
    file = folder / "description.yaml"
    file.write_text(json.dumps({"samples": [{"prompt": "hello"}], **description}))
    store = folder / "store"
    arguments = ["build", source, "--model", "tumour", "--version", "1.0.0", "--description", str(file)]
    result = CliRunner().invoke(app, [*arguments, "--store", str(store), "--json"])
    assert result.exit_code == 0, result.output
    return Artifact.find(Layout(store), "tumour", "1.0.0")


def test_a_hugging_face_snapshot_needs_only_what_it_does_not_say(tmp_path: Path) -> None:
    artifact = build(str(make_snapshot(tmp_path / "hub")), {}, tmp_path)
    package = artifact.description.package
    assert (package.framework.name, package.licence) == ("transformers", "Apache-2.0")
    assert artifact.description.git is not None
    assert artifact.description.git.commit == COMMIT
    assert "pytorch_model.bin" not in {str(path) for path in artifact.files}


def test_an_mlflow_run_needs_only_what_it_does_not_say(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(tmp_path_factory.mktemp("mlflow"))
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
        artifact = build(f"runs:/{tracking.run}/model", {"licence": "Apache-2.0"}, tmp_path)
    finally:
        tracking.client._tracking_client.store.engine.dispose()
        tracking.client._get_registry_client().store.engine.dispose()
    package = artifact.description.package
    assert (package.framework.name, package.evaluation) == ("scikit-learn", {"accuracy": 0.9})
    assert artifact.description.git is not None


def test_what_is_fetched_and_names_no_commit_gets_none_of_the_current_folder(tmp_path: Path) -> None:
    commit = [
        "git",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "x",
    ]
    for command in (["git", "init", "--quiet"], commit):
        subprocess.run(command, cwd=tmp_path, check=True)
    snapshot = make_snapshot(tmp_path / "hub")
    renamed = snapshot.rename(snapshot.with_name("main"))
    assert build(str(renamed), {}, tmp_path).description.git is None


def test_a_description_beside_a_folder_that_has_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="is a folder"), fetched(str(tmp_path), tmp_path / "d.yaml"):
        pass


def test_a_source_that_is_nowhere_is_refused_and_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="runs:/"), fetched(str(tmp_path / "nowhere")):
        pass


def test_a_fetched_source_without_a_description_is_named_with_the_option(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "hub")
    with pytest.raises(SourceRefused, match="--description FILE") as refused, fetched(str(snapshot)):
        pass
    assert str(refused.value).startswith(str(snapshot))
