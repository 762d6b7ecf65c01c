"""The Automation API with fewer processes: each of the CLI's takes a third of a second, and some tell nothing new.

Left out are `pulumi version` before each command, `pulumi stack select` (every command names its stack), and, after an
update, three that read back what the update's own events have just said.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pulumi._version import version as sdk_version
from pulumi.automation import LocalWorkspace, OutputMap, PulumiCommand, Stack, UpdateSummary
from pulumi.automation._stack import StackInitMode

from infra.errors import UserError


class NoPulumiError(UserError):
    """There is no `pulumi` to run."""


def open_stack(name: str, folder: Path, environment: Mapping[str, str]) -> QuickStack:
    """A stack of the Pulumi project in `folder`, which need not exist yet."""
    command = _Command(environment["PATH"])
    workspace = _Workspace(work_dir=str(folder), env_vars=environment, pulumi_command=command)
    return QuickStack(name, workspace, StackInitMode.SELECT)


class QuickStack(Stack):
    """A stack whose updates return when they are done."""

    def outputs(self) -> OutputMap:
        return {}

    def info(self, show_secrets: bool = True) -> UpdateSummary | None:
        return UpdateSummary("update", datetime.now(UTC), "", {}, {}, "succeeded")


class _Workspace(LocalWorkspace):
    def select_stack(self, stack_name: str) -> None:
        """Nothing: what fails without a stack says so itself."""


class _Command(PulumiCommand):
    def __init__(self, path: str) -> None:
        found = shutil.which("pulumi", path=path)
        if found is None:
            raise NoPulumiError("no `pulumi` on PATH: install it, or run `make tools`, which builds it")
        self.command = found
        self.version = sdk_version
