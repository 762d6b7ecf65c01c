"""Tells the node's processes from all others of the machine: each carries the node's folder in its environment."""

from __future__ import annotations

import contextlib
import os

import psutil

NODE_VARIABLE = "LEPTON_NODE"
"""Environment variable that marks every process of a node with the node's folder."""
PROGRAM_VARIABLE = "LEPTON_PROGRAM"
"""And every process of a program with the program's name: also those that it started itself."""
CONTAINER_VARIABLE = "LEPTON_CONTAINER_OF"
"""As NODE_VARIABLE, in a container: its processes are the Docker Engine's to end, and not a supervisor's."""

_END_SECONDS = 10


def has_mark(process: psutil.Process, directory: str, program: str | None = None) -> bool:
    """Whether the process is one of the node in `directory`, and of the program if one is named."""
    try:
        environment = process.environ()
    except psutil.Error:
        return False
    return environment.get(NODE_VARIABLE) == directory and program in {None, environment.get(PROGRAM_VARIABLE)}


def end_marked(directory: str, program: str | None = None) -> None:
    """Kills what `has_mark` finds, this process excepted, and waits until it is gone."""
    found = [process for process in psutil.process_iter() if has_mark(process, directory, program)]
    others = [process for process in found if process.pid != os.getpid()]
    for process in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(others, timeout=_END_SECONDS)
