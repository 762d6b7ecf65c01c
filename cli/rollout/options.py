"""What the commands that plan and start a rollout share: where traffic is to go, and how."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from infra.settings.rollout import RolloutSettings
    from rollout.clock import Clock
    from rollout.planning.plan import Plan
    from rollout.project import Project, StackConfig
    from rollout.release import Releases

ToOption = Annotated[
    list[str],
    typer.Option(
        "--to",
        metavar="VERSION[=SHARE]",
        help="Where the baseline's traffic is to go; several with shares divide it, the baseline among them if named.",
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        help="canary, rolling, blue-green, canary-blue-green, shadow, ab or adaptive. [default: the config's]"
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option(metavar="PERCENT,...", help="As 5,25,100; or linear, or exponential. [default: the config's]"),
]
BakeOption = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="How long each step lasts at least, as 2m. [default: the config's]"),
]
MaxBakeOption = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="How long at most, while a gate can't say. [default: the config's]"),
]


def target(endpoint: StackConfig, to: list[str]) -> dict[str, int]:
    """The weights that `--to` asks for. Raises BadParameter where that isn't clear."""
    from rollout.planning.target import TargetError, target_weights  # noqa: PLC0415

    wanted = [_version_and_share(text) for text in to]
    if len(dict(wanted)) != len(wanted):
        raise typer.BadParameter("a version is given twice; give each once", param_hint="--to")
    try:
        return target_weights(endpoint.endpoint, dict(wanted))
    except TargetError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from None


def planned(
    releases: Releases,
    project: Project,
    endpoint: StackConfig,
    to: list[str],
    settings: RolloutSettings,
    clock: Clock | None = None,
) -> Plan:
    """The plan of what the options ask for.

    Raises BadParameter where its strategy can't do that, and as `make_plan`.
    """
    from rollout.planning.plan import make_plan  # noqa: PLC0415
    from rollout.strategies import StrategyError  # noqa: PLC0415

    try:
        return make_plan(releases, project, endpoint, target(endpoint, to), settings, clock)
    except StrategyError as error:
        raise typer.BadParameter(str(error), param_hint="--strategy, --to, --steps") from None


def overridden(
    endpoint: StackConfig,
    *,
    strategy: str | None = None,
    steps: str | None = None,
    bake: str | None = None,
    max_bake: str | None = None,
) -> RolloutSettings:
    """The endpoint's settings of rollouts, with what the command says in their place.

    Raises BadParameter where they don't go together.
    """
    from infra.settings.loading import SettingsError, parse_settings  # noqa: PLC0415
    from infra.settings.rollout import RolloutSettings  # noqa: PLC0415

    given: dict[str, Any] = {"strategy": strategy, "bake": bake, "max_bake": max_bake}
    if steps is not None:
        given["steps"] = steps if steps in ("linear", "exponential") else _percentages(steps)
    said = {name: value for name, value in given.items() if value is not None}
    document = endpoint.endpoint.rollout.model_dump(mode="json", exclude_unset=True) | said
    try:
        return parse_settings(RolloutSettings, document, file="lepton rollout", key="options")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None


def _version_and_share(text: str) -> tuple[str, int | None]:
    parsed = re.fullmatch(r"([^=]+)(?:=([0-9]+))?", text)
    if parsed is None:
        raise typer.BadParameter(f"{text!r} is not VERSION or VERSION=SHARE, such as 1.1.0=30", param_hint="--to")
    return parsed[1], int(parsed[2]) if parsed[2] else None


def _percentages(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not percentages such as 5,25,100, nor linear or exponential", param_hint="--steps"
        ) from None
