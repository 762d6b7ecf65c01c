"""What a gate says of a version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Word = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one version."""

    gate: str
    version: str
    word: Word
    reason: str
    """One sentence with the numbers, for people."""
    samples: int = 0
    """Seen of the version since the step began: requests, or windows where the gate judges those."""
    needed: int = 0
    """Below which the gate doesn't pass."""
    value: float | None = None
    """The metric's value since the step began: candidate's …"""
    baseline: float | None = None
    """… and baseline's."""
    low: float | None = None
    """The candidate's confidence band, valid at every look."""
    high: float | None = None
    evidence: float = 0.0
    """Against the version: the e-value, 1 at the start; the gate fails at 1/alpha."""
