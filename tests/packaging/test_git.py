"""Which commit a model version comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from model_packaging.errors import GitFailed
from model_packaging.git import git_source
from model_packaging.manifest import GitSource


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=trunk"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "First")
    return folder


def test_a_clean_repository_gives_commit_and_branch(repository: Path) -> None:
    expected = GitSource(commit=git(repository, "rev-parse", "HEAD"), branch="trunk", dirty=False)
    assert git_source(repository) == expected


@pytest.mark.parametrize("name", ["train.py", "new.py"])
def test_a_changed_or_unknown_file_makes_it_dirty(repository: Path, name: str) -> None:
    (repository / name).write_text("2")
    found = git_source(repository)
    assert found is not None
    assert found.dirty


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    found = git_source(repository)
    assert found is not None
    assert found.branch is None


def test_a_folder_in_no_repository_has_no_source(tmp_path: Path) -> None:
    assert git_source(tmp_path) is None


def test_a_repository_without_a_commit_has_no_source(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_source(tmp_path) is None


def test_a_repository_that_git_cannot_read_is_an_error_with_gits_words(repository: Path) -> None:
    (repository / ".git" / "index").write_bytes(b"not an index")
    with pytest.raises(GitFailed, match="index"):
        git_source(repository)
