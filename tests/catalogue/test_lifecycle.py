"""Which stage leads to which, and on what conditions."""

from __future__ import annotations

import itertools

import pytest

from model_packaging.errors import TransitionRefused
from model_packaging.lifecycle import Evidence, Share, Stage, check_transition

ALLOWED = {
    ("development", "testing"),
    ("testing", "development"),
    ("testing", "released"),
    ("released", "deprecated"),
    ("deprecated", "released"),
    ("deprecated", "retired"),
}
RELEASABLE = Evidence(metrics=["accuracy"])


def unmet(
    stage: Stage, target: Stage, evidence: Evidence = RELEASABLE, who: str = "ada", approvals: int = 0
) -> tuple[str, ...]:
    try:
        check_transition("tumour 1.0.0", stage, target, evidence, who=who, approvals=approvals)
    except TransitionRefused as refused:
        return refused.unmet
    return ()


@pytest.mark.parametrize(("stage", "target"), itertools.product(Stage, Stage))
def test_only_the_steps_of_the_lifecycle_are_allowed(stage: Stage, target: Stage) -> None:
    assert (not unmet(stage, target)) == ((stage, target) in ALLOWED)


def test_a_skipped_stage_is_named_with_what_comes_next() -> None:
    with pytest.raises(TransitionRefused) as refused:
        check_transition("tumour 1.0.0", Stage.DEVELOPMENT, Stage.RELEASED, RELEASABLE, who="ada")
    assert str(refused.value) == (
        "tumour 1.0.0 can't go from development to released:\n- development leads to testing; take one step at a time"
    )


def test_a_stage_that_is_there_already_and_one_that_is_final_are_said_to_be() -> None:
    assert unmet(Stage.TESTING, Stage.TESTING) == ("it is testing already",)
    assert unmet(Stage.RETIRED, Stage.RELEASED) == ("retired is final; build a new version",)


@pytest.mark.parametrize("stage", [Stage.TESTING, Stage.DEPRECATED])
def test_a_release_lists_all_that_it_lacks_at_once(stage: Stage) -> None:
    without_results, without_approval = unmet(stage, Stage.RELEASED, Evidence(), approvals=1)
    assert "no evaluation results" in without_results
    assert "approval by another person" in without_approval


@pytest.mark.parametrize(
    ("approvers", "approvals", "released"),
    [
        ([], 0, True),
        ([], 1, False),
        (["bob"], 1, True),
        # Of who releases it, and of its makers, however they are written.
        ([" ADA "], 1, False),
        (["Zoë  Builder"], 1, False),
        (["ada", "zoë builder", "bob"], 1, True),
        (["bob", "Bob"], 2, False),
        (["bob", "cleo"], 2, True),
    ],
)
def test_a_release_needs_as_many_approvals_of_others_as_asked(
    approvers: list[str], approvals: int, released: bool
) -> None:
    evidence = Evidence(metrics=["accuracy"], makers=["zoë builder"], approvers=approvers)
    assert (not unmet(Stage.TESTING, Stage.RELEASED, evidence, approvals=approvals)) == released


def test_a_version_is_retired_only_when_no_endpoint_gives_it_weight() -> None:
    shares = [Share("prod", "tumour", 5), Share("dev", "tumour", 1), Share("staging", "tumour", 0)]
    assert [text.split(";")[0] for text in unmet(Stage.DEPRECATED, Stage.RETIRED, Evidence(shares=shares))] == [
        "dev: endpoint tumour gives it weight 1",
        "prod: endpoint tumour gives it weight 5",
    ]
    assert unmet(Stage.DEPRECATED, Stage.RETIRED, Evidence(shares=shares[2:])) == ()


def test_weight_keeps_no_version_from_being_deprecated() -> None:
    assert unmet(Stage.RELEASED, Stage.DEPRECATED, Evidence(shares=[Share("prod", "tumour", 5)])) == ()
