"""What questions to the catalogue cost at 100, 5,000 and 50,000 versions, in SQLite, and what it costs to fill it.

Every catalogue holds the same mix: 20 versions a model, five stages, eight teams in the labels, two metrics. A question
asks for the first page that it finds, as a listing does; rounds go over the sizes in turn.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import Progress
from sqlalchemy import update

from benchmarks.results import Cell, Figures, Goal, Result, Spread, Table
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.database import Database
from model_packaging.catalogue.query import LabelCondition, MetricCondition, Query, Sort
from model_packaging.catalogue.registration import Registration, register
from model_packaging.catalogue.tables import Version
from model_packaging.lifecycle import Stage
from model_packaging.manifest import Description

SIZES = (100, 5_000, 50_000)
VERSIONS_A_MODEL = 20
TEAMS = ("vision", "speech", "search", "fraud", "pricing", "maps", "ads", "support")
AT_ONCE = 500
PAGE = 50
GOAL_MILLISECONDS = 200.0

Question = Callable[[Catalogue], object]


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """The number of questions is fixed: `seconds` says nothing here."""
    del seconds
    result = Result("catalogue", {"sizes": " ".join(map(str, SIZES)), "page": PAGE, "rounds": rounds})
    task = progress.add_task("catalogue", total=len(SIZES) + rounds)
    figures: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    filling: list[list[Cell]] = []
    with ExitStack() as stack:
        catalogues: dict[int, Catalogue] = {}
        for size in SIZES:
            url = f"sqlite:///{directory}/{size}.sqlite"
            catalogues[size] = stack.enter_context(Catalogue(url))
            taken = _fill(url, size)
            filling.append([f"{size:,} versions", taken, size / taken])
            progress.advance(task)
        for _ in range(rounds):
            measured: Figures = {}
            for name, question in _questions().items():
                for size, catalogue in catalogues.items():
                    started = time.perf_counter()
                    question(catalogue)
                    milliseconds = (time.perf_counter() - started) * 1000
                    figures[name][size].append(milliseconds)
                    measured.setdefault(name, {})[f"milliseconds_at_{size}"] = milliseconds
            result.rounds.setdefault("questions", []).append(measured)
            progress.advance(task)
    columns = ["", *(f"{size:,} versions, ms" for size in SIZES), f"{SIZES[-1]:,} to {SIZES[0]:,}"]
    rows: list[list[Cell]] = []
    for name, by_size in figures.items():
        spreads = [Spread.of(by_size[size]) for size in SIZES]
        rows.append([name, *spreads, spreads[-1].median / spreads[0].median])
        result.goals.append(
            Goal(f"{name}, {SIZES[-1]:,} versions: ms", spreads[-1].median, GOAL_MILLISECONDS, at_least=False)
        )
    result.tables.append(Table("Questions to the catalogue", columns, rows))
    result.tables.append(
        Table(f"Filling it, {AT_ONCE} versions a transaction", ["", "s", "versions a second"], filling)
    )
    return result


def _questions() -> dict[str, Question]:
    def page(**query: object) -> Question:
        asked = Query(limit=PAGE, **query)  # pyright: ignore[reportArgumentType]
        return lambda catalogue: catalogue.find(asked)

    model = "model-0001"
    vision = LabelCondition("team", "vision")
    accurate, all_but_none = MetricCondition.parse("accuracy>=0.99"), MetricCondition.parse("accuracy>=0.01")
    return {
        "opened anew, first page": _open_and_list,
        "first page": page(),
        "by model": page(model=model),
        "by stage": page(stages=(Stage.RELEASED,)),
        "by two stages": page(stages=(Stage.RELEASED, Stage.TESTING)),
        "by a metric that few reach": page(metrics=(accurate,)),
        "by a metric that most reach": page(metrics=(all_but_none,)),
        "by label": page(labels=(vision,)),
        "by commit": page(commit=_commit(7)[:8]),
        "by model, stage, metric and label": page(
            model=model, stages=(Stage.RELEASED,), metrics=(all_but_none,), labels=(vision,)
        ),
        "by stage, metric and label": page(stages=(Stage.RELEASED,), metrics=(all_but_none,), labels=(vision,)),
        "by a word that some have": page(text="fraud"),
        "by a word that none has": page(text="nowhere"),
        "best by metric": page(sort=Sort.parse("-accuracy")),
        "latest registered": page(sort=Sort.parse("-registered")),
        "last page": lambda catalogue: catalogue.find(Query(limit=PAGE, offset=catalogue.count() - PAGE)),
        "count by label": lambda catalogue: catalogue.count(Query(labels=(vision,))),
        "show one": lambda catalogue: catalogue.show(model, "1.0.7"),
    }


def _open_and_list(catalogue: Catalogue) -> None:
    with Catalogue(catalogue.location) as opened:
        opened.find(Query(limit=PAGE))


def _fill(url: str, size: int) -> float:
    """Registers that many versions, and gives each a stage; returns the seconds that registering took."""
    with Database(url) as database:
        started = time.perf_counter()
        part: list[Registration] = []
        for registration in _registrations(size):
            part.append(registration)
            if len(part) == AT_ONCE:
                database.write(lambda connection, part=part: register(connection, part))
                part = []
        if part:
            database.write(lambda connection: register(connection, part))
        taken = time.perf_counter() - started
        for number, stage in enumerate(Stage):
            staged = update(Version).where(Version.id % len(Stage) == number).values(stage=stage)
            database.write(lambda connection, staged=staged: connection.execute(staged))
    return taken


def _registrations(size: int) -> Iterator[Registration]:
    chance = random.Random(size)
    now = datetime.now(UTC)
    for number in range(size):
        model, patch = divmod(number, VERSIONS_A_MODEL)
        description = Description.model_validate(
            {
                "model": f"model-{model:04}",
                "version": f"1.0.{patch}",
                "git": {"commit": _commit(number), "branch": "main", "dirty": False},
                "package": {
                    "framework": {"name": "scikit-learn", "version": "1.9.1"},
                    "training_data": f"s3://bucket/training/{number}",
                    "licence": "Apache-2.0",
                    "author": "A team",
                    "labels": {"team": TEAMS[number % len(TEAMS)], "tier": str(number % 3)},
                    "evaluation": {"accuracy": chance.random(), "loss": chance.random()},
                    "samples": [{"prompt": "hello"}],
                },
            }
        )
        digest = f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}"
        yield Registration.of(description, digest, chance.randrange(10**12), "/srv/store", who="builder", now=now)


def _commit(number: int) -> str:
    return hashlib.sha1(str(number).encode(), usedforsecurity=False).hexdigest()
