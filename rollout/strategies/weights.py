"""Exact shares as integer weights: one sum for all steps, and rounding that loses nothing. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from rollout.strategies.move import Move, Shares
from rollout.strategies.step import StrategyError, words

_GREATEST_SUM = 1_000_000
"""So that no weight is above what `infra.settings.values.Weight` lets it be, whichever version gets all."""


def common_sum(move: Move, steps: Sequence[Shares], round_number: int) -> int:
    """The sum of weights that says every step's shares best; a multiple of `round_number` where that can be.

    Raises:
        StrategyError: where not even the target can be said exactly.
    """
    exact = _denominator(move.current.values(), *(shares.values() for shares in steps))
    for total in (math.lcm(exact, round_number), exact):
        if total <= _GREATEST_SUM:
            return total
    # Bystanders have the target's share in all steps, so that they are exact too.
    target = _denominator(move.target.values())
    if target > _GREATEST_SUM:
        said = words({version: share * target for version, share in move.target.items()})
        raise StrategyError(f"{said}: the sum of these is above {_GREATEST_SUM}; ask for shares in smaller numbers")
    return _GREATEST_SUM // target * target


def whole_weights(shares: Shares, total: int) -> dict[str, int]:
    """Integers in these shares whose sum is `total`; what is left after rounding down goes to the largest remainders.

    Of versions with the same remainder, the first has it. Hamilton's method; a share that is exact stays so.
    """
    exact = {version: share * total for version, share in shares.items()}
    weights = {version: math.floor(value) for version, value in exact.items()}
    by_remainder = sorted(exact, key=lambda version: weights[version] - exact[version])
    for version in by_remainder[: total - sum(weights.values())]:
        weights[version] += 1
    return weights


def _denominator(*shares: Iterable[Fraction]) -> int:
    return math.lcm(*(share.denominator for several in shares for share in several))
