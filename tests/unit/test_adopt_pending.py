"""What a killed update was making is put into the state, so that a refresh finds out."""

from __future__ import annotations

from typing import Any

from rollout.pulumi_stack import adopt_pending

URN = "urn:pulumi:dev.m-1::team::pulumi-python:dynamic/single-node:ModelServers::servers"


def deployment(operation: str, inputs: dict[str, Any], *, known: bool = False) -> dict[str, Any]:
    resource = {"urn": URN, "custom": True, "inputs": inputs}
    return {
        "resources": [resource | {"id": "m-1"}] if known else [],
        "pending_operations": [{"resource": resource, "type": operation}],
    }


def test_what_was_being_created_counts_as_created() -> None:
    found = adopt_pending(deployment("creating", {"identity": "m-1", "replicas": 1}))
    (resource,) = found["resources"]
    assert (resource["id"], resource["outputs"]) == ("m-1", {"identity": "m-1", "replicas": 1})
    assert found["pending_operations"] == []


def test_what_is_in_the_state_already_is_there_once() -> None:
    found = adopt_pending(deployment("creating", {"identity": "m-1"}, known=True))
    assert [resource["urn"] for resource in found["resources"]] == [URN]


def test_what_was_being_updated_or_deleted_stays_for_the_refresh() -> None:
    for operation in ("updating", "deleting"):
        found = adopt_pending(deployment(operation, {"identity": "m-1"}, known=True))
        assert len(found["resources"]) == 1
        assert found["pending_operations"] == []


def test_a_resource_whose_id_nobody_knows_stays_pending() -> None:
    given = deployment("creating", {"bucket": "b"})
    assert adopt_pending(given) == given


def test_the_state_that_was_given_is_left_as_it_is() -> None:
    given = deployment("creating", {"identity": "m-1"})
    adopt_pending(given)
    assert len(given["pending_operations"]) == 1
