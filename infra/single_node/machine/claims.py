"""What replicas and the node's own services hold of the machine, kept in one file under one lock.

Ports and GPUs are each one owner's. Processors and memory are only noted: nothing is refused for want of them.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypedDict

import psutil

from infra.files import read_json, write_json
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.node import Node, NodeError


class Claims(TypedDict):
    ports: dict[str, dict[str, int]]
    """Port by purpose, by owner."""
    gpus: dict[str, list[str]]
    """Device ids by owner."""
    limits: dict[str, dict[str, Any]]
    """What a replica may take of processors and memory, as `Limits`, by owner."""
    versions: dict[str, dict[str, str]]
    """Whose replica an owner is, as `VersionName`."""


class VersionName(NamedTuple):
    team: str
    model: str
    version: str


@dataclass(frozen=True)
class Holding:
    """What a version's replicas together hold; a limit that isn't set counts as nothing."""

    replicas: int
    cpu: float
    """Cores."""
    memory: int
    """Bytes."""
    gpu: int


def claim_ports(node: Node, owner: str, purposes: Sequence[str], within: tuple[int, int]) -> dict[str, int]:
    """Gives `owner` a loopback port for each purpose, the ones it already has included.

    Raises:
        NodeError: when the range holds no more free ports.
    """
    with node.locked("claims"):
        claims = _read(node)
        own = claims["ports"].setdefault(owner, {})
        taken = {port for ports in claims["ports"].values() for port in ports.values()}
        for purpose in purposes:
            if purpose not in own:
                own[purpose] = _free_port(within, taken)
                taken.add(own[purpose])
        write_json(node.claims, claims)
        return {purpose: own[purpose] for purpose in purposes}


def claim_gpus(node: Node, owner: str, count: int, inventory: Sequence[str]) -> list[str]:
    """Reserves `count` devices for `owner`, keeping those it already has.

    Raises:
        NodeError: when fewer are free; nothing is reserved then.
    """
    with node.locked("claims"):
        claims = _read(node)
        held = {device: holder for holder, devices in claims["gpus"].items() for device in devices if holder != owner}
        own = [device for device in claims["gpus"].get(owner, []) if device in inventory][:count]
        free = [device for device in inventory if device not in held and device not in own]
        if len(own) + len(free) < count:
            holders = ", ".join(f"GPU {device} by {holder}" for device, holder in sorted(held.items())) or "none"
            raise NodeError(
                f"{owner} asks for {count} GPU(s) and {len(own) + len(free)} of the node's {len(inventory)} can be had "
                f"(held: {holders}); lower its resources.gpu or its replicas, or take down a version that holds one"
            )
        claims["gpus"][owner] = own + free[: count - len(own)]
        if not claims["gpus"][owner]:
            del claims["gpus"][owner]
        write_json(node.claims, claims)
        return claims["gpus"].get(owner, [])


def note_limits(node: Node, owner: str, limits: Limits, of: VersionName) -> None:
    """Notes what `owner`, a replica of a version, may take of processors and memory."""
    with node.locked("claims"):
        claims = _read(node)
        claims["limits"][owner] = asdict(limits)
        claims["versions"][owner] = of._asdict()
        write_json(node.claims, claims)


def release(node: Node, owner: str) -> None:
    with node.locked("claims"):
        claims = _read(node)
        for held in (claims["ports"], claims["gpus"], claims["limits"], claims["versions"]):
            held.pop(owner, None)
        write_json(node.claims, claims)


def ports_of(node: Node, owner: str) -> dict[str, int]:
    return _read(node)["ports"].get(owner, {})


def gpus_of(node: Node, owner: str) -> list[str]:
    return _read(node)["gpus"].get(owner, [])


def holdings(node: Node) -> dict[VersionName, Holding]:
    """What each version holds."""
    claims = _read(node)
    found: dict[VersionName, list[str]] = {}
    for owner, name in claims["versions"].items():
        found.setdefault(VersionName(**name), []).append(owner)
    return {version: _holding(claims, owners) for version, owners in found.items()}


def _holding(claims: Claims, replicas: Sequence[str]) -> Holding:
    limits = [Limits(**claims["limits"].get(replica, {})) for replica in replicas]
    return Holding(
        replicas=len(replicas),
        cpu=sum(limit.cpu or 0.0 for limit in limits),
        memory=sum(limit.memory or 0 for limit in limits),
        gpu=sum(len(claims["gpus"].get(replica, [])) for replica in replicas),
    )


def is_port_free(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        # As servers do, so that connections of an earlier server in TIME_WAIT don't count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            # As Envoy does: `::` is every IPv6 address, and no IPv4 one.
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def listener(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port, where this user may know it."""
    try:
        connections = psutil.net_connections(kind="tcp")
        pids = [
            c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr[1] == port and c.pid
        ]
        return psutil.Process(pids[0]) if pids else None
    except psutil.Error:
        return None


def detect_gpus() -> list[str]:
    """Device ids as `nvidia-smi` lists them; none where it is missing or sees no device."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listing.stdout.split() if listing.returncode == 0 else []


def _read(node: Node) -> Claims:
    claims: Claims = {"ports": {}, "gpus": {}, "limits": {}, "versions": {}}
    # A node that is older than one of the kinds has none of it.
    return claims | read_json(node.claims, {})


def _free_port(within: tuple[int, int], taken: set[int]) -> int:
    first, last = within
    for port in range(first, last + 1):
        if port not in taken and is_port_free(port):
            return port
    raise NodeError(f"every port of {first}-{last} is taken: widen lepton:platform.node.ports")
