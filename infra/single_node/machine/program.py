"""What the supervisor keeps running. Apart from it, so that describing a program doesn't need its protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from infra.single_node.machine.limits import Limits


@dataclass(frozen=True)
class Program:
    """A process to keep running."""

    name: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    stop_seconds: float = 10.0
    """Between SIGTERM and SIGKILL."""
    files: dict[Path, str] = field(default_factory=dict)
    """Its configuration: content by file. Read when it starts, so other content restarts it."""
    inherits: bool = False
    """Whether it also has what supervisord was handed of its starter's environment: secrets that are in no file."""
    leaves_children: bool = False
    """Whether processes that it started may outlive it, until the node is stopped."""
