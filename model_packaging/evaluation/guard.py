"""Ends a model server with whoever started it: `python -m model_packaging.evaluation.guard < SPECIFICATION`.

The specification is one line of JSON on standard input, which then stays open for as long as the server is wanted. So
the server ends when its evaluation is done, and also when that is killed, and nothing of it is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from infra.single_node.machine.marks import NODE_VARIABLE, PROGRAM_VARIABLE, end_marked


def main() -> None:
    specification = json.loads(_first_line())
    environment, stop_seconds = specification["env"], specification["stop_seconds"]
    with open(specification["log"], "wb") as log:
        try:
            server = subprocess.Popen(
                specification["command"],
                env=environment,
                cwd=specification["directory"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{specification['command'][0]}: {error.strerror}\n".encode())
            sys.exit(127)
    threading.Thread(target=_end_when_let_go, args=(server, stop_seconds), daemon=True).start()
    status = server.wait()
    # Workers that outlived their server, or left its process group.
    end_marked(environment[NODE_VARIABLE], environment[PROGRAM_VARIABLE])
    sys.exit(status if status >= 0 else 128 - status)


def _first_line() -> bytes:
    line = b""
    # Unbuffered: the thread that waits for the end must not hold a lock that the exit needs.
    while not line.endswith(b"\n") and (part := os.read(sys.stdin.fileno(), 1 << 16)):
        line += part
    return line


def _end_when_let_go(server: subprocess.Popen[bytes], stop_seconds: float) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(stop_seconds)
    except subprocess.TimeoutExpired:
        server.kill()


def start(specification: dict[str, object], scratch: Path) -> subprocess.Popen[bytes]:
    """Starts a guard, which starts the server; closing its `stdin` ends both.

    Args:
        specification: `command`, `env` (marked, see infra.single_node.machine.marks), `directory`, `log`,
            `stop_seconds` between SIGTERM and SIGKILL.
        scratch: marks the guard itself too, for `end_marked`.
    """
    guard = subprocess.Popen(
        [sys.executable, "-m", "model_packaging.evaluation.guard"],
        env=os.environ | {NODE_VARIABLE: str(scratch), PROGRAM_VARIABLE: "guard"},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    with suppress(BrokenPipeError):
        guard.stdin.write(json.dumps(specification).encode() + b"\n")
        guard.stdin.flush()
    return guard


if __name__ == "__main__":
    main()
