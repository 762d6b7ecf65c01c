"""The policy pack, in previews of the real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.sandbox import REPOSITORY, TEAM, Outcome, Sandbox

LOADER = "pulumi-analyzer-policy-venvpython"
"""What the engine runs for a pack of runtime `venvpython`: a name that is no language host's."""


class Previews:
    """Previews of one project under the pack, in a form that every language host can start."""

    def __init__(self, project: Sandbox, folder: Path) -> None:
        self.project = project
        self._folder = folder
        self._pack = folder / "pack"
        shutil.copytree(REPOSITORY / "policies", self._pack, ignore=shutil.ignore_patterns("__pycache__"))
        manifest = self._pack / "PulumiPolicy.yaml"
        manifest.write_text(manifest.read_text().replace("runtime: python", "runtime: venvpython"))
        loader = folder / LOADER
        loader.write_text('#!/bin/sh\nexec python -u -m pulumi.policy "$@"\n')
        loader.chmod(0o755)

    def run(self, stack: str, config: dict[str, Any] | None = None, team: str = TEAM) -> Outcome:
        arguments = ["preview", "--stack", stack, "--policy-pack", str(self._pack)]
        if config is not None:
            file = self._folder / "config.json"
            file.write_text(json.dumps(config))
            arguments += ["--policy-pack-config", str(file)]
        folder = self.project.root if team == "lepton" else self.project.root / "stacks" / team
        exports = self.project.must("env").out
        script = f'{exports}\nPATH="$PATH:{self._folder}" exec pulumi "$@"'
        return self.project.run("bash", "-c", script, "pulumi", *arguments, "--non-interactive", folder=folder)


@pytest.fixture
def open_router(own_project: Sandbox, tmp_path: Path) -> Previews:
    """A platform that breaks one rule: its router would listen on every address."""
    own_project.write_node(address="0.0.0.0")
    assert own_project.pulumi("stack", "init", "dev", team="lepton").status == 0
    return Previews(own_project, tmp_path)


@pytest.fixture(scope="module")
def scan(project: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Previews:
    """A version in service that has no limits."""
    project.write_version("scan", "1.0.0")
    project.write_endpoint("scan", {"1.0.0": 1})
    project.must("up", "dev", "--requests", "0")
    return Previews(project, tmp_path_factory.mktemp("policies"))


def test_an_advisory_violation_is_told_and_passes(open_router: Previews) -> None:
    outcome = open_router.run("dev", team="lepton")
    assert outcome.status == 0, outcome
    assert "[advisory] [severity: high]  router-listens-on-loopback" in outcome.out
    assert "lepton:platform.node.address: given '0.0.0.0': " in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_a_mandatory_violation_fails_the_preview_with_the_rules_message(open_router: Previews) -> None:
    outcome = open_router.run("dev", {"router-listens-on-loopback": "mandatory"}, team="lepton")
    assert outcome.status != 0, outcome
    assert "[mandatory] [severity: high]  router-listens-on-loopback" in outcome.out
    assert "write '127.0.0.1'" in outcome.out
    assert not open_router.project.processes()


def test_all_stands_for_each_rule_but_those_that_are_named(open_router: Previews) -> None:
    config = {"all": "mandatory", "router-listens-on-loopback": "disabled"}
    outcome = open_router.run("dev", config, team="lepton")
    assert outcome.status == 0, outcome
    assert "lepton:platform.node.address" not in outcome.out


def test_a_config_for_a_rule_that_does_not_exist_stops_the_preview(open_router: Previews) -> None:
    outcome = open_router.run("dev", {"router-listens-on-lopback": "mandatory"}, team="lepton")
    assert outcome.status != 0, outcome
    assert "router-listens-on-lopback: there is no rule of that name" in outcome.err


def test_a_version_without_limits_is_refused_where_they_are_mandatory(scan: Previews) -> None:
    outcome = scan.run("dev.scan-1.0.0", {"version-has-limits": "mandatory"})
    assert outcome.status != 0, outcome
    assert "lepton:version.resources.cpu: not given: a replica of scan 1.0.0 " in outcome.out
    assert "lepton:version.resources.memory: not given: " in outcome.out


def test_an_image_named_by_a_tag_is_told(scan: Previews) -> None:
    project = scan.project
    project.write_version("boxed", "1.0.0", runtime="docker", image="boxed:1.0.0")
    assert project.pulumi("stack", "init", "dev.boxed-1.0.0").status == 0
    outcome = scan.run("dev.boxed-1.0.0")
    assert outcome.status == 0, outcome
    assert "lepton:version.image: given 'boxed:1.0.0': " in outcome.out


def test_an_endpoint_without_failover_is_told(scan: Previews) -> None:
    project = scan.project
    project.must("deploy", project.write_version("scan", "1.1.0"))
    project.write_endpoint("scan", {"1.0.0": 1, "1.1.0": 1}, failover=False)
    outcome = scan.run("dev.scan")
    assert outcome.status == 0, outcome
    assert "lepton:endpoint.failover: given False: " in outcome.out
