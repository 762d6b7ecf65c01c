"""What a version is made from: its artifact as the registry has it, and what the platform says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.cluster.manifests.version import Version
from infra.cluster.refusals import VersionRefused
from infra.cluster.version import read_version
from infra.contracts import PlatformExports, Stack
from infra.settings import VersionSettings
from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.errors import NotInStore, Untrusted
from model_packaging.keys import PrivateKey
from model_packaging.signing import sign
from tests.cluster.test_version_manifests import IMAGE, internals
from tests.packaging.model_folders import FILES, make_folder
from tests.packaging.registry_server import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("registry")) as running:
        yield running


class Project:
    """A project with a version in a registry."""

    def __init__(self, server: Server, prefix: str, root: Path) -> None:
        self.root = root
        self.location = server.location(prefix)
        self.store = server.store(prefix)
        self.digest = build_artifact(make_folder(root / "model", FILES), "tumour", "1.0.0", self.store).digest

    def read(self, *, team: str = "diagnostics", platform: dict[str, Any] | None = None, **config: Any) -> Version:
        exports: dict[str, Any] = {
            "environment": "dev",
            "metrics_url": "kubernetes://lepton/prometheus:9090",
            "artifact_store": self.location,
            "trust": None,
            "internals": internals(),
        }
        stack = Stack(team=team, name="dev.tumour-1.0.0", folder=str(self.root))
        settings = VersionSettings.model_validate(
            {"environment": "dev", "model": "tumour", "version": "1.0.0"} | config
        )
        return read_version(stack, settings, cast("PlatformExports", exports | (platform or {})), secret=False)


@pytest.fixture
def project(server: Server, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LEPTON_CATALOGUE", raising=False)
    return Project(server, request.node.name.replace("_", "-"), tmp_path)


def test_a_version_is_what_the_store_has(project: Project) -> None:
    made = project.read()
    assert (made.digest, made.size, made.image) == (project.digest, sum(map(len, FILES.values())), IMAGE)
    assert made.server.command == ["mlserver", "start", "{model_dir}"]


def test_pods_reach_prometheus_by_its_service(project: Project) -> None:
    assert project.read().prometheus == "http://prometheus.lepton.svc:9090"
    elsewhere = {"metrics_url": "https://prometheus.example.org"}
    assert project.read(platform=elsewhere).prometheus == "https://prometheus.example.org"


def test_the_catalogue_says_the_stage(project: Project) -> None:
    assert project.read().stage is None
    (project.root / ".state").mkdir()
    with Catalogue(f"sqlite:///{project.root / '.state' / 'catalogue.sqlite'}") as catalogue:
        assert project.read().stage is None
        artifact = Artifact.find(project.store, "tumour", "1.0.0")
        catalogue.register(artifact.description, artifact.digest, artifact.size, project.location, who="ada")
        catalogue.promote("tumour", "1.0.0", who="ada", why="it is fine")
    assert project.read().stage == "testing"


def test_a_catalogue_that_cannot_be_read_stops_no_deploy(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project.root / "notes.txt"
    file.write_text("no database at all, but long enough for one to be looked for in it" * 10)
    monkeypatch.setenv("LEPTON_CATALOGUE", f"sqlite:///{file}")
    assert project.read().stage is None


def test_a_store_that_pods_do_not_reach_is_refused(project: Project) -> None:
    with pytest.raises(VersionRefused, match=r"is the folder /srv/store.*oci://"):
        project.read(platform={"artifact_store": "/srv/store"})


def test_a_team_that_the_environment_does_not_know_is_refused(project: Project) -> None:
    with pytest.raises(VersionRefused, match=r"team imaging has no place in dev, whose teams are diagnostics"):
        project.read(team="imaging")


def test_a_version_that_is_in_no_store_is_refused(project: Project) -> None:
    with pytest.raises(NotInStore, match=r"of tumour it has 1\.0\.0"):
        project.read(version="2.0.0")


def test_another_artifact_than_the_configs_is_refused(project: Project) -> None:
    other = f"sha256:{'0' * 64}"
    with pytest.raises(VersionRefused, match=f"artifact: given {other}: .* as {project.digest}"):
        project.read(artifact=other)


def test_an_environment_that_asks_for_signatures_refuses_without_and_has_the_puller_verify_with(
    project: Project,
) -> None:
    key = PrivateKey(Ed25519PrivateKey.generate())
    keys = {"keys": [{"name": "team.pub", "pem": key.public.pem}], "teams": {}}
    with pytest.raises(Untrusted):
        project.read(platform={"trust": {"required": True, **keys}})
    assert project.read(platform={"trust": {"required": False, **keys}}).trusted_keys == ()
    sign(Artifact.find(project.store, "tumour", "1.0.0"), key, "ada@example.org")
    made = project.read(platform={"trust": {"required": True, **keys}})
    assert made.trusted_keys == (key.public.pem,)
    assert made.provenance["lepton/signed-by"] == key.public.fingerprint
