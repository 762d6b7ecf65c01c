"""Bad configs: an error that names file, key, value and remedy, before any resource is touched."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.engine.sandbox import REPOSITORY, TEAM, Sandbox

GOOD = [{"version": "1.0.0", "weight": 90}, {"version": "1.1.0", "weight": 10}]


def with_variants(*variants: dict[str, Any]) -> dict[str, Any]:
    return {"variants": list(variants)}


@pytest.mark.parametrize(
    ("change", "key", "given", "remedy"),
    [
        ({"wieghts": 1}, "lepton:endpoint.wieghts", "1", "known here: baseline, environment"),
        (
            with_variants(GOOD[0], {"version": "1.1.0", "weight": -1}),
            "lepton:endpoint.variants[1].weight",
            "-1",
            "an integer from 0 to 1000000",
        ),
        (
            with_variants({"version": "1.0.0", "weight": 0}, {"version": "1.1.0", "weight": 0}),
            "lepton:endpoint.variants",
            "'weight': 0",
            "give one variant at least 1",
        ),
        (
            with_variants(GOOD[0], {"version": "1.0.0", "weight": 10}),
            "lepton:endpoint.variants",
            "'version': '1.0.0'",
            "1.0.0 is listed twice; give each version once",
        ),
        (
            with_variants({"version": "1.0", "weight": 1}),
            "lepton:endpoint.variants[0].version",
            "'1.0'",
            "such as '1.2.0'",
        ),
        (
            with_variants({"version": "1.0.0+cuda", "weight": 1}),
            "lepton:endpoint.variants[0].version",
            "'1.0.0+cuda'",
            "write '1.0.0'",
        ),
        ({"model": "Tumour_Net"}, "lepton:endpoint.model", "'Tumour_Net'", "DNS-1123"),
        ({"timeouts": {"total": "soon"}}, "lepton:endpoint.timeouts.total", "'soon'", "'90s'"),
        ({"baseline": "3.0.0"}, "lepton:endpoint", "baseline 3.0.0", "choose one of 1.0.0, 1.1.0"),
    ],
)
def test_a_bad_endpoint_is_refused_before_anything_is_touched(
    own_project: Sandbox, change: dict[str, Any], key: str, given: str, remedy: str
) -> None:
    project = own_project
    address = project.write_endpoint("tumour", {"1.0.0": 90, "1.1.0": 10}, **change)

    for command in (["up", "dev"], ["deploy", address]):
        outcome = project.lepton(*command)

        assert outcome.status == 1
        assert f"stacks/{TEAM}/Pulumi.dev.tumour.yaml: {key}" in outcome.err, outcome
        assert given in outcome.err
        assert remedy in outcome.err
    assert not (project.root / ".state").exists(), "no backend, no node, nothing"


def test_pulumi_by_hand_refuses_a_bad_config_with_the_same_words(own_project: Sandbox) -> None:
    project = own_project
    project.write_endpoint("tumour", {"1.0.0": -1})
    project.pulumi("stack", "init", "dev.tumour")
    outcome = project.pulumi("up", "--yes", "--stack", "dev.tumour")
    assert outcome.status != 0
    assert "Pulumi.dev.tumour.yaml: lepton:endpoint.variants[0].weight: given -1" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err


def test_pulumi_by_hand_names_a_version_that_is_not_deployed(project: Sandbox) -> None:
    project.write_endpoint("lonely", {"7.0.0": 1})
    project.pulumi("stack", "init", "dev.lonely")
    outcome = project.pulumi("up", "--yes", "--stack", "dev.lonely")
    assert outcome.status != 0
    said = outcome.out + outcome.err
    assert "Pulumi.dev.lonely.yaml: lepton:endpoint.variants: given 7.0.0" in said
    assert f"lepton deploy {TEAM}/dev.lonely-7.0.0" in said


def test_a_team_that_is_no_dns_label_is_refused(own_project: Sandbox) -> None:
    outcome = own_project.lepton("team", "new", "Diagnostics_Team")
    assert outcome.status == 2
    assert "'Diagnostics_Team'" in outcome.err
    assert "DNS-1123" in outcome.err


def test_a_folder_that_is_no_dns_label_is_refused_as_a_team(own_project: Sandbox) -> None:
    folder = own_project.root / "stacks" / "Bad_Team"
    folder.mkdir()
    (folder / "Pulumi.dev.m.yaml").write_text("config:\n  lepton:endpoint:\n    environment: dev\n")
    outcome = own_project.lepton("up", "dev")
    assert outcome.status == 1
    assert "stacks/Bad_Team" in outcome.err
    assert "DNS-1123" in outcome.err


def test_a_project_with_another_name_than_its_folder_is_refused(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("m", "1.0.0")
    file = project.root / "stacks" / TEAM / "Pulumi.yaml"
    file.write_text(file.read_text().replace("name: diagnostics", "name: other"))
    outcome = project.lepton("up", "dev")
    assert f"stacks/{TEAM}/Pulumi.yaml: name: given 'other'" in outcome.err


def test_an_endpoint_that_names_a_version_without_a_stack_is_refused_before_anything_is_touched(
    own_project: Sandbox,
) -> None:
    project = own_project
    project.write_version("m", "1.0.0")
    project.write_endpoint("m", {"1.0.0": 1, "2.0.0": 0})
    outcome = project.lepton("up", "dev")
    assert outcome.status == 1
    assert f"stacks/{TEAM}/Pulumi.dev.m.yaml: lepton:endpoint.variants: given 2.0.0" in outcome.err
    assert f"lepton deploy {TEAM}/dev.m-2.0.0" in outcome.err
    assert not (project.root / ".state" / "backend").exists()


def test_a_copy_of_a_config_can_not_drive_the_same_endpoint(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("m", "1.0.0")
    project.write_endpoint("m", {"1.0.0": 1})
    shutil.copy(project.config("dev.m"), project.config("dev.copy"))
    outcome = project.lepton("deploy", f"{TEAM}/dev.copy")
    assert outcome.status == 1
    assert f"stacks/{TEAM}/Pulumi.dev.copy.yaml: these settings are of stack dev.m" in outcome.err


@pytest.mark.parametrize("name", ["lepton", "platform"])
def test_the_platforms_names_are_no_teams(own_project: Sandbox, name: str) -> None:
    outcome = own_project.lepton("team", "new", name)
    assert outcome.status == 2
    assert "choose another name" in outcome.err


def test_another_environments_mistakes_stand_in_nobodys_way(own_project: Sandbox) -> None:
    project = own_project
    project.config("prod.m").write_text("config:\n  lepton:endpoint:\n    environment: prod\n    model: M\n")
    assert "lepton/dev: 6 created" in project.must("up", "dev", "--requests", "0").err


def test_a_file_that_is_not_text_is_named(own_project: Sandbox) -> None:
    own_project.config("dev.binary").write_bytes(b"\xff\xfe\x00")
    outcome = own_project.lepton("up", "dev")
    assert outcome.status == 1
    assert "Pulumi.dev.binary.yaml: not YAML" in outcome.err


@pytest.mark.parametrize("weight", ["half", "--1", "1.5", ""])
def test_what_is_no_weight_is_wrong_usage(own_project: Sandbox, weight: str) -> None:
    outcome = own_project.lepton("traffic", "set", "diagnostics/dev.tumour", f"1.0.0={weight}")
    assert outcome.status == 2
    assert "VERSION=WEIGHT" in outcome.err


def test_every_bad_file_is_named_at_once(own_project: Sandbox) -> None:
    own_project.write_endpoint("one", {"1.0.0": -1})
    own_project.write_endpoint("two", {"1.0": 1})
    outcome = own_project.lepton("up", "dev")
    assert "Pulumi.dev.one.yaml" in outcome.err
    assert "Pulumi.dev.two.yaml" in outcome.err


def test_an_artifact_that_the_store_does_not_have_is_named_before_anything_starts(project: Sandbox) -> None:
    address = project.write_version("unpackaged", "1.0.0", package=False)
    outcome = project.lepton("deploy", address)
    assert outcome.status == 1
    assert "unpackaged" in outcome.err
    assert "lepton package build" in outcome.err
    assert project.server_pids("unpackaged", "1.0.0") == []


def test_a_pinned_digest_that_the_store_does_not_have_is_refused(project: Sandbox) -> None:
    address = project.write_version("pinned", "1.0.0", artifact=f"sha256:{'0' * 64}")
    outcome = project.lepton("deploy", address)
    assert outcome.status == 1
    assert "lepton:version.artifact: given sha256:0000" in outcome.err


def test_a_file_that_is_not_yaml_is_named(own_project: Sandbox) -> None:
    own_project.config("dev.broken").write_text("config: [")
    outcome = own_project.lepton("up", "dev")
    assert outcome.status == 1
    assert "Pulumi.dev.broken.yaml" in outcome.err


def test_a_new_team_can_be_brought_up(project: Sandbox) -> None:
    shutil.copytree(REPOSITORY / "examples" / "team-template", project.root / "examples" / "team-template")
    project.must("team", "new", "radiology")
    project.package("bone", "1.0.0")
    version = project.config("dev.bone-1.0.0", "radiology")
    source = project.write_version("bone", "1.0.0")
    shutil.move(project.config(source.split("/")[1]), version)
    assert "3 created" in project.must("deploy", "radiology/dev.bone-1.0.0").out
