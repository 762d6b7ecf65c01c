"""Locks between the processes of one user on one machine, for what a registry can't do in one step."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from model_packaging.folders import writing_to

_LOCKS = 256
"""More would be more files in the user's cache, and fewer would have strangers wait for each other more often."""


@contextmanager
def machine_lock(name: str, environ: Mapping[str, str]) -> Iterator[None]:
    """Held for the block, in the user's cache folder (XDG Base Directory Specification).

    Different names may share a lock: who holds one asks for no other. The kernel frees it however the process ends.

    Raises:
        NotWritable, DiskFull: the cache folder can't be written to.
    """
    given = environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path(environ.get("HOME") or Path.home()) / ".cache"
    folder = base / "lepton" / "registry-locks"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _LOCKS
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / f"{number:03}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
