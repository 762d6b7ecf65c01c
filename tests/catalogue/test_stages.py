"""A version's stage, its history and its approvals always agree, whoever moves it, and whatever interrupts them."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection

import pytest

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.records import VersionRecord
from model_packaging.errors import ApprovalRefused, NotInCatalogue, RecordRefused, TransitionRefused
from model_packaging.lifecycle import Share, Stage
from tests.catalogue.conftest import NewDatabase
from tests.catalogue.versions import register
from tests.processes import FORK, at_once

KILLS = 12
LONGEST_SECONDS = 0.02
"""That a promoter runs, from its first promotion on: many promotions, on any of the databases."""


def stages(record: VersionRecord) -> list[Stage]:
    return [step.to_stage for step in record.history]


def assert_agreement(record: VersionRecord) -> None:
    assert record.summary.stage == record.history[-1].to_stage
    for before, after in itertools.pairwise(record.history):
        assert after.from_stage == before.to_stage


def test_a_version_goes_through_its_whole_life_and_its_history_says_who_when_and_why(
    new_database: NewDatabase, model: str
) -> None:
    moments = (datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 30))
    with Catalogue(new_database(), clock=lambda: next(moments)) as catalogue:
        register(catalogue, model, evaluation={"accuracy": 0.9})
        catalogue.promote(model, "1.0.0", who="ada", why="to be tried")
        catalogue.promote(model, "1.0.0", who="bob", why="good enough")
        catalogue.transition(model, "1.0.0", Stage.DEPRECATED, who="cleo", why="2.0.0 is out")
        catalogue.transition(model, "1.0.0", Stage.RETIRED, who="dan")
        record = catalogue.show(model, "1.0.0")
    assert [(step.to_stage, step.who, step.at.day, step.why) for step in record.history] == [
        (Stage.DEVELOPMENT, "builder", 1, "registered"),
        (Stage.TESTING, "ada", 2, "to be tried"),
        (Stage.RELEASED, "bob", 3, "good enough"),
        (Stage.DEPRECATED, "cleo", 4, "2.0.0 is out"),
        (Stage.RETIRED, "dan", 5, ""),
    ]
    assert_agreement(record)


def test_a_refused_step_changes_nothing(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    catalogue.promote(model, "1.0.0", who="ada")
    before = catalogue.show(model, "1.0.0")
    with pytest.raises(TransitionRefused) as refused:
        catalogue.promote(model, "1.0.0", who="ada", approvals=1)
    assert len(refused.value.unmet) == 2
    assert catalogue.show(model, "1.0.0") == before


def test_recorded_results_and_an_approval_of_another_release_a_version(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    catalogue.promote(model, "1.0.0", who="ada")
    catalogue.record_evaluation(model, "1.0.0", {"accuracy": 0.9}, dataset="holdout", who="ada")
    catalogue.approve(model, "1.0.0", who="ada")
    with pytest.raises(TransitionRefused, match="approved by ada"):
        catalogue.promote(model, "1.0.0", who="Ada", approvals=1)
    assert catalogue.approve(model, "1.0.0", who="bob", why="looks right")
    assert not catalogue.approve(model, "1.0.0", who="Bob")
    assert catalogue.promote(model, "1.0.0", who="ada", approvals=1).to_stage == Stage.RELEASED
    assert [approval.who for approval in catalogue.show(model, "1.0.0").approvals] == ["ada", "bob"]


def test_an_approval_counts_no_more_once_the_version_was_back_in_development(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, evaluation={"accuracy": 0.9})
    catalogue.promote(model, "1.0.0", who="ada")
    catalogue.approve(model, "1.0.0", who="bob")
    catalogue.transition(model, "1.0.0", Stage.DEVELOPMENT, who="ada", why="wrong labels")
    catalogue.promote(model, "1.0.0", who="ada")
    with pytest.raises(TransitionRefused, match="approval by another person"):
        catalogue.promote(model, "1.0.0", who="ada", approvals=1)
    assert catalogue.approve(model, "1.0.0", who="bob", why="again")
    catalogue.promote(model, "1.0.0", who="ada", approvals=1)
    assert [approval.counts for approval in catalogue.show(model, "1.0.0").approvals] == [False, True]


@pytest.mark.parametrize(("who", "role"), [("BUILDER ", "who registered it"), ("zoë  ärlig", "its author")])
def test_nobody_approves_what_is_their_own(catalogue: Catalogue, model: str, who: str, role: str) -> None:
    register(catalogue, model, author="Zoë Ärlig")
    with pytest.raises(ApprovalRefused, match=role):
        catalogue.approve(model, "1.0.0", who=who)
    assert catalogue.show(model, "1.0.0").approvals == ()


def test_a_version_that_has_weight_somewhere_is_not_retired(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, evaluation={"accuracy": 0.9})
    for stage in (Stage.TESTING, Stage.RELEASED, Stage.DEPRECATED):
        catalogue.transition(model, "1.0.0", stage, who="ada")
    catalogue.record_weights(model, {"1.0.0": 3}, environment="prod", stack=f"prod.{model}", who="ops")
    with pytest.raises(TransitionRefused, match=rf"prod: endpoint prod\.{model} gives it weight 3"):
        catalogue.transition(model, "1.0.0", Stage.RETIRED, who="ada")
    # What is observed now says more than what was recorded then.
    catalogue.transition(model, "1.0.0", Stage.RETIRED, who="ada", shares=[Share("prod", model, 0)])
    with pytest.raises(ApprovalRefused, match="retired"):
        catalogue.approve(model, "1.0.0", who="bob")


def test_a_promotion_ends_at_release(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, evaluation={"accuracy": 0.9})
    catalogue.promote(model, "1.0.0", who="ada")
    catalogue.promote(model, "1.0.0", who="ada")
    with pytest.raises(TransitionRefused, match="a promotion ends at released"):
        catalogue.promote(model, "1.0.0", who="ada")


def test_a_step_needs_a_version_and_somebody_who_takes_it(catalogue: Catalogue, model: str) -> None:
    with pytest.raises(NotInCatalogue):
        catalogue.promote(model, "1.0.0", who="ada")
    register(catalogue, model)
    with pytest.raises(RecordRefused, match="who is empty"):
        catalogue.promote(model, "1.0.0", who=" ")


def test_of_processes_that_take_the_same_step_at_once_one_takes_it(new_database: NewDatabase) -> None:
    url = new_database()
    versions = [f"1.0.{number}" for number in range(8)]
    with Catalogue(url) as catalogue:
        for version in versions:
            register(catalogue, "raced", version)

    def promote(number: int, together: Callable[[], object]) -> int:
        taken = 0
        with Catalogue(url) as catalogue:
            for version in versions:
                together()
                try:
                    catalogue.transition("raced", version, Stage.TESTING, who=f"promoter {number}")
                    taken += 1
                except TransitionRefused:
                    pass
        return taken

    assert sum(at_once(3, promote)) == len(versions)
    with Catalogue(url) as catalogue:
        for version in versions:
            assert stages(catalogue.show("raced", version)) == [Stage.DEVELOPMENT, Stage.TESTING]


def test_a_promoter_killed_at_any_moment_leaves_stage_and_history_in_agreement(new_database: NewDatabase) -> None:
    url = new_database()
    with Catalogue(url) as catalogue:
        register(catalogue, "killed")
    steps = 0
    for _ in range(KILLS):
        receiving, sending = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_promote_for_ever, args=(url, sending))
        process.start()
        sending.close()
        assert receiving.poll(30)
        receiving.recv()
        # Not a wait for anything: the moment is what is drawn.
        process.join(random.uniform(0, LONGEST_SECONDS))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process.close()
        receiving.close()
        with Catalogue(url) as catalogue:
            record = catalogue.show("killed", "1.0.0")
        assert_agreement(record)
        # It was killed at work.
        assert len(record.history) > steps
        steps = len(record.history)


def _promote_for_ever(url: str, started: Connection) -> None:
    with Catalogue(url) as catalogue:
        for number in itertools.count():
            stage = catalogue.show("killed", "1.0.0").summary.stage
            target = Stage.DEVELOPMENT if stage == Stage.TESTING else Stage.TESTING
            catalogue.transition("killed", "1.0.0", target, who="promoter")
            if number == 0:
                started.send(True)
