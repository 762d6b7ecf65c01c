"""The folder a node lives in: every file the node has, and who may write it when."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from infra.files import write_atomically

_LONGEST_SOCKET_PATH = 107  # sun_path in unix(7), less the final zero byte


class NodeError(UserError):
    """Something on the machine is not as it must be. Its text says what, and what to do."""


@dataclass(frozen=True)
class Node:
    """A single-node environment's folder."""

    directory: Path

    @property
    def id(self) -> str:
        """Marks what belongs to this node among all that runs on the machine."""
        return hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]

    @property
    def programs(self) -> Path:
        """Supervisor's program files, one a process."""
        return self.directory / "programs"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def run(self) -> Path:
        """Sockets and process ids."""
        return self.directory / "run"

    @property
    def models(self) -> Path:
        """Unpacked artifacts, by digest."""
        return self.directory / "models"

    @property
    def router(self) -> Path:
        return self.directory / "router"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics"

    @property
    def claims(self) -> Path:
        """Which ports and GPUs are taken, and by whom."""
        return self.directory / "claims.json"

    def socket(self, name: str) -> Path:
        path = self.run / name
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise NodeError(
                f"{path} is too long for a Unix socket ({_LONGEST_SOCKET_PATH} bytes at most): "
                "set lepton:platform.node.directory to a shorter path"
            )
        return path

    def key(self) -> bytes:
        """A secret of this node's own."""
        file = self.run / "key"
        with self.locked("key"):
            if not file.exists():
                write_atomically(file, secrets.token_hex(32), mode=0o600)
            return file.read_bytes()

    def create(self) -> None:
        for folder in (self.programs, self.logs, self.run, self.models, self.router, self.metrics):
            folder.mkdir(parents=True, exist_ok=True)
        # Program files hold the servers' environments; the run folder holds control sockets.
        for private in (self.programs, self.run):
            private.chmod(0o700)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds the node's lock `name` across processes; the kernel frees it when its holder dies."""
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
