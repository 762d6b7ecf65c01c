"""Becomes a supervised program: `python -m infra.single_node.machine.launch SPEC.json`.

Supervisor starts this, and this replaces itself by the program, with exactly the environment and limits of its
specification. So nothing needs quoting for Supervisor, and nothing leaks in from whoever started it, but into a program
that says that it inherits that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from infra.single_node.machine.limits import Limits, enforce
from infra.single_node.machine.marks import NODE_VARIABLE, PROGRAM_VARIABLE, end_marked


def main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text())
    env: dict[str, str] = specification["env"]
    if PROGRAM_VARIABLE in env:
        # A server that was killed may have left workers behind, which hold its ports, its memory and its GPUs.
        end_marked(env[NODE_VARIABLE], env[PROGRAM_VARIABLE])
    limits = Limits(**specification["limits"])
    enforced = enforce(specification["control_group"], limits)
    if limits != Limits() and enforced.startswith("none"):
        print(f"launch: CPU and memory limits are not enforced here: {enforced}", flush=True)
    # A router holds a connection for each client: take all the file descriptors that are allowed.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.chdir(specification["directory"])
    command = specification["command"]
    if specification.get("inherits"):
        env = {**os.environ, **env}
    try:
        os.execvpe(command[0], command, env)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.exit(f"launch: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
