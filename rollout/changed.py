"""Tells from Git which stacks a change of the project can touch, so that a preview costs what the change is."""

from __future__ import annotations

import subprocess
from pathlib import Path

from infra.errors import UserError
from infra.names import PLATFORM_PROJECT, version_stack
from rollout.project import Project, StackConfig


class NoRevisionError(UserError):
    """Git can't say what has changed since then."""


def changed_since(project: Project, environment: str, revision: str) -> list[StackConfig]:
    """The environment's stacks that differ from a Git revision, committed or not, and those that follow from them.

    A stack differs with its config file; all of a team's with the team's program. An endpoint follows from its
    versions, and all follows from the platform's stack.

    Raises:
        NoRevisionError: where the project is in no repository, or that has no such revision.
        SettingsError: when a config of the environment can't be used.
    """
    changed = _changed_files(project.root, revision)
    stacks = project.stacks(environment)
    touched = {stack.address for stack in stacks if stack.file in changed or _program(project, stack.team) & changed}
    if any(stack.kind == "platform" and stack.address in touched for stack in stacks):
        return stacks
    return [stack for stack in stacks if stack.address in touched or _versions_of(stack) & touched]


def _changed_files(root: Path, revision: str) -> set[Path]:
    commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").strip()
    # Both say paths from the folder that they are asked in, and end each with a zero byte.
    tracked = _git(root, "diff", "--name-only", "--no-renames", "--relative", "-z", commit, "--", ".")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")
    return {root / path for path in (tracked + untracked).split("\0") if path}


def _git(root: Path, *arguments: str) -> str:
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise NoRevisionError("there is no `git` on PATH to tell what has changed") from None
    if asked.returncode:
        raise NoRevisionError(f"git can't tell what has changed: {asked.stderr.strip().splitlines()[0]}")
    return asked.stdout


def _program(project: Project, team: str) -> set[Path]:
    """What a project's stacks are made by."""
    folder = project.root / "stacks" / ("platform" if team == PLATFORM_PROJECT else team)
    return {project.folder(team) / "Pulumi.yaml", *folder.glob("*.py")}


def _versions_of(stack: StackConfig) -> set[str]:
    if stack.kind != "endpoint":
        return set()
    settings = stack.endpoint
    names = (version_stack(settings.environment, settings.model, version) for version in settings.versions)
    return {f"{stack.team}/{name}" for name in names}
