"""Carries out one order of `lepton guard`: `python -m cli.guard_action ROOT ORDER`, and says in JSON what came of it.

No command for people: the guard starts it (`rollout/guarding/action.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli import output
from cli.journal import note
from cli.retirement import retirement
from infra.errors import UserError
from rollout.clock import SystemClock
from rollout.driving.ending import recorded_end
from rollout.guarding.action import ChangedError, DrivenError, carry_out
from rollout.guarding.rules import NoWayBackError
from rollout.project import BusyError, Project
from rollout.release import Releases


def main(root: str, text: str) -> None:
    project = Project(Path(root))
    order: dict[str, Any] = json.loads(text)
    try:
        answer = _platform(project, order) if order["do"] == "platform" else _act(project, order)
    except (UserError, OSError) as error:
        answer = {"result": _result(error), "problem": str(error)}
    json.dump(answer, sys.stdout)


def _platform(project: Project, order: Mapping[str, Any]) -> dict[str, Any]:
    return dict(Releases(project).platform(order["environment"]))


def _act(project: Project, order: Mapping[str, Any]) -> dict[str, Any]:
    endpoint = project.stack(order["endpoint"])
    with recorded_end(project, endpoint, f"rollback by guard: {order['why']}", output.say, SystemClock()):
        text = carry_out(project, order, output.say, retirement)
    note(project, [project.stack(order["endpoint"])])
    return {"result": "done", "text": text}


def _result(error: Exception) -> str:
    words = {BusyError: "busy", ChangedError: "busy", DrivenError: "driven", NoWayBackError: "no way"}
    return next((word for kind, word in words.items() if isinstance(error, kind)), "failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
