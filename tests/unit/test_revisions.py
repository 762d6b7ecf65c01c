"""Revisions, read from a stack's history."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pulumi.automation import ConfigValue, UpdateSummary

from rollout.revisions import NoSuchRevisionError, Revision, revision_before, revision_numbered, revisions

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
