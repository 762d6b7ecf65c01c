"""Turns the weights that are and those that are wanted into the steps between. Pure.

A step is what an endpoint is to be like for a while: weights, a shadow, and the replicas that each version needs then.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
    approval: bool = False
    """Whether somebody has to approve it before it begins."""
    percent: float
    """How much of what moves is where it is to be after the step."""
