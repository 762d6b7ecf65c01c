"""What a single node's platform tells the stacks that build on it."""

from __future__ import annotations

import pulumi
import pytest
from pulumi.runtime.mocks import MockCallArgs, MockResourceArgs, Mocks

from infra.contracts import Stack
from infra.settings import PlatformSettings
from infra.single_node.platform import Platform

STACK = Stack(team="lepton", name="dev", folder="/srv/project")


class _Engine(Mocks):
    def __init__(self) -> None:
        self.made: list[str] = []

    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[object, object]]:
        self.made.append(args.name)
        return args.name, args.inputs

    def call(self, args: MockCallArgs) -> tuple[dict[object, object], None]:
        return {}, None


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7080"),
        ("10.1.2.3", "http://10.1.2.3:7080"),
        ("0.0.0.0", "http://127.0.0.1:7080"),
        ("::", "http://[::1]:7080"),
        ("::1", "http://[::1]:7080"),
        ("2001:db8::7", "http://[2001:db8::7]:7080"),
    ],
)
def test_an_endpoints_url_is_one_that_clients_can_open(address: str, url: str) -> None:
    document = {"environment": "dev", "mode": "single-node", "node": {"gpus": [], "address": address}}
    exports: list[str] = []
    pulumi.runtime.set_mocks(_Engine())
    pulumi.runtime.test(
        lambda: exports.append(Platform(STACK, PlatformSettings.model_validate(document)).exports["endpoint_base_url"])
    )()
    assert exports == [url]


@pytest.mark.parametrize(("guard", "made"), [({}, 1), ({"guard": True}, 1), ({"guard": False}, 0)])
def test_a_node_has_a_guard_unless_it_is_to_run_elsewhere(guard: dict[str, bool], made: int) -> None:
    document = {"environment": "dev", "mode": "single-node", "node": {"gpus": []}} | guard
    engine = _Engine()
    pulumi.runtime.set_mocks(engine)
    pulumi.runtime.test(lambda: Platform(STACK, PlatformSettings.model_validate(document)) and None)()
    assert engine.made.count("dev-guard") == made
    assert "dev-router" in engine.made
