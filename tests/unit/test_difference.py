"""What a preview's events say of a resource, as the Automation API hands them on."""

from __future__ import annotations

from typing import Any

import pytest
from pulumi.automation.events import EngineEvent

from rollout.pulumi_stack import Difference, _difference

DEPLOYMENT = "kubernetes:apps/v1:Deployment"
INPUTS = {"spec": {"replicas": 2}}


def event(
    op: str, *, old: dict[str, Any] | None = None, custom: bool = True, unready: bool = False, **said: Any
) -> EngineEvent:
    urn = f"urn:pulumi:dev.tumour-1.0.0::diagnostics::{DEPLOYMENT}::server"
    state = {"type": DEPLOYMENT, "urn": urn, "custom": custom, "id": "ns/server", "parent": "", "provider": "p"}
    step = {
        "op": op,
        "urn": urn,
        "type": DEPLOYMENT,
        "provider": "p",
        "old": state
        | {"inputs": INPUTS, "outputs": {"status": {"readyReplicas": 1}} | (old or {})}
        | ({"initErrors": ["1 of 2 replicas are ready"]} if unready else {}),
        "new": state | {"inputs": INPUTS, "outputs": {}},
    }
    return EngineEvent.from_json({"sequence": 1, "timestamp": 0, "resourcePreEvent": {"metadata": step | said}})


def test_what_is_not_ready_and_else_as_it_should_be_is_no_difference() -> None:
    """After a refresh that found it so, Pulumi makes an update of it, in which nothing differs."""
    assert _difference(event("update", diffs=[], detailedDiff=None, unready=True)) == []
    assert _difference(event("update", unready=True)) == []


def test_an_update_whose_provider_names_no_properties_is_a_difference() -> None:
    assert _difference(event("update")) == [Difference("server", DEPLOYMENT, "update", ())]


@pytest.mark.parametrize(
    "said",
    [
        {"detailedDiff": {"spec.replicas": {"diffKind": "update", "inputDiff": False}}},
        {"diffs": ["spec.replicas"]},
        {"old": {"drift": ["spec.replicas"]}},
    ],
    ids=["in detail", "by key", "in the provider's words"],
)
@pytest.mark.parametrize("unready", [False, True])
def test_an_update_says_what_differs(said: dict[str, Any], *, unready: bool) -> None:
    (found,) = _difference(event("update", unready=unready, **said))
    assert found == Difference("server", DEPLOYMENT, "update", ("spec.replicas",))


@pytest.mark.parametrize("op", ["create", "delete", "replace"])
def test_what_is_made_or_goes_as_a_whole_names_no_properties(op: str) -> None:
    assert _difference(event(op)) == [Difference("server", DEPLOYMENT, op, ())]


@pytest.mark.parametrize("op", ["same", "read", "refresh", "create-replacement", "delete-replaced"])
def test_steps_that_change_nothing_by_themselves_are_left_out(op: str) -> None:
    assert _difference(event(op, diffs=["spec.replicas"])) == []


def test_components_differ_by_their_resources_alone() -> None:
    assert _difference(event("update", custom=False, diffs=["outputs"])) == []
