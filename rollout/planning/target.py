"""What `--to` asks an endpoint for: relative weights of all its variants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from infra.errors import UserError
from infra.settings import EndpointSettings


class TargetError(UserError):
    """What traffic is to go to can't be said by these shares."""


def target_weights(endpoint: EndpointSettings, to: Mapping[str, int | None]) -> dict[str, int]:
    """What `--to V`, or `--to V=30 --to W=70`, asks an endpoint for: relative weights of all its variants.

    One version alone takes what the baseline has. Several with numbers divide, in their ratio, what they and the
    baseline have; a baseline that isn't named keeps nothing. All others keep their shares.

    Raises:
        TargetError: where that isn't clear.
    """
    if not to:
        raise TargetError("no version to go to; give --to VERSION")
    numbers = {version: 1 if number is None else number for version, number in to.items()}
    plain = [version for version, number in to.items() if number is None]
    if len(to) > 1 and plain:
        raise TargetError(f"--to {plain[0]} says no share beside others; give each a number, such as {plain[0]}=50")
    if len(to) == 1 and not plain and next(iter(to.values())) != 100:
        ((version, number),) = to.items()
        raise TargetError(
            f"--to {version}={number} leaves open who has the rest; name that version too, such as "
            f"--to {endpoint.baseline_version}={max(100 - (number or 0), 0)}, or write --to {version} for all"
        )
    if min(numbers.values()) < 0 or not any(numbers.values()):
        raise TargetError("the shares of --to are integers from 0, and one is above 0")
    weights = endpoint.weights
    whole = sum(weights.get(version, 0) for version in {*numbers, endpoint.baseline_version})
    if not whole:
        raise TargetError(
            f"the baseline {endpoint.baseline_version} has no weight that could move; name another as lepton:endpoint."
            "baseline"
        )
    kept = {version: weight * sum(numbers.values()) for version, weight in weights.items()}
    moved = {endpoint.baseline_version: 0} | {version: number * whole for version, number in numbers.items()}
    target = kept | moved
    shared = gcd(*target.values())
    return {version: weight // shared for version, weight in target.items()}
