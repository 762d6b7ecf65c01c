"""Whether requests that were answered by several versions can have been split by these weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

FALSE_ALARMS = 1e-6
"""How often a split that keeps to its weights is called one that doesn't, at most."""


def compatible(weights: Mapping[str, int], counts: Mapping[str, int], false_alarms: float = FALSE_ALARMS) -> bool:
    """Whether these answers by version can come from these weights.

    The number of a version's answers, of n drawn with a chance of p each, is k or further from np on that side with a
    probability of at most exp(-n KL(k/n, p)) (Hoeffding 1963, theorem 1, equation 2.1); each version's two sides get
    an equal share of the false alarms. A gateway that takes turns is closer to its weights than one that draws.
    """
    total, requests = sum(weights.values()), sum(counts.values())
    if not requests:
        return True
    versions = weights.keys() | counts.keys()
    most = -math.log(false_alarms / (2 * len(versions)))
    return all(
        requests * _divergence(counts.get(version, 0) / requests, weights.get(version, 0) / total) <= most
        for version in versions
    )


def _divergence(seen: float, expected: float) -> float:
    """Kullback-Leibler, of one chance from another, in nats."""
    return sum(
        0.0 if part == 0 else math.inf if of == 0 else part * math.log(part / of)
        for part, of in ((seen, expected), (1 - seen, 1 - expected))
    )
