"""Ports and GPUs of a node: nobody gets what another has."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from pathlib import Path

import pytest

from infra.single_node.machine.claims import (
    Holding,
    VersionName,
    claim_gpus,
    claim_ports,
    detect_gpus,
    gpus_of,
    holdings,
    is_port_free,
    listener,
    note_limits,
    ports_of,
    release,
)
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.node import Node, NodeError


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_owner_keeps_the_ports_it_has(node: Node, port_range: tuple[int, int]) -> None:
    first = claim_ports(node, "a", ["http"], port_range)
    both = claim_ports(node, "a", ["http", "grpc"], port_range)
    assert both["http"] == first["http"] != both["grpc"]
    assert ports_of(node, "a") == both


def test_two_owners_share_no_port(node: Node, port_range: tuple[int, int]) -> None:
    one = claim_ports(node, "a", ["http", "grpc"], port_range)
    two = claim_ports(node, "b", ["http", "grpc"], port_range)
    assert not set(one.values()) & set(two.values())


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_another_program_listens_on_is_skipped(
    node: Node, port_range: tuple[int, int], address: str
) -> None:
    expected = claim_ports(node, "a", ["http"], port_range)["http"]
    release(node, "a")
    with socket.socket() as other:
        # As servers do: an earlier test's closed connection may still have the port.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address, expected))
        other.listen()
        assert not is_port_free(expected)
        assert claim_ports(node, "a", ["http"], port_range)["http"] > expected


@pytest.mark.parametrize(
    ("family", "listens_at", "asked", "free"),
    [
        (socket.AF_INET6, "::1", "::1", False),
        (socket.AF_INET6, "::1", "::", False),
        (socket.AF_INET6, "::1", "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.1", "::", True),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0", False),
    ],
)
def test_a_port_is_free_at_an_address_and_not_at_another(
    port_range: tuple[int, int], family: socket.AddressFamily, listens_at: str, asked: str, free: bool
) -> None:
    port = port_range[1]
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((listens_at, port))
        other.listen()
        assert is_port_free(port, asked) is free


def test_a_released_port_can_be_had_again(node: Node, port_range: tuple[int, int]) -> None:
    first = claim_ports(node, "a", ["http"], port_range)
    release(node, "a")
    release(node, "a")
    assert ports_of(node, "a") == {}
    assert claim_ports(node, "b", ["http"], port_range) == first


def test_a_range_without_a_free_port_is_an_error_that_claims_nothing(node: Node, port_range: tuple[int, int]) -> None:
    first = claim_ports(node, "a", ["http"], port_range)["http"]
    with pytest.raises(NodeError, match=f"every port of {first}-{first} is taken: widen lepton:platform.node.ports"):
        claim_ports(node, "b", ["http"], (first, first))
    assert ports_of(node, "b") == {}


def _claim(directory: str, owner: str, within: tuple[int, int]) -> None:
    claim_ports(Node(Path(directory)), owner, ["http"], within)
    claim_gpus(Node(Path(directory)), owner, 1, [str(device) for device in range(8)])


def test_claims_of_many_processes_never_meet(node: Node, port_range: tuple[int, int]) -> None:
    owners = [f"owner-{number}" for number in range(6)]
    spawn = multiprocessing.get_context("spawn")
    claimants = [spawn.Process(target=_claim, args=(str(node.directory), owner, port_range)) for owner in owners]
    for claimant in claimants:
        claimant.start()
    for claimant in claimants:
        claimant.join(60)
    assert [claimant.exitcode for claimant in claimants] == [0] * len(owners)
    assert len({ports_of(node, owner)["http"] for owner in owners}) == len(owners)
    with pytest.raises(NodeError, match="asks for 3"):
        claim_gpus(node, "another", 3, [str(device) for device in range(8)])


def test_gpus_are_reserved_and_kept(node: Node) -> None:
    held = claim_gpus(node, "a", 2, ["0", "1", "2"])
    assert len(set(held)) == 2
    assert claim_gpus(node, "a", 2, ["0", "1", "2"]) == held
    assert not set(claim_gpus(node, "b", 1, ["0", "1", "2"])) & set(held)


def test_a_refused_claim_names_the_holders_and_reserves_nothing(node: Node) -> None:
    claim_gpus(node, "a", 1, ["0", "1"])
    with pytest.raises(NodeError, match=re.escape("b asks for 2 GPU(s) and 1 of the node's 2 can be had")) as error:
        claim_gpus(node, "b", 2, ["0", "1"])
    assert "GPU 0 by a" in str(error.value)
    assert claim_gpus(node, "c", 1, ["0", "1"]) == ["1"]


def test_a_node_without_gpus_says_so(node: Node) -> None:
    with pytest.raises(NodeError, match=re.escape("0 of the node's 0 can be had (held: none)")):
        claim_gpus(node, "a", 1, [])


def test_a_device_that_left_the_inventory_is_replaced(node: Node) -> None:
    claim_gpus(node, "a", 1, ["0"])
    assert claim_gpus(node, "a", 1, ["1"]) == ["1"]


def test_no_gpus_asked_for_is_no_claim(node: Node) -> None:
    assert claim_gpus(node, "a", 0, ["0"]) == []
    assert claim_gpus(node, "b", 1, ["0"]) == ["0"]


def test_fewer_gpus_free_the_rest(node: Node) -> None:
    claim_gpus(node, "a", 2, ["0", "1"])
    claim_gpus(node, "a", 1, ["0", "1"])
    assert claim_gpus(node, "b", 1, ["0", "1"]) == ["1"]


def test_the_process_that_listens_on_a_port_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        found = listener(server.getsockname()[1])
        assert found is not None
        assert found.pid == os.getpid()


def test_a_machine_without_nvidia_smi_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_gpus() == []


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text('#!/bin/sh\n[ "$1" = --query-gpu=index ] && printf "0\\n1\\n"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert detect_gpus() == ["0", "1"]


def test_a_driver_that_does_not_answer_is_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert detect_gpus() == []


def test_what_a_versions_replicas_hold_is_summed_and_a_limit_that_is_not_set_is_nothing(node: Node) -> None:
    old, new = VersionName("diagnostics", "scan", "1.0.0"), VersionName("diagnostics", "scan", "2.0.0")
    note_limits(node, "a", Limits(cpu=0.5, memory=100), old)
    note_limits(node, "b", Limits(memory=20), old)
    note_limits(node, "c", Limits(), new)
    claim_gpus(node, "b", 2, ["0", "1", "2"])
    assert holdings(node) == {old: Holding(2, 0.5, 120, 2), new: Holding(1, 0, 0, 0)}
    note_limits(node, "a", Limits(cpu=1.5), old)
    release(node, "b")
    release(node, "c")
    assert holdings(node) == {old: Holding(1, 1.5, 0, 0)}


def test_claims_that_were_written_before_limits_were_noted_can_be_read(node: Node) -> None:
    node.claims.write_text('{"ports": {"a": {"http": 20000}}, "gpus": {"a": ["0"]}}')
    assert holdings(node) == {}
    assert gpus_of(node, "a") == ["0"]
    release(node, "a")
    assert gpus_of(node, "a") == []
