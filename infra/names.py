"""The names that tie configs, stacks and the data plane together.

Names are composed here and never parsed back: whoever needs a model or a version reads it as a field.
"""

from __future__ import annotations

PLATFORM_PROJECT = "lepton"
"""The Pulumi project of the platform stacks; a team's project is the team's own name."""

RESERVED_TEAMS = (PLATFORM_PROJECT, "platform")
"""Names that no team can have."""

DRIFT = "drift"
"""Property of a resource's state in which its provider says, in words, what is not as configured."""

VERSION_HEADER = "x-model-version"
"""Pins a request to a version; on an answer, names the version that gave it."""


def platform_stack(environment: str) -> str:
    return environment


def endpoint_stack(environment: str, model: str) -> str:
    return f"{environment}.{model}"


def version_stack(environment: str, model: str, version: str) -> str:
    return f"{environment}.{model}-{version}"


def endpoint_id(team: str, model: str) -> str:
    """Names an endpoint within its environment; no two endpoints share one, as neither part can hold a dot."""
    return f"{team}.{model}"


def version_id(team: str, model: str, version: str) -> str:
    """Names a model version within its environment.

    Unambiguous though all parts may hold hyphens: team and model hold no dot, and every version starts `N.N.N`.
    """
    return f"{team}.{model}-{version}"


def config_file(stack: str) -> str:
    """The file of a stack's config, in its project's folder."""
    return f"Pulumi.{stack}.yaml"
