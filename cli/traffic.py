"""`lepton traffic`: an endpoint's weights, shown and set; and requests to try them with."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption

_CONNECTIONS = 32

app = typer.Typer(no_args_is_help=True, help="An endpoint's weights, and requests to try them with.")


@app.command()
def show(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Show the weights that the data plane has now."""
    stack = context.stack(endpoint, "endpoint")
    traffic = context.releases().observer(stack).traffic(stack.team, stack.endpoint.model)
    output.result(
        {"endpoint": endpoint, "observed_weights": traffic["weights"], "shadow": traffic["shadow"]},
        f"{endpoint}: {output.weights(traffic['weights']) or 'no traffic'}",
        as_json=as_json,
    )


@app.command("set")
def set_(
    endpoint: EndpointArgument,
    weights: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION=WEIGHT]...", help="Others keep their weight.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="VERSION", help="Take this variant out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set weights, and verify them on the data plane."""
    wanted = dict(_parse(text) for text in weights or [])
    if len(wanted) != len(weights or []):
        raise typer.BadParameter("a version is given twice; give each once")
    if not wanted and not drop:
        raise typer.BadParameter("give VERSION=WEIGHT, or --drop VERSION")
    from cli.journal import note  # noqa: PLC0415

    stack = context.stack(endpoint, "endpoint")
    with output.progress(f"changing {endpoint}", quiet=as_json) as notify:
        releases = context.releases(notify)
        changes = releases.set_weights(stack, wanted, drop or [])
        note(context.project(), [context.stack(endpoint, "endpoint")])
        now = releases.observer(stack).traffic(stack.team, stack.endpoint.model)["weights"]
    output.result(
        {"endpoint": endpoint, "observed_weights": now, "changes": changes.counts, "seconds": changes.seconds},
        f"{endpoint}: {output.weights(now)}, as the data plane says ({changes}, {changes.seconds:.1f} s)",
        as_json=as_json,
    )


@app.command()
def send(
    endpoint: EndpointArgument,
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="Requests a second.")] = 50,
    lasting: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long, as 90s or 5m.")] = "60s",
    as_json: JsonOption = False,
) -> None:
    """Send a sample of the baseline's package to an endpoint at a constant rate, and count who answered.

    To try a rollout with: its gates need requests. Ctrl-C ends it early.
    """
    from infra.settings import parse_value  # noqa: PLC0415
    from infra.settings.values import Seconds  # noqa: PLC0415
    from rollout.sample_requests import sample_requests  # noqa: PLC0415
    from rollout.split import measure_split  # noqa: PLC0415

    seconds: float = parse_value(Seconds, lasting, "--for")
    stack = context.stack(endpoint, "endpoint")
    baseline = stack.endpoint.baseline_version
    asked = sample_requests(context.releases(), context.project(), stack, baseline)
    split = measure_split(asked.url, asked.samples[0], max(1, round(rate * seconds)), _CONNECTIONS, rate, at=asked.at)
    answered = ", ".join(f"{version} {count}" for version, count in split.versions.items()) or "none"
    failed = "".join(f"; {count} failed with {what}" for what, count in split.failures.items())
    output.result(
        {"endpoint": endpoint} | split.summary(),
        f"{endpoint}: {split.requests} requests in {split.seconds:.0f} s, answered by {answered}{failed}",
        as_json=as_json,
    )
    if split.failures:
        raise typer.Exit(1)


def _parse(text: str) -> tuple[str, int]:
    parsed = re.fullmatch(r"([^=]+)=(-?[0-9]+)", text)
    if parsed is None:
        raise typer.BadParameter(f"{text!r} is not VERSION=WEIGHT, such as 1.1.0=10")
    return parsed[1], int(parsed[2])
