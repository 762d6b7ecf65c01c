"""A step of a rollout, its weights in words, and the error of a strategy that can't make any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.errors import UserError


class StrategyError(UserError):
    """There are no steps from these weights to those."""


class Step(BaseModel):
    """What an endpoint is like for a while. Replicas that rise do so before its weights are set, and fall after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: dict[str, int]
    """By version, every variant of the endpoint; integers >= 0 whose sum is the same in every step."""
    shadow: dict[str, float] = {}
    """Percent of requests copied, by version; at most one version."""
    capacity: dict[str, int] = {}
    """Replicas by version, of those that the rollout changes; any other keeps what it has."""
    bake_seconds: float
    """How long gates look at it, at least; 0: nothing new gets requests, so there is nothing to judge."""
    approval: bool = False
    """Whether somebody has to approve it before it begins."""
    percent: float
    """How much of what moves is where it is to be after the step."""


def words(weights: Mapping[str, Any]) -> str:
    """Weights, or shares, as commands and messages say them: `1.0.0=90 1.1.0=10`."""
    return " ".join(f"{version}={weight}" for version, weight in weights.items())
