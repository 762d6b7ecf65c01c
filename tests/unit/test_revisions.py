"""Revisions, read from a stack's history."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pulumi.automation import ConfigValue, UpdateSummary

from rollout.revisions import (
    NoSuchRevisionError,
    Revision,
    differences,
    in_force_until,
    is_up,
    revision_at,
    revision_before,
    revision_led_by,
    revision_numbered,
    revisions,
)

KEY = "lepton:endpoint"
START = datetime(2026, 1, 1, tzinfo=UTC)


def update(
    minute: int, weight: int, *, kind: str = "update", result: str = "succeeded", changed: int = 1
) -> UpdateSummary:
    document: dict[str, Any] = {"model": "tumour", "variants": [{"version": "1.0.0", "weight": weight}]}
    summary = UpdateSummary(
        kind=kind,
        start_time=START + timedelta(minutes=minute),
        end_time=START + timedelta(minutes=minute, seconds=3),
        message=f"set {weight}",
        environment={"git.head": "abc"},
        config={},
        result=result,
        resource_changes={"update": changed, "same": 2} if changed else {"same": 3},  # pyright: ignore[reportArgumentType]
    )
    summary.config[KEY] = ConfigValue(json.dumps(document))
    return summary


def step(minute: int, new: int, *, id: str = "r1", phase: str = "baking", target: int = 100) -> UpdateSummary:
    """An update by a rollout from 1.0.0 to 2.0.0, which is to have `target` of 100."""
    summary = update(minute, 100 - new)
    variants = [{"version": "1.0.0", "weight": 100 - new}, {"version": "2.0.0", "weight": new}]
    summary.config[KEY] = ConfigValue(json.dumps({"model": "tumour", "variants": variants}))
    steps = [{"weights": {"1.0.0": 100 - target, "2.0.0": target}}]
    state = {"id": id, "strategy": "canary", "by": "ana", "phase": phase, "steps": steps}
    summary.config["lepton:rollout"] = ConfigValue(json.dumps(state))
    return summary


def weights(found: list[Revision]) -> list[int]:
    return [revision.weights["1.0.0"] for revision in found]


def test_revisions_are_numbered_in_the_order_of_time() -> None:
    found = revisions([update(2, 30), update(1, 20), update(0, 10)], KEY)
    assert [(revision.number, revision.weights["1.0.0"]) for revision in found] == [(1, 10), (2, 20), (3, 30)]


def test_an_update_that_changed_nothing_is_no_revision() -> None:
    assert weights(revisions([update(0, 10), update(1, 10, changed=0)], KEY)) == [10]


def test_an_update_that_only_mended_drift_is_one() -> None:
    assert weights(revisions([update(0, 10), update(1, 10)], KEY)) == [10, 10]


def test_a_config_with_secrets_makes_a_revision_of_which_nothing_is_told() -> None:
    hidden = update(1, 20)
    hidden.config[KEY] = ConfigValue("[secret]", secret=True)
    found = revisions([update(0, 10), hidden], KEY)
    assert [(revision.number, revision.document == {}) for revision in found] == [(1, False), (2, True)]


def test_failed_updates_refreshes_and_destroys_are_none() -> None:
    history = [
        update(0, 10),
        update(1, 20, result="failed"),
        update(2, 30, kind="refresh"),
        update(3, 40, kind="destroy"),
    ]
    assert weights(revisions(history, KEY)) == [10]


def test_going_back_skips_revisions_with_the_same_config() -> None:
    found = revisions([update(0, 10), update(1, 20), update(2, 20)], KEY)
    assert revision_before(found).weights == {"1.0.0": 10}


def test_going_back_twice_comes_to_where_it_started() -> None:
    history = [update(0, 10), update(1, 20)]
    first = revision_before(revisions(history, KEY))
    second = revision_before(revisions([*history, update(2, first.weights["1.0.0"])], KEY))
    assert second.weights == {"1.0.0": 20}


def test_there_is_nothing_before_the_first() -> None:
    with pytest.raises(NoSuchRevisionError, match="no earlier revision"):
        revision_before(revisions([update(0, 10)], KEY))


def test_an_unknown_number_is_told_which_there_are() -> None:
    with pytest.raises(NoSuchRevisionError, match="1 to 2"):
        revision_numbered(revisions([update(0, 10), update(1, 20)], KEY), 7)


def test_a_revision_says_how_long_it_took_and_from_which_commit() -> None:
    (revision,) = revisions([update(0, 10)], KEY)
    assert (revision.seconds, revision.git_commit, revision.message) == (3.0, "abc", "set 10")


def test_a_rollout_is_one_change_however_many_steps_it_had() -> None:
    found = revisions([update(0, 7), update(1, 100), step(2, 10), step(3, 50), step(4, 100)], KEY)
    assert revision_before(found).number == 2


def test_a_rollout_that_has_made_no_update_yet_is_left_for_what_is_in_force() -> None:
    found = revisions([update(0, 7), update(1, 100)], KEY)
    assert revision_before(found, "r1").number == 2


def test_a_rollback_of_a_rollback_comes_to_what_the_rollout_had_come_to() -> None:
    found = revisions([update(0, 100), step(1, 10), step(2, 100), update(3, 100)], KEY)
    assert revision_before(found).weights == {"1.0.0": 0, "2.0.0": 100}


def test_steps_on_the_way_are_nothing_to_go_back_to() -> None:
    found = revisions([update(0, 7), step(1, 10), step(2, 50), update(3, 100)], KEY)
    assert revision_before(found).number == 1


def test_a_rollout_that_was_taken_back_is_no_other_traffic() -> None:
    taken_back = step(3, 0, id="r2", phase="taken back")
    found = revisions([update(0, 7), update(1, 100), step(2, 10, id="r2"), taken_back], KEY)
    assert revision_before(found).number == 1


def test_an_update_that_only_told_more_of_a_rollout_is_no_revision_and_is_told() -> None:
    again = step(3, 100, phase="succeeded")
    again.resource_changes = {"same": 3}  # pyright: ignore[reportAttributeAccessIssue]
    (*_, last) = found = revisions([update(0, 100), step(2, 100), again], KEY)
    assert len(found) == 2
    assert last.summary()["rollout"] == {
        "id": "r1",
        "strategy": "canary",
        "by": "ana",
        "phase": "succeeded",
        "step": 0,
        "steps": 1,
    }


def test_a_version_is_led_back_to_by_its_latest_stay_at_the_top() -> None:
    found = revisions([update(0, 7), update(1, 100), step(2, 10), step(3, 50), step(4, 100)], KEY)
    assert revision_led_by(found, "1.0.0").number == 2
    assert revision_led_by(found, "2.0.0").number == 5


def test_a_version_that_never_had_the_greatest_weight_is_an_error_that_names_those_that_are_known() -> None:
    with pytest.raises(NoSuchRevisionError, match=r"3\.0\.0 the greatest weight; the history has 1\.0\.0"):
        revision_led_by(revisions([update(0, 7)], KEY), "3.0.0")


def test_a_revision_is_in_force_until_the_next() -> None:
    found = revisions([update(0, 10), update(5, 20)], KEY)
    assert in_force_until(found, found[0]) == found[1].started
    assert in_force_until(found, found[1]) is None
    assert revision_at(found, START + timedelta(minutes=3)) == found[0]
    assert revision_at(found, START) is None


def test_a_stack_is_not_up_after_a_destroy_or_a_failed_update() -> None:
    assert is_up([update(0, 10), update(1, 10, kind="refresh")])
    assert not is_up([update(0, 10), update(1, 20, result="failed")])
    assert not is_up([update(0, 10), update(1, 10, kind="destroy")])
    assert not is_up([])


def test_who_ran_an_update_is_told_apart_from_its_message() -> None:
    one, other = update(0, 10), update(1, 20)
    one.message = "traffic set 1.0.0=10\n\nBy: ana@example.org"
    other.environment = {"git.author.email": "ben@example.org"}
    told = [(revision.message, revision.by) for revision in revisions([one, other], KEY)]
    assert told == [("traffic set 1.0.0=10", "ana@example.org"), ("set 20", "ben@example.org")]


def test_two_revisions_differ_in_what_was_changed_by_its_keys() -> None:
    one, other = update(0, 10), update(1, 20)
    document = json.loads(other.config[KEY].value) | {"timeouts": {"total": "9s"}, "failover": False}
    other.config[KEY] = ConfigValue(json.dumps(document))
    old, new = revisions([one, other], KEY)
    assert differences(old, new) == {"failover": (None, False), "timeouts.total": (None, "9s")}
