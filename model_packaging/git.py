"""Asks Git which state of a repository a model version comes from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from model_packaging.errors import GitFailed
from model_packaging.manifest import GitSource


def git_source(folder: Path) -> GitSource | None:
    """The commit, branch and state of the repository that `folder` is in; None where it is in none, or has no commit.

    Raises:
        GitFailed: Git has a repository and can't read it.
    """
    if shutil.which("git") is None:
        return None
    asked = subprocess.run(
        ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2", "--branch"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if asked.returncode != 0:
        if "not a git repository" in asked.stderr:
            return None
        raise GitFailed(
            f"git could not say which commit {folder} is at: {asked.stderr.strip()}; "
            "mend the repository, or name another folder with --source"
        )
    lines = asked.stdout.splitlines()
    headers = dict(line.removeprefix("# ").split(" ", 1) for line in lines if line.startswith("# "))
    commit, branch = headers["branch.oid"], headers["branch.head"]
    if commit == "(initial)":
        return None
    return GitSource(
        commit=commit,
        branch=None if branch == "(detached)" else branch,
        dirty=any(not line.startswith("# ") for line in lines),
    )
