"""Builds the stand-in model server that router and runtime tests put behind Envoy in place of a real one.

It speaks the Open Inference Protocol V2 and a part of OpenAI's API, and fails on request. It is a stand-in, for tests
and benchmarks alone: the product never knows of it, and is given it as any other server command.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent
_PARTS = ("go.mod", "main.go")


def default_cache_dir() -> Path:
    """The user's cache folder for stand-ins: `$XDG_CACHE_HOME/lepton/test-plugins`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lepton" / "test-plugins"


def build(cache_dir: Path | None = None) -> Path:
    """The server's binary, built once for each content of its source, however many processes ask at a time.

    Raises `RuntimeError` with the compiler's words where it doesn't build.
    """
    cache = cache_dir or default_cache_dir()
    digest = hashlib.sha256()
    for part in _PARTS:
        digest.update(part.encode() + b"\0" + (SOURCE / part).read_bytes() + b"\0")
    binary = cache / f"oip-server-{digest.hexdigest()[:16]}"
    if binary.exists():
        return binary
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{binary.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _compile(binary)
    return binary


def _compile(binary: Path) -> None:
    unfinished = binary.with_name(f"{binary.name}.{os.getpid()}.part")
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(unfinished), "."]
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    try:
        outcome = subprocess.run(command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
        if outcome.returncode != 0:
            raise RuntimeError(f"the stand-in model server does not build:\n{outcome.stderr.strip()}")
        unfinished.replace(binary)
    finally:
        unfinished.unlink(missing_ok=True)
