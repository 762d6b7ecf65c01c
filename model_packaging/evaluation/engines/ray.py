"""Engine `ray`: a Ray task a version, on a cluster. Extra `ray`."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.single_node.machine.marks import end_marked
from model_packaging.errors import EngineMissing
from model_packaging.evaluation.plan import Plan
from model_packaging.evaluation.results import Failure
from model_packaging.evaluation.version import Notify, Outcome, Progress, run_version

_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RayEngine:
    """Tasks of a Ray cluster, each with what the version's package says that a replica needs of CPUs and GPUs.

    Every node needs this package, the servers' commands, and, by the same paths, the data set and the versions'
    folders: a shared file system. Progress comes as versions start and end.
    """

    address: str | None = None
    """`HOST:PORT`, `ray://HOST:PORT`, or `auto`: this machine's. None: what this process is connected to, or `auto`."""

    def run(self, plans: Sequence[Plan], notify: Notify) -> list[Outcome | Failure]:
        try:
            import ray  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise EngineMissing(
                "engine 'ray' needs the extra of that name: pip install 'lepton[ray]'; or choose engine 'local'"
            ) from error
        if ray.is_initialized():
            return _run(ray, plans, notify)
        address = self.address or "auto"
        try:
            _check_listens(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineMissing(
                f"no Ray cluster answers at {address!r}: {error}; start one with 'ray start --head', "
                "or name its address, HOST:PORT"
            ) from error
        try:
            return _run(ray, plans, notify)
        finally:
            ray.shutdown()


def _check_listens(address: str) -> None:
    """Raises OSError or ValueError at once where Ray would try for minutes, and then end this process."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
        pass


def _run(ray: Any, plans: Sequence[Plan], notify: Notify) -> list[Outcome | Failure]:
    evaluate = ray.remote(max_retries=0)(_evaluate)
    tasks = {evaluate.options(**_needs(plan)).remote(plan): number for number, plan in enumerate(plans)}
    for plan in plans:
        notify(Progress(plan.request.model, plan.request.version, "waiting", total=plan.dataset.rows))
    outcomes: dict[int, Outcome | Failure] = {}
    try:
        while len(outcomes) < len(plans):
            for task in ray.wait([task for task, number in tasks.items() if number not in outcomes])[0]:
                number = tasks[task]
                outcomes[number] = _outcome(ray, task, plans[number])
                request, rows = plans[number].request, plans[number].dataset.rows
                failed = isinstance(outcomes[number], Failure)
                notify(Progress(request.model, request.version, "failed" if failed else "done", rows, rows))
    finally:
        for task, number in tasks.items():
            if number not in outcomes:
                with suppress(ray.exceptions.RayError):
                    ray.cancel(task, force=True)
    return [outcomes[number] for number in range(len(plans))]


def _outcome(ray: Any, task: Any, plan: Plan) -> Outcome | Failure:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return Failure(model=plan.request.model, version=plan.request.version, reason=f"its Ray task was lost: {error}")


def _needs(plan: Plan) -> dict[str, float]:
    resources = plan.request.package.resources
    gpu = resources.gpu.count if resources is not None and resources.gpu is not None else 0
    return {"num_cpus": (resources.cpu if resources is not None else None) or 1, "num_gpus": gpu}


def _evaluate(plan: Plan) -> Outcome | Failure:
    with tempfile.TemporaryDirectory(prefix="lepton-evaluation-") as scratch:
        try:
            return run_version(plan, Path(scratch), None, lambda _: None)
        finally:
            end_marked(scratch)
