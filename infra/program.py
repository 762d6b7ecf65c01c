"""The programs of the stacks: reads a stack's config and makes the one component that it asks for.

A stack's kind is the config key that it has: `lepton:platform`, `lepton:version` or `lepton:endpoint`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pulumi

from infra import contracts
from infra.contracts import Component, PlatformExports, Stack, UnknownModeError, VersionExports
from infra.errors import UserError
from infra.names import PLATFORM_PROJECT, config_file, platform_stack, version_stack
from infra.outputs import outputs_of
from infra.project import find_root
from infra.settings import (
    EndpointSettings,
    PlatformSettings,
    SettingsError,
    VersionSettings,
    parse_settings,
    parse_value,
)
from infra.settings.fence import Fence
from infra.settings.modes import refuse_foreign
from infra.settings.platform import Mode
from infra.settings.values import TeamName

S = TypeVar("S", PlatformSettings, VersionSettings, EndpointSettings, Fence)
F = TypeVar("F")


def platform() -> None:
    """The program of the platform's stacks."""
    settings = _settings("platform", PlatformSettings)
    factory = _of_mode(contracts.platform_of, settings.mode)
    try:
        component = factory(_stack(), settings)
    except UserError as error:
        raise pulumi.RunError(f"{_file()}: {error}") from None
    _export(component)


def team() -> None:
    """The program of a team's stacks: versions and endpoints."""
    try:
        parse_value(TeamName, pulumi.get_project(), "Pulumi.yaml: name")
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    config = pulumi.Config("lepton")
    kinds = [kind for kind in ("version", "endpoint") if config.get(kind) is not None]
    if len(kinds) != 1:
        raise pulumi.RunError(
            f"{_file()}: a team's stack has either a lepton:version or a lepton:endpoint; "
            f"this one has {' and '.join(kinds) or 'neither'}"
        )
    _export(_version(config) if kinds == ["version"] else _endpoint(config))


def _version(config: pulumi.Config) -> Component:
    settings = _settings("version", VersionSettings)
    platform_outputs, _ = _read_stacks(settings.environment)
    factory = _of_mode(contracts.version_of, platform_outputs["mode"])
    try:
        refuse_foreign(settings, platform_outputs["mode"], file=_file(), key="lepton:version")
        return factory(_stack(), settings, platform_outputs, secret=_is_secret(config, "version"))
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    except UserError as error:
        raise pulumi.RunError(f"{_file()}: {error}") from None


def _endpoint(config: pulumi.Config) -> Component:
    settings = _settings("endpoint", EndpointSettings)
    fence = _settings("rollout", Fence) if config.get("rollout") is not None else None
    stacks = [
        f"{pulumi.get_project()}/{version_stack(settings.environment, settings.model, version)}"
        for version in settings.versions
    ]
    # The stack's own outputs are those of its last update until this one ends, and nobody else can change them now.
    own = [f"{pulumi.get_project()}/{pulumi.get_stack()}"] if fence else []
    platform_outputs, others = _read_stacks(settings.environment, *own, *stacks)
    if fence:
        refusal = fence.refusal(settings.weights, others.pop(0))
        if refusal:
            raise pulumi.RunError(f"{_file()}: lepton:rollout.follows: {refusal}")
    for version, stack, outputs in zip(settings.versions, stacks, others, strict=True):
        if not outputs:
            raise pulumi.RunError(
                f"{_file()}: lepton:endpoint.variants: given {version}: that version of {settings.model} is not "
                f"deployed in {settings.environment}; run `lepton deploy {stack}` first"
            )
    versions = cast("dict[str, VersionExports]", dict(zip(settings.versions, others, strict=True)))
    factory = _of_mode(contracts.endpoint_of, platform_outputs["mode"])
    try:
        component = factory(_stack(), settings, platform_outputs, versions)
    except UserError as error:
        raise pulumi.RunError(f"{_file()}: {error}") from None
    # No mode's business.
    pulumi.export("rollout", fence and fence.model_dump(include={"id", "driver", "step"}))
    return component


def _read_stacks(environment: str, *stacks: str) -> tuple[PlatformExports, list[dict[str, Any]]]:
    """Outputs of the environment's platform and of the named stacks; empty for a named one that isn't up."""
    platform_outputs, *others = outputs_of(f"{PLATFORM_PROJECT}/{platform_stack(environment)}", *stacks)
    if not platform_outputs:
        raise pulumi.RunError(
            f"{_file()}: environment: given {environment!r}: that environment's platform is not up; "
            f"run `lepton up {environment}` first"
        )
    return cast("PlatformExports", platform_outputs), others


def _settings(key: str, kind: type[S]) -> S:
    document = pulumi.Config("lepton").get_object(key)
    if document is None:
        raise pulumi.RunError(f"{_file()}: lepton:{key} is required and not given")
    try:
        settings = parse_settings(kind, document, file=_file(), key=f"lepton:{key}")
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    if not isinstance(settings, Fence) and settings.stack_name != pulumi.get_stack():
        raise pulumi.RunError(f"{_file()}: these settings are of stack {settings.stack_name}, and of no other")
    return settings


def _of_mode(factory_of: Callable[[Mode], F], mode: Mode) -> F:
    try:
        return factory_of(mode)
    except UnknownModeError as error:
        raise pulumi.RunError(f"{_file()}: {error}") from None


def _stack() -> Stack:
    return Stack(team=pulumi.get_project(), name=pulumi.get_stack(), folder=str(find_root(Path.cwd())))


def _file() -> str:
    return config_file(pulumi.get_stack())


def _is_secret(config: pulumi.Config, key: str) -> bool:
    return pulumi.runtime.config.is_config_secret(config.full_key(key))


def _export(component: Component) -> None:
    for name, value in component.exports.items():
        pulumi.export(name, value)
