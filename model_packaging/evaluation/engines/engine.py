"""What every engine does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model_packaging.evaluation.plan import Plan
from model_packaging.evaluation.results import Failure
from model_packaging.evaluation.version import Notify, Outcome


class Engine(Protocol):
    """Runs `run_version` for many versions, somewhere."""

    def run(self, plans: Sequence[Plan], notify: Notify) -> list[Outcome | Failure]:
        """One outcome a plan, in their order. One that is lost, its process killed say, is a failure of its own.

        Raises:
            EngineMissing: what it needs is not there.
        """
        ...
