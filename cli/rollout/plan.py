"""`lepton rollout plan`: what a rollout would do and take, before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
)

if TYPE_CHECKING:
    from rollout.planning.plan import Plan


def plan(
    endpoint: EndpointArgument,
    *,
    to: ToOption,
    strategy: StrategyOption = None,
    steps: StepsOption = None,
    bake: BakeOption = None,
    max_bake: MaxBakeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a rollout's steps, what they take at their peak, how long they last, and what its gates need.

    Exit status 1: it doesn't fit what the environment has.
    """
    stack = context.stack(endpoint, "endpoint")
    settings = overridden(stack, strategy=strategy, steps=steps, bake=bake, max_bake=max_bake)
    found = planned(context.releases(), context.project(), stack, to, settings)
    if as_json:
        output.document(found.summary())
    else:
        show(found)
    if not found.fits:
        raise typer.Exit(1)


def show(plan: Plan) -> None:
    """Prints a plan for people."""
    output.line(f"{plan.endpoint}: {plan.strategy}, {output.weights(plan.current)} to {output.weights(plan.target)}")
    output.line("")
    output.table(
        ["step", "percent", "weights", "copies", "replicas", "bake", ""],
        [
            [
                index,
                f"{step.percent:g} %",
                output.weights(step.weights),
                " ".join(f"{version}={percent:g}%" for version, percent in step.shadow.items()) or "-",
                output.weights(step.capacity) or "-",
                _time(step.bake_seconds) if step.bake_seconds else "-",
                "after approval" if step.approval else "",
            ]
            for index, step in enumerate(plan.steps, start=1)
        ],
    )
    output.line("")
    _show_peak(plan)
    output.line("")
    _show_gates(plan)
    approvals = ", and the time of approvals" if any(step.approval for step in plan.steps) else ""
    output.line(f"It takes {_time(plan.duration.shortest)} to {_time(plan.duration.longest)}{approvals}.")
    for warning in plan.warnings:
        output.line(f"note: {warning}")
    _show_verdict(plan)


def _show_peak(plan: Plan) -> None:
    peak = plan.peak
    output.table(
        ["resource", "at the peak", "reserved now", "there is"],
        [
            ["cores", f"{peak.needed['cpu']:g}", f"{peak.reserved['cpu']:g}", f"{peak.total['cpu']:g}"],
            ["memory", *(output.size(amount["memory"]) for amount in (peak.needed, peak.reserved, peak.total))],
            ["GPUs", peak.needed["gpu"], peak.reserved["gpu"], peak.total["gpu"]],
        ],
    )


def _show_gates(plan: Plan) -> None:
    if not plan.gates:
        return
    output.table(
        ["step", "gate", "version", "needs", "takes"],
        [
            [
                need.step + 1,
                need.gate,
                need.version,
                f"{need.samples} {need.unit}",
                "unknown" if need.seconds is None else _time(need.seconds),
            ]
            for need in plan.gates
        ],
    )
    rate = "nobody knows the rate of requests"
    if plan.rate is not None:
        rate = f"{plan.rate:.3g} requests/s over the last {_time(plan.rate_seconds)}"
    output.line(f"({rate})")
    output.line("")


def _show_verdict(plan: Plan) -> None:
    if plan.fits:
        output.line("It fits.")
        return
    others = "; ".join(plan.would_fit)
    output.line(
        f"It does not fit: it lacks {lacking(plan)}. {f'Would fit: {others}.' if others else 'No strategy fits.'}"
    )


def lacking(plan: Plan) -> str:
    """What an environment has too little of for a plan, as people say it."""
    if plan.peak.lacking:
        return " and ".join(_amount(name, amount) for name, amount in plan.peak.lacking.items())
    return "; ".join(f"a place for {each.replicas} of {each.demand}: {each.reason}" for each in plan.without_place)


def _amount(resource: str, amount: float) -> str:
    match resource:
        case "memory":
            return f"{output.size(int(amount))} of memory"
        case "gpu":
            return f"{amount:g} GPUs"
        case _:
            return f"{amount:g} cores"


def _time(seconds: float) -> str:
    """As people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
