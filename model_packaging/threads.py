"""Threads for work that hashes and waits: both leave the interpreter to the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_MOST = 8
"""Beyond so many, disks and registries get no faster, and memory is taken for each."""


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool that starts nothing new once the block has failed, and has ended whatever happens."""
    # One more than there are processors: one waits for the disk.
    pool = ThreadPoolExecutor(min(_MOST, len(os.sched_getaffinity(0)) + 1), thread_name_prefix="packaging")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
