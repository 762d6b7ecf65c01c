"""A stand-in for Pulumi's Kubernetes plugin, for machines that have no `pulumi-resource-kubernetes`.

It serves any type `kubernetes:GROUP/VERSION:KIND` by server-side apply. For tests alone: the product never knows of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

COMMAND = "pulumi-resource-kubernetes"

_FOLDER = Path(__file__).parent


def with_plugin(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which Pulumi finds a Kubernetes plugin: the real one where there is one."""
    path = environment.get("PATH", "")
    if has_real(environment):
        return dict(environment)
    # Pulumi would try to fetch a plugin for each of its packages that is installed, in every command.
    quick = {"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}
    return {**environment, **quick, "PATH": os.pathsep.join([*filter(None, [path]), str(_FOLDER)])}


def has_real(environment: Mapping[str, str]) -> bool:
    """Whether the real plugin is installed, on PATH or by `pulumi plugin install`."""
    home = environment.get("PULUMI_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".pulumi"
    # Pulumi prefers what is on PATH, even to what it installed itself.
    on_path = shutil.which(COMMAND, path=environment.get("PATH", ""))
    installed = Path(home).glob("plugins/resource-kubernetes-v*/" + COMMAND)
    return (on_path is not None and Path(on_path).parent != _FOLDER) or any(installed)
