"""Many versions as one stack, to compare with: the same components, made by one program from the same config files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fleet_project import Fleet, Measured
from benchmarks.simulated_cluster import ROOT

LIMIT_SECONDS = 1200.0
"""What takes longer is given up."""
_STACK = "all"
_PROGRAM = f"""\
import json
import sys
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
import pulumi
import yaml
from infra.cluster import version as served
from infra.contracts import Stack
from infra.settings import VersionSettings

given = json.loads(Path("given.json").read_text())
# As anybody would have it in one program: each provider is a process.
shared = served.provider("cluster", given["platform"]["internals"]["connection"], None)
served.provider = lambda *_: shared
# It has none of a version's, and the engine is writing its state.
served._own_outputs = dict
for team, name, file in given["versions"]:
    document = yaml.load(Path(file).read_text(), Loader=yaml.CSafeLoader)["config"]["lepton:version"]
    settings = VersionSettings.model_validate(document | {{"environment": given["environment"]}})
    served.ServedVersion(Stack(team, name, given["folder"]), settings, given["platform"], secret=False)
"""


class Monolith:
    """So many of a fleet's versions as one stack, in an environment of its own on the same platform."""

    def __init__(self, folder: Path, fleet: Fleet, size: int) -> None:
        self.folder, self._fleet, self.size = folder, fleet, size
        self._backend = folder / "backend"
        self._backend.mkdir(parents=True)
        (folder / "Pulumi.yaml").write_text(json.dumps({"name": "monolith", "runtime": "python"}))
        (folder / "__main__.py").write_text(_PROGRAM)
        given = {
            "environment": f"all-{size}",
            "folder": str(fleet.folder),
            "platform": fleet.platform(),
            "versions": [
                [version.team, version.stack, str(fleet.config(version))] for version in fleet.versions[:size]
            ],
        }
        (folder / "given.json").write_text(json.dumps(given))
        self._pulumi("stack", "init", _STACK)

    def up(self) -> Measured:
        """Raises TimeoutError beyond LIMIT_SECONDS, and BenchmarkError where it fails."""
        return self._pulumi("up", "--yes", "--skip-preview", "--refresh", "--suppress-outputs", "--stack", _STACK)

    @property
    def state_bytes(self) -> int:
        return (self._backend / f".pulumi/stacks/monolith/{_STACK}.json").stat().st_size

    def _pulumi(self, *arguments: str) -> Measured:
        command = ["pulumi", *arguments, "--non-interactive"]
        return self._fleet.measured(command, folder=self.folder, environ=self._environ, limit=LIMIT_SECONDS)

    @property
    def _environ(self) -> Mapping[str, str]:
        own: dict[str, Any] = {
            "PULUMI_BACKEND_URL": f"file://{self._backend}",
            "PULUMI_HOME": str(self.folder / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        return own
