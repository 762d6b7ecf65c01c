"""Exports into a folder: what is there afterwards, and what is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.errors import DigestMismatch, ExportRefused, TargetExists
from model_packaging.forms import Folder, export
from tests.packaging.form_artifacts import FILES, harm, make_artifact, tree


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "made")


def test_a_folder_holds_the_models_files_and_nothing_else(artifact: Artifact, tmp_path: Path) -> None:
    done = export(artifact, Folder(), tmp_path / "new" / "model")
    assert tree(tmp_path / "new" / "model") == FILES
    assert (done.digest, done.size_bytes) == (artifact.digest, sum(map(len, FILES.values())))


def test_an_empty_folder_is_filled(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    export(artifact, Folder(), tmp_path / "model")
    assert tree(tmp_path / "model") == FILES


def test_a_folder_that_holds_the_version_stays(artifact: Artifact, tmp_path: Path) -> None:
    export(artifact, Folder(), tmp_path / "model")
    inode = (tmp_path / "model").stat().st_ino
    export(artifact, Folder(), tmp_path / "model")
    assert (tmp_path / "model").stat().st_ino == inode


@pytest.mark.parametrize("name", ["notes.txt", "weights.bin"])
def test_a_folder_of_something_else_is_refused_and_stays(artifact: Artifact, tmp_path: Path, name: str) -> None:
    export(artifact, Folder(), tmp_path / "model")
    (tmp_path / "model" / name).write_text("mine")
    with pytest.raises(TargetExists, match="is there already"):
        export(artifact, Folder(), tmp_path / "model")
    assert tree(tmp_path / "model") == FILES | {name: b"mine"}


def test_a_folder_of_something_else_is_replaced_when_asked(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    export(artifact, Folder(), tmp_path / "model", replace=True)
    assert tree(tmp_path / "model") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "model"]


def test_the_current_folder_is_never_replaced(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "inner")
    with pytest.raises(ExportRefused, match="holds the current folder"):
        export(artifact, Folder(), Path(".."), replace=True)


def test_a_harmed_artifact_leaves_no_folder(artifact: Artifact, tmp_path: Path) -> None:
    harm(artifact, "weights.bin")
    with pytest.raises(DigestMismatch, match=r"weights\.bin"):
        export(artifact, Folder(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_progress_ends_at_the_whole(artifact: Artifact, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    export(artifact, Folder(), tmp_path / "model", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (artifact.size, artifact.size)
