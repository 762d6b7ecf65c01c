"""Which stacks a change in Git can touch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from rollout.changed import NoRevisionError, changed_since
from rollout.project import Project

VERSIONS = ("1.0.0", "2.0.0", "3.0.0")


def git(root: Path, *arguments: str) -> None:
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    subprocess.run(["git", "-C", str(root), *author, *arguments], check=True, capture_output=True)


def write(root: Path, team: str, stack: str, kind: str, **document: object) -> None:
    folder = root / "stacks" / team
    folder.mkdir(parents=True, exist_ok=True)
    config = {"config": {f"lepton:{kind}": {"environment": "dev"} | document}}
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two teams with a model each, in a repository whose root is above the project's; all of it is committed."""
    root = tmp_path / "infrastructure"
    root.mkdir()
    (root / "Pulumi.yaml").write_text("name: lepton\n")
    write(root, "platform", "dev", "platform", mode="single-node")
    for team, model in (("diagnostics", "tumour"), ("pricing", "fare")):
        for version in VERSIONS:
            write(root, team, f"dev.{model}-{version}", "version", model=model, version=version)
        variants = [{"version": version, "weight": 1} for version in VERSIONS[:2]]
        write(root, team, f"dev.{model}", "endpoint", model=model, variants=variants)
        (root / "stacks" / team / "Pulumi.yaml").write_text(f"name: {team}\n")
        (root / "stacks" / team / "__main__.py").write_text("pass\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return Project(root)


def changed(project: Project) -> list[str]:
    return [stack.address for stack in changed_since(project, "dev", "HEAD")]


def test_without_a_change_there_is_nothing_to_look_at(project: Project) -> None:
    assert changed(project) == []


def test_a_version_brings_the_endpoint_that_names_it(project: Project) -> None:
    write(project.root, "pricing", "dev.fare-2.0.0", "version", model="fare", version="2.0.0", replicas=2)
    assert changed(project) == ["pricing/dev.fare-2.0.0", "pricing/dev.fare"]


def test_a_version_that_no_endpoint_names_is_alone(project: Project) -> None:
    write(project.root, "pricing", "dev.fare-3.0.0", "version", model="fare", version="3.0.0", replicas=2)
    assert changed(project) == ["pricing/dev.fare-3.0.0"]


def test_a_file_that_git_does_not_know_yet_counts(project: Project) -> None:
    write(project.root, "pricing", "dev.fare-4.0.0", "version", model="fare", version="4.0.0")
    assert changed(project) == ["pricing/dev.fare-4.0.0"]


def test_a_teams_program_brings_all_that_is_the_teams(project: Project) -> None:
    (project.root / "stacks" / "pricing" / "__main__.py").write_text("print()\n")
    assert {address.partition("/")[0] for address in changed(project)} == {"pricing"}
    assert len(changed(project)) == 4


def test_the_platform_brings_everything(project: Project) -> None:
    write(project.root, "platform", "dev", "platform", mode="single-node", freeze="audit")
    assert len(changed(project)) == 9


def test_a_revision_of_before_counts_what_was_committed_since(project: Project) -> None:
    write(project.root, "pricing", "dev.fare-3.0.0", "version", model="fare", version="3.0.0", replicas=2)
    git(project.root, "commit", "--quiet", "--all", "--message", "more")
    assert changed(project) == []
    assert [stack.address for stack in changed_since(project, "dev", "HEAD~1")] == ["pricing/dev.fare-3.0.0"]


@pytest.mark.parametrize("revision", ["no-such-branch", "--output=stolen"])
def test_a_revision_that_git_does_not_have_is_an_error(project: Project, revision: str) -> None:
    with pytest.raises(NoRevisionError, match="git can't tell what has changed"):
        changed_since(project, "dev", revision)
    assert not list(project.root.rglob("stolen"))


def test_outside_of_a_repository_that_is_an_error(project: Project, tmp_path: Path) -> None:
    (tmp_path / ".git").rename(tmp_path / "no-git")
    with pytest.raises(NoRevisionError, match="git can't tell what has changed"):
        changed(project)
