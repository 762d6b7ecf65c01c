"""Tells how far long work is."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from model_packaging.digests import Target

Progress = Callable[[int, int], None]
"""Told the bytes done and all there are, one call at a time, by whichever thread did them. Where work is done over, it
goes back."""


class Meter:
    """Adds up what threads do, and tells `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = Lock()

    def add(self, count: int) -> None:
        """Bytes done, or with a minus, to be done over."""
        if self._progress is None or count == 0:
            return
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)


class Metered:
    """Counts what is written, and passes it on if there is a `target`."""

    def __init__(self, meter: Meter, target: Target | None = None) -> None:
        self._meter = meter
        self._target = target

    def write(self, content: memoryview) -> None:
        if self._target is not None:
            self._target.write(content)
        self._meter.add(len(content))
