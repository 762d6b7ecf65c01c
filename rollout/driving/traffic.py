"""An endpoint's config with the traffic that a rollout gives it; all else that it says stays. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.driving.state import RolloutState
from rollout.strategies import Step

Document = dict[str, Any]
"""The value of `lepton:endpoint`, as written."""


def with_variants(document: Document, weights: Mapping[str, int], baseline: str) -> Document:
    """With these variants. The baseline stands there by name: what fails goes over to it, whatever the weights are."""
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    return document | {"variants": variants, "baseline": baseline}


def with_step(document: Document, step: Step, baseline: str) -> Document:
    """With a step's weights and shadow."""
    rest = {key: value for key, value in document.items() if key != "shadow"}
    copies = [{"version": version, "percent": percent} for version, percent in step.shadow.items()]
    return with_variants(rest | ({"shadow": copies[0]} if copies else {}), step.weights, baseline)


def restored(document: Document, state: RolloutState) -> Document:
    """With the traffic that was there before the rollout."""
    return _naming(with_step(document, state.initial, state.baseline), state.named_baseline)


def final(document: Document, state: RolloutState) -> Document:
    """With the traffic that the rollout ends with. A baseline that has lost its share passes its name on."""
    last = state.steps[-1]
    leading = max(last.weights, key=lambda version: last.weights[version])
    named = state.named_baseline
    kept = named if named is None or last.weights.get(named) else leading
    return _naming(with_step(document, last, state.baseline), kept)


def shadow_in(document: Document) -> dict[str, float]:
    """Percent of requests copied, by version."""
    shadow = document.get("shadow")
    return {shadow["version"]: shadow["percent"]} if shadow else {}


def shares(weights: Mapping[str, int]) -> dict[str, int]:
    """Who gets requests: a variant without weight gets none, listed or not."""
    return {version: weight for version, weight in weights.items() if weight}


def _naming(document: Document, baseline: str | None) -> Document:
    rest = {key: value for key, value in document.items() if key != "baseline"}
    return rest if baseline is None else rest | {"baseline": baseline}
