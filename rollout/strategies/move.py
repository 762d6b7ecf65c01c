"""What a rollout moves, in exact shares: who gains, who loses, who stands by, and what replicas that takes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from rollout.strategies.step import StrategyError, words

Shares = Mapping[str, Fraction]
"""By version; the sum is 1."""


@dataclass(frozen=True)
class Stage:
    """A step in exact shares, before they are weights."""

    shares: Shares
    capacity: Mapping[str, int]
    done: Fraction
    """How much of what moves is where it is to be, 0 to 1."""
    shadow: Mapping[str, float] = field(default_factory=dict[str, float])
    rests: bool = False
    """Whether it lasts although nothing new gets requests: a switch is judged by what the old side did alone."""


@dataclass(frozen=True)
class Move:
    current: Shares
    target: Shares
    """Of the same versions."""
    replicas: Mapping[str, int]
    """That configs ask for, of the same versions."""

    @classmethod
    def between(cls, current: Mapping[str, int], target: Mapping[str, int], replicas: Mapping[str, int]) -> Move:
        """Raises StrategyError where the weights are none, or nothing moves."""
        versions = list(dict.fromkeys([*current, *target]))
        move = cls(
            current=_shares(current, versions, "has"),
            target=_shares(target, versions, "is to have"),
            replicas={version: replicas.get(version, 0) for version in versions},
        )
        if move.current == move.target:
            raise StrategyError(f"nothing to move: the endpoint has the shares of {words(target)} already")
        return move

    @property
    def gaining(self) -> list[str]:
        return [version for version in self.target if self.target[version] > self.current[version]]

    @property
    def losing(self) -> list[str]:
        return [version for version in self.target if self.target[version] < self.current[version]]

    @property
    def moving(self) -> list[str]:
        return [version for version in self.target if self.target[version] != self.current[version]]

    @property
    def bystanders(self) -> list[str]:
        return [version for version in self.target if self.target[version] == self.current[version]]

    @property
    def pool(self) -> Fraction:
        """What the versions that move have together."""
        return sum((self.target[version] for version in self.moving), Fraction())

    def shares(self, done: Fraction) -> dict[str, Fraction]:
        """Everybody's share when so much of what moves has moved."""
        return {version: share + done * (self.target[version] - share) for version, share in self.current.items()}

    def replicas_for(self, version: str, share: Fraction) -> int:
        """What a version needs to serve a share, unless its config says what it has."""
        return self.replicas[version] or max(1, self.as_the_losing_have(share))

    def as_the_losing_have(self, share: Fraction) -> int:
        """Replicas for a share, by what the versions that lose have for theirs."""
        return math.ceil(share * self.replicas_per_share)

    @property
    def replicas_per_share(self) -> Fraction:
        """Of the versions that lose, for the share that they have."""
        served = sum((self.current[version] for version in self.losing), Fraction())
        return sum(self.replicas[version] for version in self.losing) / served

    def capacity(self, shares: Shares) -> dict[str, int]:
        """Replicas with which those that gain serve these shares, while those that lose keep theirs."""
        kept = {version: self.replicas[version] for version in self.losing if self.replicas[version]}
        return kept | {version: self.replicas_for(version, shares[version]) for version in self.gaining}

    def stage(self, done: Fraction, capacity: Mapping[str, int] | None = None) -> Stage:
        """So much moved. Default capacity: what the shares need."""
        shares = self.shares(done)
        return Stage(shares, self.capacity(shares) if capacity is None else capacity, done)


def _shares(weights: Mapping[str, int], versions: list[str], verb: str) -> dict[str, Fraction]:
    total = sum(weights.values())
    if any(weight < 0 for weight in weights.values()) or total == 0:
        raise StrategyError(
            f"the endpoint {verb} {words(weights) or 'no variant'}: weights are integers from 0, and one is above 0"
        )
    return {version: Fraction(weights.get(version, 0), total) for version in versions}
