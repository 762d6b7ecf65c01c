"""One Pulumi stack, driven through the Automation API: updated, destroyed, read, and repaired after a killed update."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import ValidationError

from infra.errors import UserError
from infra.names import DRIFT
from infra.settings import EndpointSettings
from rollout.author import acting_user, signed
from rollout.project import Project, StackConfig

if TYPE_CHECKING:
    from pulumi.automation import Stack, UpdateSummary
    from pulumi.automation.events import EngineEvent

    from rollout.automation import QuickStack

STACK_VARIABLE = "LEPTON_STACK"
"""Environment variable that marks the processes of an update with the stack's file."""

_WHOLE_HISTORY = 1_000_000
"""Without a page size the CLI gives the last ten updates, and revisions would be numbered anew with each."""

_LOCK = re.compile(r"created by (?P<user>\S+)@(?P<host>\S+) \(pid (?P<pid>\d+)\) at (?P<time>\S+)")
_EMPTY = re.compile(r"program exited with non-zero exit code|^(update|preview|destroy) (failed|canceled)$")
"""Messages that say no more than that something has failed."""
_COLOUR = re.compile(r"<\{%[^%]*%\}>")


_CHANGES_NOTHING = {"same", "read", "refresh"}
"""Operations of the engine, as its events name them."""

_ACQUISITION = "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"

_TORN_LOCK = "unexpected end of JSON input"
"""What the CLI says of a lock without content."""


class StackError(UserError):
    """Pulumi could not do it. The text says why, without Pulumi's own decoration."""


class NoStackError(StackError):
    """The backend has no such stack."""


class StackLockedError(StackError):
    """Another update of the stack is running."""


_CLOCK_SECONDS = 2
"""What a process's start may be told wrong by, and a lock's time is cut off by."""


@dataclass(frozen=True)
class Changes:
    """What an update came to."""

    counts: dict[str, int]
    """Resources by operation: `create`, `update`, `delete`, `replace`."""
    seconds: float
    shift_seconds: float = 0.0
    """Until the data plane had the weights, where it was moved before the stack."""

    @property
    def any(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        done = {"create": "created", "update": "updated", "delete": "deleted", "replace": "replaced"}
        said = [f"{count} {done.get(name, name)}" for name, count in sorted(self.counts.items())]
        return ", ".join(said) or "nothing changed"


@dataclass(frozen=True)
class Difference:
    """What an update would change of one resource."""

    resource: str
    type: str
    operation: str
    """`create` where it is gone, `update`, `replace`, or `delete` where the config has it no more."""
    paths: tuple[str, ...]
    """Which of its properties, or in words what is not as configured."""

    def __str__(self) -> str:
        return f"{self.operation} {self.type.rpartition(':')[2]} {self.resource}"


class PulumiStack:
    def __init__(self, project: Project, config: StackConfig) -> None:
        self._project = project
        self.config = config

    def up(self, message: str, *, refresh: bool = False, notify: Callable[[str], None] = lambda _: None) -> Changes:
        """Makes the stack as its config says.

        `refresh` looks first at what is really there. A lock that a killed update left is cleared, and what that
        update was in the middle of is taken up; `notify` is told. The history keeps the message, and who it is by.

        Raises:
            StackError: with the reasons that Pulumi gave.
            StackLockedError: while another update is running.
        """
        told = signed(message, acting_user(self._project.root))
        return self._change(lambda stack, options: stack.up(message=told, **options), notify, refresh=refresh)

    def preview(self, *, refresh: bool = False) -> Changes:
        """What `up` would do. Nothing is changed and nothing is locked.

        Raises:
            StackError: with the reasons why `up` would fail.
            NoStackError: where the backend has no such stack; `up` would make it.
        """
        started = time.monotonic()
        counts: dict[str, int] = {}
        self._preview(lambda event: _count(event, counts), refresh=refresh)
        return Changes(counts, time.monotonic() - started)

    def differences(self, *, live: bool) -> list[Difference]:
        """What `up` would change; `live`: of its resources as they really are now. Raises as `preview`."""
        found: list[Difference] = []
        self._preview(lambda event: found.extend(_difference(event)), refresh=live)
        return found

    def _preview(self, see: Callable[[EngineEvent], object], *, refresh: bool) -> None:
        from pulumi.automation import errors  # noqa: PLC0415 - slow to import

        problems: list[str] = []

        def on_event(event: EngineEvent) -> None:
            _collect_problem(event, problems)
            see(event)

        try:
            self._open().preview(
                refresh=refresh or None,
                on_event=on_event,
                suppress_outputs=True,
                suppress_progress=True,
                color="never",
                config_file=str(self.config.file),
            )
        except errors.StackNotFoundError:
            raise NoStackError(f"{self.config.address}: the backend has no such stack") from None
        except errors.CommandError as error:
            raise StackError(_reasons(self.config.address, problems, str(error))) from None

    def destroy(self, notify: Callable[[str], None] = lambda _: None) -> Changes:
        """Removes every resource of the stack; its history stays. Raises as `up`."""
        return self._change(lambda stack, options: stack.destroy(**options), notify, refresh=False)

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, without secrets; empty where it isn't up."""
        said = self._ask("output", "--json")
        return json.loads(said) if said else {}

    def history(self) -> list[UpdateSummary]:
        """The stack's updates, in the backend's order."""
        from pulumi.automation.errors import StackNotFoundError  # noqa: PLC0415 - slow to import

        try:
            return self._open().history(page_size=_WHOLE_HISTORY, page=1, show_secrets=False)
        except StackNotFoundError:
            return []

    # -- inside

    def _change(
        self,
        operation: Callable[[Stack, dict[str, Any]], object],
        notify: Callable[[str], None],
        *,
        refresh: bool,
    ) -> Changes:
        from pulumi.automation import errors  # noqa: PLC0415 - slow to import

        started = time.monotonic()
        stack = self._open()
        repaired = False
        warned: set[str] = set()
        while True:
            counts: dict[str, int] = {}
            problems: list[str] = []

            def on_event(event: EngineEvent, counts: dict[str, int] = counts, problems: list[str] = problems) -> None:
                _collect_problem(event, problems)
                _count(event, counts)
                if (warning := _warning(event)) and warning not in warned:
                    warned.add(warning)
                    notify(f"{self.config.address}: {warning}")

            options: dict[str, Any] = {
                # After a repair, only a look at what is there tells how far the killed update came.
                "refresh": (refresh or repaired) or None,
                "on_event": on_event,
                "suppress_outputs": True,
                "suppress_progress": True,
                "color": "never",
                "config_file": str(self.config.file),
            }
            try:
                operation(stack, options)
            except errors.StackNotFoundError:
                stack.workspace.create_stack(self.config.name)
            except errors.ConcurrentUpdateError as error:
                if repaired:
                    raise StackLockedError(f"{self.config.address}: {_lock_line(str(error))}") from None
                self._repair(stack, str(error), notify)
                repaired = True
            except errors.CommandError as error:
                if _TORN_LOCK in str(error) and self._clear_torn_locks(notify):
                    continue
                raise StackError(_reasons(self.config.address, problems, str(error))) from None
            else:
                return Changes(counts, time.monotonic() - started)

    def _repair(self, stack: Stack, lock: str, notify: Callable[[str], None]) -> None:
        """Clears the lock of a dead update, and has the state know what that update was making.

        Raises:
            StackLockedError: when the update that holds the lock may still be running.
        """
        found = _LOCK.search(lock)
        if found is None or found["host"] != socket.gethostname() or _is_running(int(found["pid"]), found["time"]):
            raise StackLockedError(
                f"{self.config.address}: {_lock_line(lock)}. If that update is dead, run `pulumi cancel` in its folder"
            )
        notify(f"{self.config.address}: an update by process {found['pid']} was killed; clearing its lock")
        self._end_strays()
        stack.cancel()
        deployment = stack.export_stack()
        if deployment.deployment and deployment.deployment.get("pending_operations"):
            deployment.deployment = adopt_pending(dict(deployment.deployment))
            stack.import_stack(deployment)

    def _clear_torn_locks(self, notify: Callable[[str], None]) -> bool:
        """Removes what a full disk left of locks in a backend of files; whether there was any.

        A lock is written beside its place and renamed. An empty one is nobody's, unless it is just being written.
        """
        scheme, _, backend = self._environment().get("PULUMI_BACKEND_URL", "").partition("://")
        stack = Path(".pulumi", "locks", "organization", self.config.team, self.config.name)
        files = list((Path(backend).expanduser() / stack).glob("*.tmp")) if scheme == "file" else []
        now = time.time()
        torn = [file for file in files if not file.stat().st_size and now - file.stat().st_mtime > _CLOCK_SECONDS]
        for file in torn:
            notify(f"{self.config.address}: a full disk left an empty lock; removing {file.name}")
            file.unlink(missing_ok=True)
        return bool(torn)

    def _end_strays(self) -> None:
        """Ends what is left of a killed update's processes, which would act beside the next one."""
        mark = str(self.config.file)
        strays = [process for process in psutil.process_iter() if _environment_of(process).get(STACK_VARIABLE) == mark]
        for process in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(strays, timeout=5)

    def _environment(self) -> dict[str, str]:
        found = self._project.environment | {STACK_VARIABLE: str(self.config.file)}
        if self._mode() == "single-node" and _ACQUISITION not in os.environ:
            # Such stacks need no plugin, and Pulumi would fetch one for each of its packages that is installed.
            found[_ACQUISITION] = "true"
        return found

    def _mode(self) -> str | None:
        """The mode of the stack's environment, where its platform's config says it."""
        with contextlib.suppress(UserError):
            return self._project.platform(self.config.settings.environment).platform.mode
        return None

    def _open(self) -> QuickStack:
        from rollout.automation import open_stack  # noqa: PLC0415 - slow to import

        return open_stack(self.config.name, self._project.folder(self.config.team), self._environment())

    def _ask(self, *question: str) -> str | None:
        """What `pulumi stack QUESTION` says; None where there is no such stack."""
        from pulumi.automation import errors  # noqa: PLC0415 - slow to import

        workspace = self._open().workspace
        arguments = ["stack", *question, "--stack", self.config.name]
        try:
            return workspace.pulumi_command.run(arguments, workspace.work_dir, self._environment()).stdout
        except errors.StackNotFoundError:
            return None
        except errors.CommandError as error:
            raise StackError(_reasons(self.config.address, [], str(error))) from None


def stacks_of(project: Project, team: str) -> dict[str, int]:
    """A team's stacks in the backend, each with how many resources it has."""
    from rollout.automation import open_stack  # noqa: PLC0415 - slow to import

    workspace = open_stack("", project.folder(team), project.environment).workspace
    return {summary.name: summary.resource_count or 0 for summary in workspace.list_stacks()}


def environment_of(project: Project, team: str, name: str) -> str | None:
    """The environment that a stack's last update was for, also of one without a config file; None: nothing says it."""
    from rollout.automation import open_stack  # noqa: PLC0415 - slow to import

    for update in open_stack(name, project.folder(team), project.environment).history(1, 1, show_secrets=False):
        for key, value in update.config.items():
            # The history keeps to itself what holds secrets.
            if key.startswith("lepton:") and not value.secret:
                return json.loads(value.value).get("environment")
    return None


def endpoints_in_force(project: Project, team: str, name: str) -> list[EndpointSettings]:
    """What an endpoint stack was last brought up with, and what updates since then, which failed, may have left of it.

    Empty for a stack that is no endpoint.
    """
    from rollout.automation import open_stack  # noqa: PLC0415 - slow to import

    history = open_stack(name, project.folder(team), project.environment).history(_WHOLE_HISTORY, 1, show_secrets=False)
    found: list[EndpointSettings] = []
    for update in sorted(history, key=lambda update: update.start_time, reverse=True):
        value = update.config.get("lepton:endpoint")
        # What can't be used was refused before it touched anything.
        with contextlib.suppress(ValidationError):
            if value is not None:
                found.append(EndpointSettings.model_validate_json(value.value))
        if update.kind == "update" and update.result == "succeeded":
            break
    return found


def adopt_pending(deployment: dict[str, Any]) -> dict[str, Any]:
    """A deployment in which resources that were just being made count as made, so that a refresh finds out.

    Only those whose inputs hold their `identity`: of any other nobody knows the id, and Pulumi's own warning stands.
    """
    adopted = copy.deepcopy(deployment)
    resources: list[dict[str, Any]] = adopted.setdefault("resources", [])
    known = {resource["urn"] for resource in resources}
    pending = []
    for operation in adopted.get("pending_operations", []):
        resource = operation["resource"]
        identity = resource.get("inputs", {}).get("identity")
        if operation["type"] == "creating" and identity is None:
            pending.append(operation)
        elif operation["type"] == "creating" and resource["urn"] not in known:
            resources.append(resource | {"id": identity, "outputs": resource["inputs"]})
    adopted["pending_operations"] = pending
    return adopted


def _collect_problem(event: EngineEvent, problems: list[str]) -> None:
    diagnostic = event.diagnostic_event
    if diagnostic is not None and diagnostic.severity == "error":
        text = _COLOUR.sub("", diagnostic.message).strip()
        text = text.removeprefix("error: ").replace("Exception calling application: ", "")
        if not _EMPTY.search(text) and text not in problems:
            problems.append(text)


def _warning(event: EngineEvent) -> str:
    """What a program warns of; the engine's own warnings, which are about itself, have no resource."""
    diagnostic = event.diagnostic_event
    if diagnostic is None or diagnostic.severity != "warning" or not diagnostic.urn:
        return ""
    return _COLOUR.sub("", diagnostic.message).strip().removeprefix("warning: ")


def _count(event: EngineEvent, counts: dict[str, int]) -> None:
    if event.summary_event is not None:
        for operation, count in event.summary_event.resource_changes.items():
            if str(operation) not in _CHANGES_NOTHING:
                counts[str(operation)] = count


def _difference(event: EngineEvent) -> list[Difference]:
    """What a preview says of one resource; nothing for a step of a replacement that is only a part of it."""
    step = event.resource_pre_event and event.resource_pre_event.metadata
    if not step or step.op in _CHANGES_NOTHING or step.op in {"create-replacement", "delete-replaced"}:
        return []
    state = step.new or step.old
    # A component, and the stack itself, differ when their outputs do, and these follow from their resources. What
    # Pulumi keeps of its own, such as providers, is nothing that anybody would find changed.
    if state is None or not state.custom or step.type.startswith("pulumi:"):
        return []
    old = {**(step.old.inputs or {}), **(step.old.outputs or {})} if step.old else {}
    paths = old.get(DRIFT) or sorted(step.detailed_diff or step.diffs or [])
    # Of what was found not ready, and is else as it should be, Pulumi makes an update that waits for it once more.
    # A provider needn't say which properties differ: so that alone is not enough.
    if step.op == "update" and not paths and step.old and step.old.init_errors:
        return []
    return [Difference(step.urn.rpartition("::")[2], step.type, str(step.op.value), tuple(map(str, paths)))]


def _reasons(address: str, problems: list[str], output: str) -> str:
    problems = problems or re.findall(r"\berror: (.+)", output) or [output.strip()]
    if any("incorrect passphrase" in problem for problem in problems):
        problems = [
            "PULUMI_CONFIG_PASSPHRASE is not the one that the stack was made with; give that one, or, for a stack that "
            "is new in this backend, delete the line `encryptionsalt` from its config file"
        ]
    return "\n".join(f"{address}: {problem}" for problem in problems)


def _lock_line(text: str) -> str:
    found = _LOCK.search(text)
    if found is None:
        return "another update of the stack is running"
    return f"locked by an update of {found['user']}@{found['host']} (process {found['pid']}, since {found['time']})"


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _is_running(pid: int, since: str) -> bool:
    """Whether the `pulumi` that took a lock still runs; another process may have its number by now."""
    try:
        process = psutil.Process(pid)
        locked = datetime.fromisoformat(since.rstrip("."))
        return process.name().startswith("pulumi") and process.create_time() <= locked.timestamp() + _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
    except ValueError:
        return True
