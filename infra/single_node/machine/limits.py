"""CPU and memory limits of a process by control groups (v1 or v2), where this user may make them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_BUSY_SECONDS = 2


@dataclass(frozen=True)
class Limits:
    cpu: float | None = None
    """Cores."""
    memory: int | None = None
    """Bytes."""


def enforce(name: str, limits: Limits, root: Path = _ROOT) -> str:
    """Moves this process, and so its children, into a control group of its own with these limits.

    Returns what enforces them: `cgroup-v2`, `cgroup-v1`, or `none: REASON`.
    """
    if limits == Limits():
        return "none: no limit is set"
    try:
        if (root / "cgroup.controllers").exists():
            _enforce_v2(root / name, limits)
            return "cgroup-v2"
        _enforce_v1(root, name, limits)
    except OSError as error:
        return f"none: {error.strerror} ({error.filename})"
    return "cgroup-v1"


def forget(name: str, root: Path = _ROOT) -> None:
    """Removes the control group `PARENT/NAME`, and its parent if that has no other."""
    for folder in _folders(name, root):
        _remove(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def forget_all(parent: str, root: Path = _ROOT) -> None:
    """Removes every control group `PARENT/…`, and the parent."""
    for folder in _folders(parent, root):
        for child in [path for path in folder.glob("*") if path.is_dir()]:
            _remove(child)
        _remove(folder)


def _folders(name: str, root: Path) -> tuple[Path, ...]:
    return root / name, root / "cpu" / name, root / "memory" / name


def _remove(folder: Path) -> None:
    # The kernel holds a group for a moment after its last process is gone.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
        return


def _enforce_v2(group: Path, limits: Limits) -> None:
    for parent in (group.parent.parent, group.parent):
        parent.mkdir(exist_ok=True)
        (parent / "cgroup.subtree_control").write_text("+cpu +memory")
    group.mkdir(exist_ok=True)
    if limits.cpu is not None:
        (group / "cpu.max").write_text(f"{int(limits.cpu * _PERIOD_US)} {_PERIOD_US}")
    if limits.memory is not None:
        (group / "memory.max").write_text(str(limits.memory))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _enforce_v1(root: Path, name: str, limits: Limits) -> None:
    if limits.cpu is not None:
        group = root / "cpu" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(limits.cpu * _PERIOD_US)))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    if limits.memory is not None:
        group = root / "memory" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limits.memory))
        (group / "cgroup.procs").write_text(str(os.getpid()))
