"""Finds where stacks are not as their configs say: edits by hand, things that are gone, configs not deployed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.errors import UserError
from rollout.project import Project, StackConfig
from rollout.pulumi_stack import Difference, NoStackError, PulumiStack


@dataclass(frozen=True)
class Drift:
    """One stack, compared with what is really there."""

    stack: StackConfig
    differences: list[Difference]
    problem: str | None = None
    """Why it can't be compared, if so."""

    @property
    def any(self) -> bool:
        return bool(self.differences or self.problem)


def drift_of(project: Project, stacks: Sequence[StackConfig]) -> Iterator[Drift]:
    """Compares each with what is there, some side by side, and yields them in their order. Changes nothing."""

    def look(stack: StackConfig) -> Drift:
        try:
            return Drift(stack, PulumiStack(project, stack).differences())
        except NoStackError:
            return Drift(stack, [], f"not deployed; `lepton deploy {stack.address}` does")
        except UserError as error:
            return Drift(stack, [], str(error).removeprefix(f"{stack.address}: "))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(look, stacks)
