"""What a machine must have for the tests' real node. It imports next to nothing: each run of the tests asks."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.daemon import missing

_COMMANDS = ("containerd", "containerd-shim-runc-v2", "runc", "ctr", "kubelet", "ip", "nsenter", "unshare")
_PACKAGES = "containerd runc containernetworking-plugins iproute2"
_NETWORK_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def lacking() -> str | None:
    """What this machine lacks for a real node, as a sentence; None where one can be started."""
    if os.geteuid() != 0:
        return "only root can start a kubelet"
    if gone := missing(*_COMMANDS):
        return f"no {', '.join(gone)} on PATH (on Debian: {_PACKAGES}; `make tools` builds the kubelet)"
    if network_plugins() is None:
        return f"no CNI plugins in {' or '.join(map(str, _NETWORK_PLUGINS))} (on Debian: containernetworking-plugins)"
    return None


def network_plugins() -> Path | None:
    """The folder of the CNI plugins."""
    return next((path for path in _NETWORK_PLUGINS if (path / "bridge").exists()), None)
