"""Asks the driver of a rollout to pause it, to skip ahead or to abort it, and waits until it has taken that up."""

from __future__ import annotations

import subprocess
from pathlib import Path

from infra.errors import UserError
from rollout.clock import Clock
from rollout.driving.driver import under_way
from rollout.driving.state import Request, RequestError, RolloutState, adopted, find_state, read_state
from rollout.project import ROLLOUT_KEY, BusyError, Project, StackConfig, waited_for, write_config
from rollout.release import Releases

_POLL_SECONDS = 0.2
_BEGIN_SECONDS = 60.0
_SHOWN_LINES = 20


class NotTakenUpError(UserError):
    """The driver hasn't done in time what it was asked."""


def is_driven(project: Project, endpoint: StackConfig) -> bool:
    """Whether a process on this machine drives the endpoint's rollout."""
    try:
        with project.driving(endpoint):
            return False
    except BusyError:
        return True


def ask(
    project: Project, endpoint: StackConfig, request: Request, by: str, clock: Clock, seconds: float
) -> RolloutState | None:
    """Asks the driver, and waits until it has taken that up, or, of an abort, until it is done.

    Returns the state then, and None when the rollout is over.

    Raises:
        NoRolloutError: where none is under way.
        RequestError: where there is nothing to do.
        NotTakenUpError: when the driver hasn't within so many seconds, or has ended without; the request stays then.
    """
    deadline = clock.monotonic() + seconds
    # The driver itself holds it while it sets weights.
    with waited_for(lambda: project.holding(endpoint), clock, seconds):
        state = under_way(endpoint.address, read_state(endpoint))
        if state.phase == "taking back":
            raise RequestError(f"{endpoint.address}: rollout {state.id} is being taken back: {state.reason}")
        if request == "pause":
            state.enter("paused", clock.now())
        if request == "promote":
            state.promoted(clock.now(), by)
        write_config(endpoint, {ROLLOUT_KEY: state.asked(request, by).document()})
    while True:
        now = read_state(endpoint)
        if now is None or now.id != state.id:
            return None
        if now.request != request:
            return now
        if not is_driven(project, endpoint):
            raise NotTakenUpError(
                f"{endpoint.address}: its driver has ended; `lepton rollout resume {endpoint.address}` takes up "
                "what was asked"
            )
        if clock.monotonic() > deadline:
            raise NotTakenUpError(
                f"{endpoint.address}: asked to {request}, and not done within {seconds:g} s: the rollout is "
                f"{now.phase}, and its driver does so after that"
            )
        clock.sleep(_POLL_SECONDS)


def pause_undriven(
    project: Project, releases: Releases, endpoint: StackConfig, by: str, clock: Clock
) -> tuple[RolloutState, bool]:
    """Marks a rollout that no process drives as paused; returns its state, and whether it was so already.

    Raises:
        NoRolloutError: where none is under way.
        RequestError: where it can't be paused.
    """
    with project.holding(endpoint):
        stack = releases.pulumi(endpoint)
        state = under_way(endpoint.address, find_state(endpoint, stack))
        if state.phase == "paused":
            return state, True
        paused = state.enter("paused", clock.now(), f"paused by {by}")
        write_config(endpoint, adopted(endpoint, stack, state) | {ROLLOUT_KEY: paused.document()})
        return paused, False


def require_taken_over(
    endpoint: StackConfig, before: RolloutState, process: subprocess.Popen[bytes], log: Path, clock: Clock
) -> RolloutState | None:
    """Waits until a process has made itself the rollout's driver; the state then, None when it is over already.

    Raises:
        NotTakenUpError: with the end of its log, when it has ended instead, or isn't as far within a minute.
    """
    deadline = clock.monotonic() + _BEGIN_SECONDS
    while True:
        now = read_state(endpoint)
        if now is None or now.turn > before.turn:
            return now
        if process.poll() is not None or clock.monotonic() > deadline:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
            raise NotTakenUpError(f"{endpoint.address}: the process {process.pid} did not begin to drive it:\n{end}")
        clock.sleep(_POLL_SECONDS)
