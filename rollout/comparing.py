"""Compares stacks with what they would be after an update, without changing anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from rollout.project import Project, StackConfig
from rollout.pulumi_stack import Difference, NoStackError, PulumiStack


@dataclass(frozen=True)
class Comparison:
    """What an update would change of one stack."""

    stack: StackConfig
    differences: list[Difference]
    is_new: bool = False
    """Whether it was never deployed: an update would make all of it."""
    problem: str | None = None
    """Why it can't be compared, if so: an update would fail with the same."""

    @property
    def differs(self) -> bool:
        return bool(self.differences or self.is_new or self.problem)

    def summary(self) -> dict[str, Any]:
        return {
            "stack": self.stack.address,
            "new": self.is_new,
            "problem": self.problem,
            "differences": [vars(difference) for difference in self.differences],
        }


def compare(project: Project, stacks: Sequence[StackConfig], *, live: bool) -> Iterator[Comparison]:
    """Compares each, some side by side, and yields them in their order.

    `live`: with what is really there, which is asked first; else with what the last update left.
    """

    def look(stack: StackConfig) -> Comparison:
        try:
            return Comparison(stack, PulumiStack(project, stack).differences(live=live))
        except NoStackError:
            return Comparison(stack, [], is_new=True)
        except UserError as error:
            return Comparison(stack, [], problem=str(error).removeprefix(f"{stack.address}: "))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(look, stacks)
