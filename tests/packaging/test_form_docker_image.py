"""Images and a real Docker Engine: it loads those that were written without it, and builds its own."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import stat
import tarfile
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from docker import DockerClient
from docker.models.images import Image as EngineImage

from model_packaging.artifact import Artifact
from model_packaging.errors import DigestMismatch, DockerFailed, ExportRefused
from model_packaging.forms import Image, export
from tests.deadline import until
from tests.docker.engine import any_engine, build_image
from tests.packaging.form_artifacts import FILES, GIT, SAMPLE, harm, make_artifact
from tests.packaging.form_bases import layer, make_layout

NAME = f"lepton-tests/forms-{os.getpid()}"


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerClient]:
    """The engine that the exports find too; nothing of the tests' is left in it."""
    with any_engine() as (client, _):
        yield client


@pytest.fixture(scope="module")
def base(engine: DockerClient, model_server: Path) -> Iterator[str]:
    name = f"{NAME}:base"
    build_image(engine, name, {"oip-server": model_server})
    yield name
    engine.images.remove(name, force=True)


@pytest.fixture
def tag(engine: DockerClient) -> Iterator[str]:
    """A name for the test's image, which is gone afterwards."""
    name = f"{NAME}:made"
    yield name
    with contextlib.suppress(docker.errors.ImageNotFound):
        engine.images.remove(name, force=True)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "made")


def load(engine: DockerClient, archive: Path) -> EngineImage:
    with open(archive, "rb") as content:
        (image,) = engine.images.load(content)
    return image


def served(engine: DockerClient, image: str) -> Any:
    """What a container of the image answers to the model's sample."""
    network = engine.networks.create(f"lepton-tests-{os.getpid()}", driver="bridge")
    try:
        container = engine.containers.run(
            image, detach=True, network=network.name, ports={"8080/tcp": ("127.0.0.1", 0)}
        )
        try:
            container.reload()
            port = container.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
            until(lambda: responds(f"http://127.0.0.1:{port}/v2/health/ready"), what="the server is ready")
            url = f"http://127.0.0.1:{port}/v2/models/tumour/infer"
            with urllib.request.urlopen(url, json.dumps(SAMPLE).encode(), timeout=10) as response:
                return json.loads(response.read())
        finally:
            container.remove(force=True)
    finally:
        network.remove()


def responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def model_files(engine: DockerClient, image: str) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and owner of the files in an image's `/model`."""
    container = engine.containers.create(image)
    try:
        stream, _ = container.get_archive("/model")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            members = [member for member in archive if member.isfile()]
            return {
                # The engine puts the kind of file into the mode, too.
                member.name.removeprefix("model/"): (
                    archive.extractfile(member).read(),  # type: ignore[union-attr]
                    stat.S_IMODE(member.mode),
                    member.uid,
                )
                for member in members
            }
    finally:
        container.remove()


EXPECTED = {name: (content, 0o644, 0) for name, content in FILES.items()}


# -- written without an engine


def test_the_engine_runs_an_image_that_was_written_without_it(
    engine: DockerClient, artifact: Artifact, model_server: Path, tag: str, tmp_path: Path
) -> None:
    layout = make_layout(tmp_path / "base", [layer({"oip-server": model_server.read_bytes()})])
    done = export(artifact, Image(layout, tag=tag), tmp_path / "image.tar")
    image = load(engine, tmp_path / "image.tar")
    assert (image.tags, image.id) == ([tag], done.document["image_id"])
    assert served(engine, tag)["model_version"] == "1.2.0"
    assert model_files(engine, tag) == EXPECTED


def test_what_the_engine_saves_is_a_base(
    engine: DockerClient, base: str, artifact: Artifact, tag: str, tmp_path: Path
) -> None:
    with open(tmp_path / "base.tar", "wb") as file:
        for chunk in engine.images.get(base).save():
            file.write(chunk)
    export(artifact, Image(tmp_path / "base.tar", tag=tag), tmp_path / "image.tar")
    load(engine, tmp_path / "image.tar")
    assert served(engine, tag)["model_version"] == "1.2.0"


# -- built by the engine


def test_the_engine_builds_an_image_that_serves(engine: DockerClient, base: str, artifact: Artifact, tag: str) -> None:
    done = export(artifact, Image(base, tag=tag), None)
    assert (done.place, done.digest) == (tag, engine.images.get(tag).id)
    assert served(engine, tag)["model_version"] == "1.2.0"
    assert model_files(engine, tag) == EXPECTED


def test_a_built_image_runs_what_a_written_one_does(
    engine: DockerClient, base: str, artifact: Artifact, tag: str, tmp_path: Path
) -> None:
    export(artifact, Image(base, tag=tag), None)
    built = engine.images.get(tag).attrs["Config"]
    layout = make_layout(tmp_path / "base", [layer({"x": b""})])
    export(artifact, Image(layout, tag=tag), tmp_path / "image.tar")
    written = load(engine, tmp_path / "image.tar").attrs["Config"]
    for key in ("Entrypoint", "Cmd", "User", "ExposedPorts"):
        assert built[key] == written[key]
    # The engine gives every image a PATH.
    assert [variable for variable in built["Env"] if not variable.startswith("PATH=")] == written["Env"]


def test_a_built_image_says_what_it_is(engine: DockerClient, base: str, artifact: Artifact, tag: str) -> None:
    export(artifact, Image(base, tag=tag), None)
    labels = engine.images.get(tag).labels
    assert labels["org.opencontainers.image.revision"] == GIT.commit
    assert labels["org.opencontainers.image.base.name"] == base
    assert labels["lepton.artifact"] == artifact.digest


def test_nothing_is_named_where_the_artifact_is_harmed(
    engine: DockerClient, base: str, artifact: Artifact, tag: str
) -> None:
    harm(artifact, "weights.bin")
    with pytest.raises(DigestMismatch, match=r"weights\.bin"):
        export(artifact, Image(base, tag=tag), None)
    with pytest.raises(docker.errors.ImageNotFound):
        engine.images.get(tag)


def test_a_base_that_the_engine_cannot_have_is_named(engine: DockerClient, artifact: Artifact, tag: str) -> None:
    with pytest.raises(DockerFailed, match=r"does not have 'localhost:1/none:1' and could not pull it"):
        export(artifact, Image("localhost:1/none:1", tag=tag), None)


def test_a_variable_that_no_dockerfile_can_hold_is_named_without_its_value(
    engine: DockerClient, base: str, tmp_path: Path, tag: str
) -> None:
    server = {"command": ["/oip-server"], "env": {"KEY": "secret\nUSER root"}}
    artifact = make_artifact(tmp_path / "made", package={"server": server})
    with pytest.raises(ExportRefused, match=r"env\.KEY holds a line break") as refusal:
        export(artifact, Image(base, tag=tag), None)
    assert "secret" not in str(refusal.value)


# -- without any


def test_without_an_engine_the_ways_out_are_named(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with warnings.catch_warnings():
        # The client leaves the socket of an attempt that failed to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(DockerFailed, match=r"no Docker Engine answers at unix://.*needs no engine"):
            export(artifact, Image("python:3.11"), None)
        gc.collect()


def test_a_target_for_an_image_that_an_engine_keeps_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="kept by the Docker Engine"):
        export(artifact, Image("python:3.11"), tmp_path / "image.tar")
