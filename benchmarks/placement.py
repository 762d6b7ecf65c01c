"""How long placement takes for 10,000 versions on 2,000 GPUs, and how near its result is to the lower bound.

Two mixes, each with another seed in every round. `usual`: sizes are powers of two for the most part, processors and
memory are plenty, some MIG nodes are cut beforehand. `uneven`: requests of 1 to 7 GPUs, half of the machines' memory
and processors gone, and slices of all profiles on GPUs that are cut on demand. In both most versions share GPUs. What
counts is how many GPUs the nodes in use have, and everything must have room.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.results import Cell, Goal, Result, Spread, Table
from infra.placement import (
    PRIORITIES,
    SHARED_GPU,
    WHOLE_GPU,
    Demand,
    Node,
    Placement,
    Pool,
    exact,
    mig_resource,
    place,
)

VERSIONS = 10_000
GPUS = 2_000
GOAL_SECONDS = 10.0
GOAL_PERCENT = 2.0

_GIB = 2**30
_A100, _H100, _H200, _L4 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200", "NVIDIA-L4"

Mix = Callable[[random.Random], tuple[tuple[Pool, ...], list[Demand]]]


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """The sizes are fixed: `seconds` says nothing here."""
    del directory, seconds
    solver = "yes" if exact.is_available() else "no"
    result = Result("placement", {"versions": VERSIONS, "gpus": GPUS, "rounds": rounds, "OR-tools": solver})
    mixes: dict[str, Mix] = {"usual": usual, "uneven": uneven}
    task = progress.add_task("placement", total=rounds * len(mixes))
    rows: list[list[Cell]] = []
    for name, mix in mixes.items():
        measured = [_measure(mix, seed, lambda: progress.advance(task)) for seed in range(rounds)]
        result.rounds[name] = [{"place": figures} for figures in measured]
        of = {figure: Spread.of([figures[figure] for figures in measured]) for figure in measured[0]}
        rows.append([name, *of.values()])
        result.goals.append(Goal(f"{name}, the slowest: s", of["seconds"].maximum, GOAL_SECONDS, at_least=False))
        result.goals.append(
            Goal(f"{name}, the farthest above the bound: %", of["percent"].maximum, GOAL_PERCENT, at_least=False)
        )
        result.goals.append(Goal(f"{name}, replicas without room", of["unplaced"].maximum, 0, at_least=False))
    columns = ["mix", "s", "processor s", "GPUs in use", "lower bound", "above it, %", "without room"]
    result.tables.append(Table(f"{VERSIONS:,} versions on {GPUS:,} GPUs", columns, rows))
    return result


def _measure(mix: Mix, seed: int, done: Callable[[], None]) -> dict[str, float]:
    pools, demands = mix(random.Random(seed))
    assert sum(node.devices or 0 for pool in pools for node in pool.nodes) == GPUS
    assert len(demands) == VERSIONS
    started, processor = time.perf_counter(), time.process_time()
    placed: Placement = place(pools, demands)
    taken = time.perf_counter() - started
    done()
    return {
        "seconds": taken,
        "processor_seconds": time.process_time() - processor,
        "gpus_used": placed.gpus_used,
        "lower_bound": placed.lower_bound,
        "percent": 100 * (placed.gpus_used / placed.lower_bound - 1),
        "unplaced": sum(each.replicas for each in placed.unplaced),
    }


class _Demands:
    """Versions of one replica each, with a random need of processors and memory, and a random priority."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.found = chance, list[Demand]()

    def add(self, count: int, cores: tuple[float, float], gib: tuple[float, float], gpu: int, **more: Any) -> None:
        for _ in range(count):
            self.found.append(
                Demand(
                    f"version-{len(self.found)}",
                    1,
                    cpu=round(self.chance.uniform(*cores), 1),
                    memory=round(self.chance.uniform(*gib) * _GIB),
                    gpu=gpu,
                    priority=self.chance.choices(PRIORITIES, [2, 6, 2])[0],
                    **more,
                )
            )


def usual(chance: random.Random) -> tuple[tuple[Pool, ...], list[Demand]]:
    """250 machines of 8 GPUs: whole ones, such that are cut on demand or beforehand, and shared ones."""
    cut = {mig_resource("1g.10gb"): 16, mig_resource("2g.20gb"): 8, mig_resource("3g.40gb"): 8}
    pools = (
        Pool.of("h200", _H200, 30, Node("", 192, 2000 * _GIB, {WHOLE_GPU: 8}, devices=8)),
        Pool.of("h100", _H100, 70, Node("", 192, 2000 * _GIB, {WHOLE_GPU: 8}, devices=8)),
        Pool.of("h100-mig", _H100, 60, Node("", 192, 2000 * _GIB, cut=8, devices=8)),
        Pool.of("a100-mig", _A100, 40, Node("", 96, 1100 * _GIB, cut, devices=8)),
        Pool.of("l4-shared", _L4, 50, Node("", 192, 768 * _GIB, {SHARED_GPU: 160}, devices=8)),
    )
    demands = _Demands(chance)
    demands.add(4, (64, 160), (800, 1600), 8, product=_H200, nodes_per_replica=2)
    demands.add(8, (64, 160), (800, 1600), 8, product=_H200)
    for gpus, count, product in ((4, 20, _H200), (4, 30, _H100), (3, 20, _H100), (5, 8, _H100), (2, 60, None)):
        demands.add(count, (4 * gpus, 20 * gpus), (40 * gpus, 200 * gpus), gpus, product=product)
    demands.add(210, (4, 20), (40, 200), 1)
    demands.add(1_500, (0.5, 3), (4, 24), 1, mig="1g.10gb", product=_H100)
    demands.add(500, (1, 6), (8, 48), 1, mig="2g.20gb", product=_H100)
    demands.add(160, (2, 10), (16, 90), 1, mig="3g.40gb", product=_H100)
    demands.add(40, (2, 10), (16, 90), 1, mig="4g.40gb", product=_H100)
    demands.add(500, (0.5, 2), (4, 16), 1, mig="1g.10gb", product=_A100)
    demands.add(280, (1, 3), (8, 32), 1, mig="2g.20gb", product=_A100)
    demands.add(280, (1, 4), (16, 60), 1, mig="3g.40gb", product=_A100)
    demands.add(VERSIONS - len(demands.found), (0.2, 1.6), (1, 6), 1, shared=True)
    return pools, demands.found


def uneven(chance: random.Random) -> tuple[tuple[Pool, ...], list[Demand]]:
    """250 machines of 8 GPUs: whole ones, such that are cut on demand, and shared ones."""
    pools = (
        Pool.of("whole", _H100, 105, Node("", 128, 1000 * _GIB, {WHOLE_GPU: 8}, devices=8)),
        Pool.of("cut", _H100, 90, Node("", 96, 700 * _GIB, cut=8, devices=8)),
        Pool.of("shared", _L4, 55, Node("", 96, 400 * _GIB, {SHARED_GPU: 160}, devices=8)),
    )
    demands = _Demands(chance)
    left = 730
    while left > 0:
        gpus = chance.choice([1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7])
        demands.add(1, (4 * gpus, 18 * gpus), (30 * gpus, 120 * gpus), gpus)
        left -= gpus
    profiles = ["1g.10gb", "1g.10gb", "1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb"]
    for _ in range(2_280):
        demands.add(1, (0.5, 3), (4, 20), 1, mig=chance.choice(profiles))
    demands.add(VERSIONS - len(demands.found), (0.1, 1.1), (0.5, 4), 1, shared=True)
    return pools, demands.found
