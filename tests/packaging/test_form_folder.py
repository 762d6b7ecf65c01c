"""Exports into a folder: what is there afterwards, and what is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.errors import DigestMismatch, ExportRefused, TargetExists
from model_packaging.forms import Folder, Form, SageMaker, export
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


@pytest.mark.parametrize("form", [Folder(), SageMaker(compressed=False)])
def test_an_earlier_export_is_replaced_when_asked(artifact: Artifact, tmp_path: Path, form: Form) -> None:
    export(artifact, form, tmp_path / "model")
    (tmp_path / "model" / "weights.bin").write_text("mine")
    newer = make_artifact(tmp_path / "newer", {"other.bin": b"other"}, version="2.0.0")
    export(newer, form, tmp_path / "model", replace=True)
    assert tree(tmp_path / "model") == {"other.bin": b"other"}
    export(artifact, form, tmp_path / "model", replace=True)
    assert tree(tmp_path / "model") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lepton-export", "made", "model", "newer"]


@pytest.mark.parametrize("form", [Folder(), SageMaker(compressed=False)])
def test_a_folder_that_no_export_made_is_never_replaced(artifact: Artifact, tmp_path: Path, form: Form) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "notes.txt").write_text("mine")
    with pytest.raises(ExportRefused, match="remove it yourself"):
        export(artifact, form, tmp_path / "stacks", replace=True)
    assert tree(tmp_path / "stacks") == {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["notes.txt", ".git/HEAD", "code/more.py"])
def test_an_export_with_a_file_more_is_never_replaced(artifact: Artifact, tmp_path: Path, name: str) -> None:
    export(artifact, Folder(), tmp_path / "model")
    (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "model" / name).write_text("mine")
    with pytest.raises(ExportRefused, match=f"it holds {name}"):
        export(artifact, Folder(), tmp_path / "model", replace=True)
    assert tree(tmp_path / "model") == FILES | {name: b"mine"}


def test_a_link_that_was_put_into_an_export_is_not_removed(artifact: Artifact, tmp_path: Path) -> None:
    export(artifact, Folder(), tmp_path / "model")
    (tmp_path / "model" / "link").symlink_to(tmp_path)
    with pytest.raises(ExportRefused, match="it holds link"):
        export(artifact, Folder(), tmp_path / "model", replace=True)


def test_an_export_of_another_form_is_not_replaced(artifact: Artifact, tmp_path: Path) -> None:
    export(artifact, SageMaker(compressed=False), tmp_path / "model")
    newer = make_artifact(tmp_path / "newer", {"other.bin": b"other"}, version="2.0.0")
    with pytest.raises(ExportRefused, match="is not what an earlier export as folder left"):
        export(newer, Folder(), tmp_path / "model", replace=True)


def test_a_file_is_never_replaced_by_a_folder(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ExportRefused, match="is no folder"):
        export(artifact, Folder(), tmp_path / "model", replace=True)
    assert (tmp_path / "model").read_text() == "mine"


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
