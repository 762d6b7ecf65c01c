"""The split's error: how far the counts are from the weights, against what chance alone allows.

Pearson's χ² of the counts must lie below the 99.9 % quantile of its distribution, which a true split exceeds once in a
thousand runs: https://www.itl.nist.gov/div898/handbook/eda/section3/eda35f.htm
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress
from scipy import stats

from benchmarks import load
from benchmarks.processes import Cores
from benchmarks.results import Cell, Goal, Result, Table
from benchmarks.targets import EnvoyTarget, backends, check_weights, endpoint_settings

VERSIONS = ["1.0.0", "1.1.0", "2.0.0"]
WEIGHTS = [(90, 10), (50, 30, 20), (99, 1)]
REQUESTS = 20_000
CLIENTS = 5_000
REQUESTS_A_CLIENT = 4
CLIENT_HEADER = "x-client"
CONFIDENCE = 0.999


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """One round says it all: the numbers of requests are the issue's, whatever `rounds` and `seconds` are."""
    del rounds, seconds
    cores = Cores.share_out()
    result = Result("split", {"requests": REQUESTS, "clients": CLIENTS, "requests_a_client": REQUESTS_A_CLIENT})
    rows: list[list[Cell]] = []
    figures: dict[str, dict[str, float]] = {}
    task = progress.add_task("split", total=2 * len(WEIGHTS))
    with backends(VERSIONS, cores, directory) as behind:
        everything = EnvoyTarget(behind, directory)
        with everything.started(endpoint_settings(dict.fromkeys(VERSIONS, 1)), cores) as target:
            for shares in WEIGHTS:
                weights = dict(zip(VERSIONS, shares, strict=False))
                name = "/".join(map(str, shares))
                everything.route(endpoint_settings(weights))
                answers = load.in_parallel(target.url, [None] * REQUESTS)
                counts = Counter(answer.version or "" for answer in answers)
                check_weights(target, weights, counts)
                figures[name] = _judge(f"{name}, {REQUESTS:,} requests", weights, counts, rows, result)
                progress.advance(task)

                everything.route(endpoint_settings(weights, sticky={"header": CLIENT_HEADER}))
                of_clients, unfaithful = _sticky(target.url)
                label = f"{name}, {CLIENTS:,} sticky clients"
                figures[f"{name} sticky"] = _judge(label, weights, of_clients, rows, result) | {
                    "unfaithful_clients": unfaithful
                }
                result.goals.append(Goal(f"{label}: clients served by two versions", unfaithful, 0, at_least=False))
                progress.advance(task)
    result.rounds["split"] = [figures]
    columns = ["", "counts", "expected", "χ²", "99.9 % bound", "p"]
    result.tables.append(Table("Split, counts against weights", columns, rows))
    return result


def _sticky(url: str) -> tuple[Counter[str], int]:
    """How many clients each version has, and how many clients have had more than one."""
    clients = [f"{random.getrandbits(64):016x}" for _ in range(CLIENTS)]
    order = clients * REQUESTS_A_CLIENT
    random.shuffle(order)
    answers = load.in_parallel(url, [{CLIENT_HEADER: client} for client in order])
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for client, answer in zip(order, answers, strict=True):
        versions[client].add(answer.version or "")
    unfaithful = sum(len(seen) > 1 for seen in versions.values())
    return Counter(min(seen) for seen in versions.values()), unfaithful


def _judge(
    label: str,
    weights: Mapping[str, int],
    counts: Mapping[str, int],
    rows: list[list[Cell]],
    result: Result,
) -> dict[str, float]:
    total, whole = sum(counts.values()), sum(weights.values())
    observed = [counts.get(version, 0) for version in weights]
    expected = [total * weight / whole for weight in weights.values()]
    statistic = sum((seen - due) ** 2 / due for seen, due in zip(observed, expected, strict=True))
    degrees = len(weights) - 1
    bound = float(stats.chi2.ppf(CONFIDENCE, degrees))
    p = float(stats.chi2.sf(statistic, degrees))
    rows.append([label, _listed(observed), _listed(expected), statistic, bound, p])
    result.goals.append(Goal(f"{label}: χ²", statistic, bound, at_least=False))
    figures: dict[str, float] = {f"count_of_{version}": count for version, count in counts.items()}
    return figures | {"chi_squared": statistic, "bound": bound, "p": p}


def _listed(values: list[int] | list[float]) -> str:
    return " / ".join(f"{value:,.0f}" for value in values)
