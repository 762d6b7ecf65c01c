"""The other ways to make the same rollout. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from infra.settings.rollout import RolloutSettings, StrategyName


def alternatives(settings: RolloutSettings) -> Iterator[tuple[str, RolloutSettings]]:
    """Other strategies with the same options, and the one that asks for the least room."""
    names: tuple[StrategyName, ...] = get_args(StrategyName)
    for name in names:
        if name != settings.strategy:
            yield name, settings.model_copy(update={"strategy": name})
    least = {"strategy": "rolling", "max_surge": 0, "max_unavailable": max(settings.max_unavailable, 1)}
    if settings.max_surge:
        yield (
            f"rolling with max_surge 0 and max_unavailable {least['max_unavailable']}",
            settings.model_copy(update=least),
        )
