"""Starts a rollout and drives it, and asks its driver to pause, to skip ahead or to take it back.

Exit status: 0 done, 1 failed or taken back, 3 held, paused or taken over by another driver.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption
from cli.rollout.options import (
    BakeOption,
    MaxBakeOption,
    StepsOption,
    StrategyOption,
    ToOption,
    overridden,
    planned,
    target,
)
from cli.rollout.plan import lacking

if TYPE_CHECKING:
    from rollout.driving.state import Request, RolloutState
    from rollout.planning.plan import Plan
    from rollout.project import Project, StackConfig

DetachOption = Annotated[
    bool, typer.Option("--detach", help="Drive it in a process of its own, and return once that has begun.")
]

_STOPPED = 3
_ASKING_SECONDS = 600.0
"""How long a driver may take until it is where it can do what it is asked: versions may be coming up."""


def start(
    endpoint: EndpointArgument,
    *,
    to: ToOption,
    strategy: StrategyOption = None,
    steps: StepsOption = None,
    bake: BakeOption = None,
    max_bake: MaxBakeOption = None,
    overcommit: Annotated[
        bool, typer.Option("--overcommit", help="Start also where the plan does not fit what the environment has free.")
    ] = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move an endpoint's traffic in steps, each checked by gates, and take it back when one fails.

    Where a rollout to the same target was left by its driver, this goes on with it.
    """
    from cli.retirement import retirement  # noqa: PLC0415
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.driving.driver import Driver, RolloutActiveError, driver_name  # noqa: PLC0415
    from rollout.driving.means import means_of  # noqa: PLC0415
    from rollout.driving.starting import left_behind, new_rollout, require_startable  # noqa: PLC0415

    project, stack = context.project(), context.stack(endpoint, "endpoint")
    settings = overridden(stack, strategy=strategy, steps=steps, bake=bake, max_bake=max_bake)
    say = _sayer(as_json=as_json)
    means = means_of(project, say, retirement)
    try:
        require_startable(means.releases, project, stack)
    except RolloutActiveError:
        left = left_behind(project, means.releases, stack, target(stack, to))
        if left is None:
            raise
        say(f"rollout {left.id} to the same target was left by its driver; going on with it")
    else:
        plan = planned(means.releases, project, stack, to, settings, means.clock)
        _require_fitting(plan, overcommit=overcommit)
        for warning in plan.warnings:
            say(f"warning: {warning}")
        who, now = acting_user(project.root), means.clock.now()
        state = new_rollout(means.releases, project, stack, plan, settings, who, now)
        Driver(means, endpoint, driver_name()).register(state)
    if detach:
        _detach(project, stack, as_json=as_json)
    else:
        _drive(project, stack, as_json=as_json)


def resume(endpoint: EndpointArgument, detach: DetachOption = False, as_json: JsonOption = False) -> None:
    """Go on with a rollout that was paused or held, or whose driver was killed.

    One that was stopped begins its step again: its weights are set anew, and its bake starts over.
    """
    project, stack = context.project(), context.stack(endpoint, "endpoint")
    if detach:
        _detach(project, stack, as_json=as_json)
        return
    from rollout.clock import SystemClock  # noqa: PLC0415

    _drive(
        project, stack, lambda state: state.resumed(SystemClock().now()) if state.stopped else state, as_json=as_json
    )


def pause(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Stop a rollout where it is; the traffic stays as it is now."""
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.asking import is_driven, pause_undriven  # noqa: PLC0415

    project, stack = context.project(), context.stack(endpoint, "endpoint")
    if is_driven(project, stack):
        _tell(stack, _ask(project, stack, "pause"), as_json=as_json)
        return
    state, already = pause_undriven(project, context.releases(), stack, acting_user(project.root), SystemClock())
    _tell(stack, state, as_json=as_json, already=already)


def promote(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Skip ahead: approve a step, or end what it waits for, the rest of its bake and its gates included."""
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.asking import is_driven  # noqa: PLC0415

    project, stack = context.project(), context.stack(endpoint, "endpoint")
    if is_driven(project, stack):
        _tell(stack, _ask(project, stack, "promote"), as_json=as_json)
        return
    who = acting_user(project.root)
    _drive(project, stack, lambda state: state.promoted(SystemClock().now(), who), as_json=as_json)


def abort(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """End a rollout, and restore the weights that were there before it."""
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.driving.asking import is_driven  # noqa: PLC0415

    project, stack = context.project(), context.stack(endpoint, "endpoint")
    if is_driven(project, stack):
        _tell(stack, _ask(project, stack, "abort"), as_json=as_json)
        return
    who = acting_user(project.root)
    _drive(project, stack, lambda state: state.aborted(who), as_json=as_json, wanted="aborted")


def _require_fitting(plan: Plan, *, overcommit: bool) -> None:
    from rollout.driving.starting import NotStartedError  # noqa: PLC0415

    if plan.fits or overcommit:
        return
    other = f"; --strategy {plan.would_fit[0]} would fit" if plan.would_fit else ""
    raise NotStartedError(
        f"{plan.endpoint}: {plan.strategy} needs more than the environment has free; at its peak it lacks "
        f"{lacking(plan)}{other}. `lepton rollout plan` says more, and --overcommit starts it all the same"
    )


def _drive(
    project: Project,
    stack: StackConfig,
    change: Callable[[RolloutState], RolloutState] = lambda state: state,
    *,
    as_json: bool,
    wanted: str = "succeeded",
) -> None:
    """Drives the rollout in this process. Exits with its status."""
    from cli.journal import note  # noqa: PLC0415
    from cli.retirement import retirement  # noqa: PLC0415
    from rollout.driving.driver import Driver, SupersededError, driver_name  # noqa: PLC0415
    from rollout.driving.means import means_of  # noqa: PLC0415

    means = means_of(project, _sayer(as_json=as_json), retirement)
    try:
        state = Driver(means, stack.address, driver_name()).go_on(change)
    except SupersededError as error:
        output.error(str(error))
        raise typer.Exit(_STOPPED) from None
    except KeyboardInterrupt:
        output.error(
            f"interrupted; {stack.address} stays as it is: `lepton rollout resume {stack.address}` goes on, and "
            f"`lepton rollout abort {stack.address}` takes it back"
        )
        raise typer.Exit(130) from None
    if state.ended:
        note(project, [project.stack(stack.address)])
    if as_json:
        output.document(_summary(stack, state))
    if state.stopped:
        raise typer.Exit(_STOPPED)
    if state.phase != wanted:
        raise typer.Exit(1)


def _detach(project: Project, stack: StackConfig, *, as_json: bool) -> None:
    """Has a process of its own go on with the rollout, and returns once that has taken it over."""
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.asking import require_taken_over  # noqa: PLC0415
    from rollout.driving.driver import under_way  # noqa: PLC0415
    from rollout.driving.state import find_state  # noqa: PLC0415
    from rollout.records.record import Record  # noqa: PLC0415

    state = under_way(stack.address, find_state(stack, context.releases().pulumi(stack)))
    log = Record.of(project, stack, state.id).folder / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from cli.main import main; main()", "rollout", "resume", stack.address]
    with log.open("a") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=project.root, start_new_session=True
        )
    now = require_taken_over(stack, state, child, log, SystemClock())
    output.result(
        {**_summary(stack, now or state), "process": child.pid, "log": project.show_path(log)},
        f"{stack.address}: rollout {state.id} is driven by process {child.pid}, which writes {project.show_path(log)}; "
        f"`lepton rollout watch {stack.address}` shows it",
        as_json=as_json,
    )


def _ask(project: Project, stack: StackConfig, request: Request) -> RolloutState | None:
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.asking import ask  # noqa: PLC0415

    with output.progress(f"asking the driver of {stack.address} to {request}", quiet=False):
        return ask(project, stack, request, acting_user(project.root), SystemClock(), _ASKING_SECONDS)


def _tell(stack: StackConfig, state: RolloutState | None, *, as_json: bool, already: bool = False) -> None:
    if state is None:
        output.result({"endpoint": stack.address, "rollout": None}, f"{stack.address}: it is over", as_json=as_json)
        return
    why = f": {state.reason}" if state.reason else ""
    output.result(
        _summary(stack, state),
        f"{stack.address}: rollout {state.id} is {state.phase}{' already,' if already else ''} at step "
        f"{state.step + 1} of {len(state.steps)}{why}",
        as_json=as_json,
    )


def _summary(stack: StackConfig, state: RolloutState) -> dict[str, Any]:
    return {"endpoint": stack.address, **state.summary()}


def _sayer(*, as_json: bool) -> Callable[[str], None]:
    """Takes a line for each thing that happens; on standard error where the result is JSON."""
    from datetime import datetime  # noqa: PLC0415

    def say(text: str) -> None:
        stream = sys.stderr if as_json else sys.stdout
        stream.write(f"{datetime.now().astimezone():%H:%M:%S}  {text}\n")
        stream.flush()

    return say
