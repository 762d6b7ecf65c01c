"""One cluster for all test processes of a run: the first that needs it starts it, and the last stops it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that the test processes of this run have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def shared(folder: Path, start: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    """While it is open, what `start` made is there. The kernel counts the users: one that died is none."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("a") as users:
        with _one_at_a_time(folder):
            if _is_only_user(users):
                start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with _one_at_a_time(folder):
                if _is_only_user(users):
                    stop()
                fcntl.flock(users, fcntl.LOCK_UN)


def once(folder: Path, name: str, start: Callable[[], object]) -> None:
    """Calls `start` where no other test process has done so in this folder."""
    with _one_at_a_time(folder):
        mark = folder / f"{name}.started"
        if not mark.exists():
            start()
            mark.touch()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_only_user(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
