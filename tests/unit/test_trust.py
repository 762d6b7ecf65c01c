"""Whose signatures count: what a platform's config may say, and what a version's stack makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.contracts import PlatformExports
from infra.settings import PlatformSettings, SettingsError, parse_settings
from infra.settings.platform import TrustSettings
from infra.single_node.version import ModelServers
from infra.trust import Trust, read_trust, signed_by, trust_of
from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.errors import KeyRefused, Untrusted
from model_packaging.keys import PrivateKey, generate_key
from model_packaging.signing import sign
from model_packaging.stores.layout import Layout

FILE = "stacks/platform/Pulumi.dev.yaml"
TEAM = PrivateKey(Ed25519PrivateKey.generate())
PACKAGE = {
    "framework": {"name": "none", "version": "1"},
    "training_data": "none",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}


def parsed(trust: object) -> PlatformSettings:
    document = {"environment": "dev", "mode": "single-node", "trust": trust}
    return parse_settings(PlatformSettings, document, file=FILE, key="lepton:platform")


def exported(**trust: Any) -> Any:
    """A platform's outputs; keys are named as in its config."""
    return {"environment": "dev", "trust": {"required": True, "keys": [], "teams": {}} | trust}


def demand(*keys: PrivateKey, required: bool = True) -> Trust:
    named = [{"name": f"keys/{number}.pub", "pem": key.public.pem} for number, key in enumerate(keys)]
    trust = trust_of(exported(required=required, teams={"diagnostics": named}), "diagnostics")
    assert trust is not None
    return trust


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "package.yaml").write_text(json.dumps(PACKAGE))
    (folder / "weights.bin").write_text("weights")
    store = Layout(tmp_path / "store")
    build_artifact(folder, "tumour", "1.0.0", store)
    return Artifact.find(store, "tumour", "1.0.0")


def test_a_named_key_makes_signatures_required() -> None:
    trust = parsed({"keys": ["keys/release.pub"]}).trust
    assert trust is not None
    assert trust.required


@pytest.mark.parametrize("trust", [{}, {"required": True}, {"keys": []}, {"teams": {"diagnostics": []}}])
def test_trust_in_nobody_is_refused(trust: object) -> None:
    with pytest.raises(SettingsError, match=r"lepton:platform\.trust: no key is trusted, so that no version could be"):
        parsed(trust)


def test_a_team_that_none_can_be_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"lepton:platform\.trust\.teams\.Diagnostics.*DNS-1123"):
        parsed({"teams": {"Diagnostics": ["keys/diagnostics.pub"]}})


def test_keys_are_read_from_the_projects_root_or_from_the_config_itself(tmp_path: Path) -> None:
    made = generate_key(tmp_path / "team.pem", tmp_path / "team.pub")
    settings = TrustSettings(keys=(TEAM.public.pem,), teams={"diagnostics": ("team.pub",)})
    assert read_trust(settings, tmp_path) == {
        "required": True,
        "keys": [{"name": "lepton:platform.trust.keys[0]", "pem": TEAM.public.pem}],
        "teams": {"diagnostics": [{"name": "team.pub", "pem": made.pem}]},
    }


def test_without_trust_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert read_trust(None, tmp_path) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("absent.pub", "/absent.pub can't be read: No such file or directory"),
        ("text.pub", "/text.pub holds no public key in PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n", " holds no public key in PEM"),
    ],
)
def test_a_key_that_can_not_be_read_is_named_by_its_place_in_the_config(
    tmp_path: Path, given: str, problem: str
) -> None:
    (tmp_path / "text.pub").write_text("no key")
    settings = TrustSettings(teams={"diagnostics": ("ok.pub", given)})
    generate_key(tmp_path / "ok.pem", tmp_path / "ok.pub")
    with pytest.raises(KeyRefused) as refused:
        read_trust(settings, tmp_path)
    assert str(refused.value).startswith("lepton:platform.trust.teams.diagnostics[1]")
    assert problem in str(refused.value)


def test_a_team_is_trusted_by_its_own_keys_and_by_those_for_all() -> None:
    own, others, common = ({"name": name, "pem": ""} for name in ("own", "others", "common"))
    platform: PlatformExports = exported(keys=[common], teams={"diagnostics": [own], "others": [others]})
    found = trust_of(platform, "diagnostics")
    assert found is not None
    assert found["keys"] == [own, common]
    unknown = trust_of(platform, "new")
    assert unknown is not None
    assert unknown["keys"] == [common]


@pytest.mark.parametrize("platform", [{"environment": "dev"}, {"environment": "dev", "trust": None}])
def test_a_platform_that_says_nothing_of_trust_asks_for_no_signature(platform: Any, artifact: Artifact) -> None:
    trust = trust_of(platform, "diagnostics")
    assert trust is None
    assert signed_by(artifact, trust) is None


def test_the_key_that_signed_is_named_by_its_fingerprint(artifact: Artifact) -> None:
    sign(artifact, TEAM, "ada@example.org")
    assert signed_by(artifact, demand(TEAM)) == TEAM.public.fingerprint


def test_an_unsigned_version_is_refused_with_who_asks_for_what_and_what_to_do(artifact: Artifact) -> None:
    with pytest.raises(Untrusted) as refused:
        signed_by(artifact, demand(TEAM))
    said = str(refused.value)
    assert said.startswith("environment dev serves versions of team diagnostics only if a key that it trusts for them ")
    assert f"tumour 1.0.0 ({artifact.digest}) is not signed" in said
    assert f"keys/0.pub ({TEAM.public.fingerprint})" in said
    assert "lepton package sign tumour:1.0.0 --key FILE" in said


def test_where_no_signature_is_required_nobodys_is_fine(artifact: Artifact) -> None:
    assert signed_by(artifact, demand(TEAM, required=False)) is None


def test_a_team_without_a_key_is_told_where_to_name_one(artifact: Artifact) -> None:
    sign(artifact, TEAM, "ada@example.org")
    with pytest.raises(Untrusted, match=r"name its public key in lepton:platform\.trust\.teams\.diagnostics$"):
        signed_by(artifact, demand())
    assert signed_by(artifact, demand(required=False)) is None


def test_signatures_are_verified_again_when_a_version_is_made(artifact: Artifact, tmp_path: Path) -> None:
    inputs = {
        "node": {"directory": str(tmp_path / "node")},
        "store": artifact.store.location,
        "model": "tumour",
        "digest": artifact.digest,
        "trust": demand(TEAM),
    }
    with pytest.raises(Untrusted, match="is not signed"):
        ModelServers.driver.create(inputs)
    assert not (tmp_path / "node").exists()
