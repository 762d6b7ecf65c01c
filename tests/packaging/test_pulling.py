"""What a version's init container runs: the right files, verified and whole, or none."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.keys import PrivateKey
from model_packaging.signing import sign
from model_packaging.stores.registry import Registry
from tests.packaging.model_folders import FILES, tree
from tests.packaging.registry_server import PASSWORD, USERNAME, Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With TLS and a login."""
    with serving(tmp_path_factory.mktemp("registry"), login=True, tls=True) as running:
        yield running


class Pod:
    """An empty volume, and the init container's environment."""

    def __init__(self, server: Server, prefix: str, folder: Path) -> None:
        self.store: Registry = server.store(prefix)
        self.target = folder / "models" / "model"
        self.target.parent.mkdir(parents=True)
        self._folder = folder
        login = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": login}}}))
        self.environment = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "DOCKER_CONFIG": str(folder),
            "LEPTON_REGISTRY_CA": server.environ["LEPTON_REGISTRY_CA"],
        }

    def pull(self, name: str, *keys: PrivateKey) -> subprocess.CompletedProcess[str]:
        command = ["lepton", "package", "pull", self.store.location, name, str(self.target)]
        for number, key in enumerate(keys):
            file = self._folder / f"{number}.pub"
            file.write_text(key.public.pem)
            command += ["--key", str(file)]
        return subprocess.run(
            command, cwd=self._folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def pod(server: Server, request: pytest.FixtureRequest, tmp_path: Path) -> Pod:
    return Pod(server, request.node.name.replace("_", "-"), tmp_path / "pod")


@pytest.fixture
def artifact(pod: Pod, folder: Path) -> Artifact:
    build_artifact(folder, "tumour", "1.0.0", pod.store)
    return Artifact.find(pod.store, "tumour", "1.0.0")


def named(artifact: Artifact) -> str:
    return f"{artifact.model}@{artifact.digest}"


def new_key() -> PrivateKey:
    return PrivateKey(Ed25519PrivateKey.generate())


def test_the_files_come_with_the_login_of_a_pull_secret(pod: Pod, artifact: Artifact) -> None:
    done = pod.pull(named(artifact))
    assert done.returncode == 0, done.stderr
    assert tree(pod.target) == FILES
    assert artifact.digest in done.stdout


def test_without_a_login_nothing_comes_and_the_error_says_how_to_log_in(pod: Pod, artifact: Artifact) -> None:
    (Path(pod.environment["DOCKER_CONFIG"]) / "config.json").unlink()
    done = pod.pull(named(artifact))
    assert done.returncode == 1
    assert "docker login" in done.stderr
    assert not pod.target.exists()


def test_a_digest_that_the_store_has_not_is_named(pod: Pod, artifact: Artifact) -> None:
    absent = f"sha256:{'0' * 64}"
    done = pod.pull(f"tumour@{absent}")
    assert done.returncode == 1
    assert absent in done.stderr
    assert not pod.target.exists()


def test_of_a_damaged_artifact_nothing_is_served(pod: Pod, artifact: Artifact, server: Server) -> None:
    part = next(part for part in artifact.parts if str(part.file) == "model.bin")
    blob = server.blob(part.digest)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = pod.pull(named(artifact))
    finally:
        blob.write_bytes(content)
    assert done.returncode == 1
    assert "does not match its digest" in done.stderr
    assert not pod.target.exists()


def test_with_trusted_keys_a_version_that_nobody_signed_is_refused(pod: Pod, artifact: Artifact) -> None:
    done = pod.pull(named(artifact), new_key())
    assert done.returncode == 1
    assert not pod.target.exists()


def test_with_trusted_keys_the_signature_of_a_stranger_is_refused(pod: Pod, artifact: Artifact) -> None:
    sign(artifact, new_key(), "mallory@example.org")
    done = pod.pull(named(artifact), new_key(), new_key())
    assert done.returncode == 1
    assert not pod.target.exists()


def test_one_of_the_trusted_keys_is_enough(pod: Pod, artifact: Artifact) -> None:
    team = new_key()
    sign(artifact, team, "ada@example.org")
    done = pod.pull(named(artifact), new_key(), team)
    assert done.returncode == 0, done.stderr
    assert tree(pod.target) == FILES


def test_a_pod_whose_node_restarts_gets_harmed_files_anew(pod: Pod, artifact: Artifact) -> None:
    assert pod.pull(named(artifact)).returncode == 0
    (pod.target / "model.bin").write_bytes(b"weights" * 999)
    (pod.target / "stray").touch()
    assert pod.pull(named(artifact)).returncode == 0
    assert tree(pod.target) == FILES


def test_a_version_in_place_of_a_digest_is_wrong_usage(pod: Pod) -> None:
    done = pod.pull("tumour:1.0.0")
    assert done.returncode == 2
    assert "MODEL@DIGEST" in done.stderr
