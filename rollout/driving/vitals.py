"""Notices a version that gets requests and has nobody left to answer them.

Where the data plane hands such requests to another version, errors fail the gates soon; where it answers them itself,
as a gateway does, no metric names the version any more, and gates see nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

DEAD_SECONDS = 10.0
"""Without a ready replica: longer than a server that has crashed takes to be started again."""


class Vitals:
    """How long each version has had no ready replica, over looks in a row."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def see(self, ready: Mapping[str, int], versions: Iterable[str], now: float) -> list[str]:
        """Which of these versions have had no ready replica for `DEAD_SECONDS`; `now`: monotonic seconds."""
        down = {version for version in versions if not ready.get(version)}
        self._since = {version: self._since.get(version, now) for version in down}
        return sorted(version for version, since in self._since.items() if now - since >= DEAD_SECONDS)
