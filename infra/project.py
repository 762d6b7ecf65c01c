"""Finds the project on disk: its root, and the folders of its Pulumi projects."""

from __future__ import annotations

from pathlib import Path

from infra.errors import UserError


class NotInProjectError(UserError):
    """The current folder is not inside a project."""


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds the platform's `Pulumi.yaml` and `stacks/`.

    Raises:
        NotInProjectError: when there is none.
    """
    for folder in [start.resolve(), *start.resolve().parents]:
        if (folder / "Pulumi.yaml").is_file() and (folder / "stacks").is_dir():
            return folder
    raise NotInProjectError(
        f"{start} is not inside a project: no folder at or above it holds a Pulumi.yaml and a stacks/ folder"
    )
