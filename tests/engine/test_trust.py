"""Signatures where an environment asks for them, through the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from model_packaging.artifact import Artifact
from model_packaging.keys import PrivateKey, generate_key
from model_packaging.signing import sign
from tests.engine.sandbox import TEAM, Sandbox
from tests.engine.test_policies import Previews

OTHERS = "others"


def trust(project: Sandbox, *keys: str) -> None:
    """Has the platform's config trust these keys for the team's versions, and one of another team's for its own."""
    file = project.config("dev", team="platform")
    document = yaml.safe_load(file.read_text())
    document["config"]["lepton:platform"]["trust"] = {
        "teams": {TEAM: [f"keys/{key}.pub" for key in keys], OTHERS: [f"keys/{OTHERS}.pub"]}
    }
    file.write_text(yaml.safe_dump(document))


def new_key(project: Sandbox, name: str) -> None:
    generate_key(project.root / "keys" / f"{name}.pem", project.root / "keys" / f"{name}.pub")


def sign_as(project: Sandbox, key: str, model: str) -> None:
    private = PrivateKey.read(project.root / "keys" / f"{key}.pem")
    sign(Artifact.find(project.store, model, "1.0.0"), private, "ada@example.org")


@pytest.fixture(scope="module")
def signing() -> Iterator[Sandbox]:
    """A project whose environment asks for signatures."""
    project = Sandbox()
    try:
        (project.root / "keys").mkdir()
        for key in (TEAM, OTHERS):
            new_key(project, key)
        trust(project, TEAM)
        project.must("up", "dev", "--requests", "0")
        yield project
    finally:
        project.close()


@pytest.fixture(scope="module")
def scan(signing: Sandbox) -> str:
    """The address of a signed version in service."""
    address = signing.write_version("scan", "1.0.0")
    sign_as(signing, TEAM, "scan")
    signing.must("deploy", address)
    return address


def test_a_version_that_no_key_of_its_team_has_signed_is_refused(signing: Sandbox) -> None:
    address = signing.write_version("stray", "1.0.0")
    sign_as(signing, OTHERS, "stray")
    fingerprint = PrivateKey.read(signing.root / "keys" / f"{TEAM}.pem").public.fingerprint

    assert signing.pulumi("stack", "init", "dev.stray-1.0.0").status == 0
    for refused in (signing.pulumi("preview", "--stack", "dev.stray-1.0.0"), signing.lepton("deploy", address)):
        assert refused.status != 0, refused
        said = refused.out + refused.err
        assert f"environment dev serves versions of team {TEAM} only if a key that it trusts for them" in said
        assert f"keys/{TEAM}.pub ({fingerprint})" in said
        assert "lepton package sign stray:1.0.0 --key FILE" in said
        assert "Traceback" not in said
    assert signing.server_pids("stray", "1.0.0") == []


def test_a_new_key_of_the_team_changes_nothing_of_a_signed_version_in_service(signing: Sandbox, scan: str) -> None:
    pids = signing.server_pids("scan", "1.0.0")
    assert len(pids) == 1
    new_key(signing, "next")
    trust(signing, "next", TEAM)
    assert signing.pulumi("up", "--yes", "--stack", "dev", team="lepton").status == 0
    sign_as(signing, "next", "scan")
    assert "nothing changed" in signing.must("deploy", scan).out
    assert signing.server_pids("scan", "1.0.0") == pids


def test_bytes_that_changed_after_they_were_signed_are_not_served(signing: Sandbox) -> None:
    address = signing.write_version("harmed", "1.0.0")
    sign_as(signing, TEAM, "harmed")
    (part,) = Artifact.find(signing.store, "harmed", "1.0.0").parts
    blob = signing.store.path / "blobs" / "sha256" / part.digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes().upper())
    refused = signing.lepton("deploy", address)
    assert refused.status != 0, refused
    assert f"does not match its digest: expected {part.digest}" in refused.out + refused.err
    assert signing.server_pids("harmed", "1.0.0") == []


def test_a_key_that_can_not_be_read_stops_the_platform_before_anything_is_touched(own_project: Sandbox) -> None:
    trust(own_project, TEAM)
    refused = own_project.lepton("up", "dev")
    assert refused.status != 0, refused
    said = refused.out + refused.err
    assert "Pulumi.dev.yaml: lepton:platform.trust.teams.diagnostics[0]: " in said
    assert f"keys/{TEAM}.pub can't be read: No such file or directory" in said
    assert "Traceback" not in said
    assert not own_project.processes()
    assert not own_project.node.directory.exists()


@pytest.mark.usefixtures("scan")
def test_a_policy_tells_what_an_artifact_says_of_its_origin(signing: Sandbox, tmp_path: Path) -> None:
    outcome = Previews(signing, tmp_path).run("dev.scan-1.0.0", {"version-comes-from-a-commit": "mandatory"})
    assert outcome.status != 0, outcome
    assert "[mandatory] [severity: medium]  version-comes-from-a-commit" in outcome.out
    assert "it comes from no Git commit" in outcome.out
    assert "version-is-signed" not in outcome.out
