"""Runs the guard of `lepton guard` in this process: its loop, its signals, and what it prints."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cli import output
from rollout.clock import SystemClock
from rollout.driving.hooks import tell
from rollout.guarding.action import ActionProcess
from rollout.guarding.guard import Event, Guard, GuardedEndpoints, Memories, guarding, state_folder
from rollout.guarding.lookout import NodeLookout, Sight
from rollout.guarding.rules import LOOK_SECONDS

if TYPE_CHECKING:
    from infra.settings.rollout import GuardSettings
    from rollout.project import Project, StackConfig

_LAST_WORDS_SECONDS = 5.0
"""How long an action may go on before a guard that is told to end leaves it to itself."""
_POLL_SECONDS = 0.1
_GLANCE_SECONDS = 10.0
_NOTIFIED = {"acting": "rollback", "done": "rollback", "failed": "hold", "held back": "hold"}
"""What webhooks call an event, of those that they are told."""


class _EndedError(BaseException):
    """Somebody told the guard to end while it was reading."""


def run(project: Project, environment: str, teams: Sequence[str], *, wait: bool, as_json: bool) -> None:
    """Guards until SIGTERM or SIGINT.

    Raises:
        GuardedError: while another guard looks after the same endpoints, without `wait`.
        UnknownStackError: where there is no such environment.
    """
    project.platform(environment)
    with guarding(state_folder(project, environment), teams, wait=wait):
        guard = Guard(
            GuardedEndpoints(project, environment, teams),
            _lookout(project, environment),
            lambda order: ActionProcess(order, project.root),
            Memories(state_folder(project, environment) / "endpoints"),
            _reporter(as_json=as_json),
            SystemClock(),
        )
        with _ending() as ending:
            _look_until(ending, guard)
            ending.interrupts = False
            _await_actions(guard)


def glance(project: Project, environment: str, teams: Sequence[str], *, as_json: bool) -> None:
    """Prints once what a guard would see, and what one has done. Does nothing."""
    endpoints, problems = GuardedEndpoints(project, environment, teams).read()
    for problem in problems.values():
        output.say(problem)
    lookout, memories = _lookout(project, environment), Memories(state_folder(project, environment) / "endpoints")
    sights = _see(lookout, list(endpoints.values()))
    found = [
        {
            "endpoint": address,
            "problem": sight.problem,
            "variants": _variants(sight),
            "memory": memories.load(address, time.monotonic()).document(),
        }
        for address, sight in sights.items()
    ]
    if as_json:
        output.document(found)
        return
    if not found:
        output.line(f"no endpoint of {environment} has rules for the guard; give it a `guard:`")
    for each in found:
        seen = f"seen for {sights[each['endpoint']].seconds:.1f} s"
        output.line(f"{each['endpoint']}  {each['problem'] or seen}")
        output.table(
            ["version", "weight", "ready replicas", "requests", "errors"],
            [
                [row["version"], row["weight"], _known(row["ready"]), _known(row["requests"]), _known(row["errors"])]
                for row in each["variants"]
            ],
        )
        for action in each["memory"]["actions"]:
            how = {None: "unknown", True: "done", False: "failed"}[action["ok"]]
            output.line(f"  {action['at']}  {action['what']}: {how}")


# -- the loop


class _Ending:
    """That the guard was told to end, by a signal."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.interrupts = False
        """Whether a signal breaks off what goes on: a data plane that hangs must not keep the guard."""

    def __call__(self, *_: object) -> None:
        self.told.set()
        if self.interrupts:
            self.interrupts = False
            raise _EndedError


@contextmanager
def _ending() -> Iterator[_Ending]:
    ending = _Ending()
    before = {number: signal.signal(number, ending) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _look_until(ending: _Ending, guard: Guard) -> None:
    try:
        while not ending.told.is_set():
            began = time.monotonic()
            ending.interrupts = True
            guard.look()
            ending.interrupts = False
            # An action's end is news at once.
            while not ending.told.is_set() and (rest := began + LOOK_SECONDS - time.monotonic()) > 0:
                ending.told.wait(min(rest, 0.5) if guard.acting else rest)
                guard.hear()
    except _EndedError:
        pass


def _await_actions(guard: Guard) -> None:
    """Lets actions end that soon do; any other ends by itself, and its outcome is in the endpoint's history."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while guard.acting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        guard.hear()
    for address in guard.acting:
        output.say(f"{address}: what the guard began goes on by itself; see `lepton history {address}`")


# -- what it is made of


def _lookout(project: Project, environment: str) -> NodeLookout:
    order = {"do": "platform", "environment": environment}
    cache = state_folder(project, environment) / "platform.json"
    return NodeLookout(project, environment, cache, lambda: ActionProcess(order, project.root), SystemClock())


def _reporter(*, as_json: bool) -> Any:
    def report(event: Event, guard: GuardSettings | None) -> None:
        _print(event, as_json=as_json)
        on = _NOTIFIED.get(event.kind)
        if guard is None or on is None:
            return
        for problem in tell(guard.notify, on, f"guard: {event.endpoint}: {event.text}", event.document()):
            _print(Event(event.at, "problem", event.endpoint, problem), as_json=as_json)

    return report


def _print(event: Event, *, as_json: bool) -> None:
    about = f"{event.endpoint}: " if event.endpoint else ""
    plain = f"{event.at:%Y-%m-%dT%H:%M:%SZ} {event.kind}: {about}{event.text}"
    output.line(json.dumps(event.document()) if as_json else plain)
    # Whoever reads a pipe or a log is to know at once.
    sys.stdout.flush()


# -- one look


def _see(lookout: NodeLookout, endpoints: Sequence[StackConfig]) -> dict[str, Sight]:
    """What is seen once metrics have been read twice, or as much of it as there is in some seconds."""
    deadline = time.monotonic() + _GLANCE_SECONDS
    sights = {stack.address: lookout.look(stack) for stack in endpoints}
    while any(sight.problem or sight.seconds == 0 for sight in sights.values()) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        sights = {stack.address: lookout.look(stack) for stack in endpoints}
    return sights


def _variants(sight: Sight) -> list[dict[str, Any]]:
    ready, counts = sight.ready or {}, sight.counts or {}
    return [
        {
            "version": version,
            "weight": weight,
            "ready": ready.get(version),
            "requests": counts[version].requests if version in counts else None,
            "errors": counts[version].errors if version in counts else None,
        }
        for version, weight in sight.weights.items()
    ]


def _known(value: int | None) -> str:
    return "-" if value is None else str(value)
