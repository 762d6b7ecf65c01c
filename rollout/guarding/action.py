"""What the guard does, each action in a process of its own: Pulumi stays out of the guard, and a guard that is killed
leaves its action to end well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError
from rollout.capacity import Refusal
from rollout.driving.state import Phase, read_state
from rollout.guarding.rules import way_back
from rollout.project import BusyError, Project, StackConfig
from rollout.release import Notify, Releases
from rollout.rollback import Rollbacks, Target
from rollout.strategies import words

AUTHOR = "guard"
"""Who the history has an action by."""

_JUDGED: tuple[Phase, ...] = ("moving", "baking", "taking back")
"""Phases of a rollout in which its driver's gates look, or have decided."""


class DrivenError(UserError):
    """The gates of a rollout that is under way decide."""


class ChangedError(UserError):
    """The endpoint's traffic isn't what the guard judged any more."""


def carry_out(
    project: Project,
    order: Mapping[str, Any],
    notify: Notify,
    refuse: Refusal = lambda model, version: None,
) -> str:
    """Does what a guard ordered (`guard.Actor`), and returns what came of it, for people.

    A drop pauses a rollout that nobody drives, or that waits, as a person's `lepton traffic set` does; a rollback ends
    it, as a person's does.

    Raises:
        BusyError: while another command changes the endpoint; nothing is touched then.
        DrivenError: while a rollout's driver judges it; nothing is touched then.
        ChangedError: when its traffic has changed since; nothing is touched then.
        NoWayBackError: when no revision is fit to be gone back to; nothing is touched then.
        UserError: see `Releases.apply` and `Rollbacks.restore`.
    """
    endpoint = project.stack(order["endpoint"])
    with _alone(project, endpoint):
        releases = Releases(project, notify)
        _require_unchanged(releases, endpoint, order["seen"])
        message = f"guard: {order['do']} {order['version']} ({order['why']})"
        if order["do"] == "drop":
            return _drop(project, releases, endpoint, order, message)
        return _roll_back(project, releases, endpoint, order, message, notify, refuse)


class ActionProcess:
    """A process that was given an order; `python -m cli.guard_action` is what it runs."""

    def __init__(self, order: Mapping[str, Any], root: Path) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by `answer`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.guard_action", str(root), json.dumps(dict(order))],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"LEPTON_USER": AUTHOR},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            # What ends the guard, Ctrl-C or its supervisor, doesn't end this.
            start_new_session=True,
        )

    def answer(self) -> dict[str, Any] | None:
        """What the process said in JSON, once it has ended; `problem` where it said nothing."""
        if self._process.poll() is None:
            return None
        with self._out, self._err:
            said, problem = (_content(file) for file in (self._out, self._err))
        try:
            return json.loads(said)
        except ValueError:
            tail = problem.strip().splitlines()[-3:]
            return {"problem": "\n".join(tail) or f"it ended with status {self._process.returncode} and said nothing"}


@contextmanager
def _alone(project: Project, endpoint: StackConfig) -> Iterator[None]:
    """Keeps a rollout's driver from starting meanwhile. Raises DrivenError."""
    with ExitStack() as held:
        try:
            held.enter_context(project.driving(endpoint))
        except BusyError:
            state = read_state(endpoint)
            if state is not None and state.phase in _JUDGED:
                raise DrivenError(f"its rollout {state.id} is {state.phase}, and that one's gates decide") from None
        yield


def _require_unchanged(releases: Releases, endpoint: StackConfig, seen: Mapping[str, int]) -> None:
    """Raises ChangedError where somebody moved weights meanwhile: another command, or the action of a killed guard."""
    weights = releases.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)["weights"]
    if weights != seen:
        raise ChangedError(f"its weights are {weights} by now, and were {dict(seen)} when they were judged")


def _drop(project: Project, releases: Releases, endpoint: StackConfig, order: Mapping[str, Any], message: str) -> str:
    with project.holding(endpoint):
        document = endpoint.document()
        weights: dict[str, int] = order["weights"]
        # A variant that is in the file alone was never brought up, and gets nothing by an emergency.
        variants = [
            {"version": variant["version"], "weight": weights.get(variant["version"], 0)}
            for variant in document["variants"]
        ]
        if document.get("baseline") == order["version"]:
            # Others would fail over to it.
            del document["baseline"]
        changes = releases.apply(
            endpoint,
            document | {"variants": variants},
            message,
            rollout=releases.paused(endpoint, message),
            fast=True,
        )
    said = words({variant["version"]: variant["weight"] for variant in variants})
    took = f"{changes.shift_seconds:.1f} s, and its stack {changes.seconds:.1f} s"
    return f"{order['version']} has no weight any more: {said} ({took})"


def _roll_back(
    project: Project,
    releases: Releases,
    endpoint: StackConfig,
    order: Mapping[str, Any],
    message: str,
    notify: Notify,
    refuse: Refusal,
) -> str:
    target = way_back(releases.revisions(endpoint), order["version"], order["dropped"], order["left"])
    # The harmful version keeps its replicas: an automatic action does the least that helps, and somebody will look.
    report = Rollbacks(releases, project, notify, refuse=refuse).restore(
        endpoint,
        Target(revision=target.number),
        now=True,
        keep=True,
        why=message,
        # What it waited for would have changed what was judged; the guard looks again, and comes back.
        patience=0,
    )
    said = words(report.revision.weights)
    problems = "".join(f"; {problem}" for problem in report.problems)
    return f"back to revision {target.number}: {said} ({report.seconds:.1f} s){problems}"


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
