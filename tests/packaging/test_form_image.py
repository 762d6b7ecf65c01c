"""Images written straight as layers on a base: what is in them, what they run, and that they are always the same."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from infra.settings.version import ServerSettings
from model_packaging.artifact import Artifact
from model_packaging.digests import digest_of
from model_packaging.errors import DigestMismatch, ExportRefused, TargetExists
from model_packaging.forms import Exported, Image, export
from model_packaging.forms.image import MODEL_DIR, layer_groups
from model_packaging.forms.tar import HashingTarget, file_header, write_archive
from model_packaging.manifest import Files, Part
from model_packaging.progress import Meter
from tests.deadline import until
from tests.packaging.form_artifacts import FILES, GIT, SAMPLE, harm, make_artifact, tree
from tests.packaging.form_bases import digest, layer, make_layout

MEBIBYTE = 2**20
BASE_LAYER = layer({"bin/tool": b"tool"})


@dataclass
class Written:
    """An image layout, read with nothing of the product's."""

    files: dict[str, bytes]

    @classmethod
    def at(cls, target: Path) -> Written:
        if target.is_dir():
            return cls(tree(target))
        with tarfile.open(target) as archive:
            members = [member for member in archive if member.isfile()]
            return cls({member.name: archive.extractfile(member).read() for member in members})  # type: ignore[union-attr]

    def document(self, descriptor: dict[str, Any]) -> Any:
        return json.loads(self.blob(descriptor))

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        content = self.files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
        assert (digest(content), len(content)) == (descriptor["digest"], descriptor["size"])
        return content

    @property
    def entry(self) -> dict[str, Any]:
        (entry,) = json.loads(self.files["index.json"])["manifests"]
        return entry

    @property
    def manifest(self) -> Any:
        return self.document(self.entry)

    @property
    def config(self) -> Any:
        return self.document(self.manifest["config"])

    @property
    def layers(self) -> list[bytes]:
        return [self.blob(descriptor) for descriptor in self.manifest["layers"]]

    def unpack(self, folder: Path) -> Path:
        for content in self.layers:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="tar")
        return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "made")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_layout(tmp_path / "base", [BASE_LAYER])


def write(artifact: Artifact, form: Image, target: Path) -> Written:
    export(artifact, form, target)
    return Written.at(target)


# -- what is in it


@pytest.mark.parametrize("name", ["image", "image.tar"])
def test_the_model_lies_on_top_of_what_the_base_holds(
    artifact: Artifact, base: Path, tmp_path: Path, name: str
) -> None:
    written = write(artifact, Image(base), tmp_path / name)
    expected = {f"model/{path}": content for path, content in FILES.items()}
    assert tree(written.unpack(tmp_path / "root")) == {"bin/tool": b"tool"} | expected


def test_the_config_names_the_content_of_every_layer(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    written = write(artifact, Image(base), tmp_path / "image")
    assert written.config["rootfs"]["diff_ids"] == [digest(content) for content in written.layers]
    assert len(written.config["history"]) == len(written.layers)


def test_folder_and_archive_are_the_same_image(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    folder = export(artifact, Image(base), tmp_path / "image")
    archive = export(artifact, Image(base), tmp_path / "image.tar")
    assert folder.digest == archive.digest == Written.at(tmp_path / "image.tar").entry["digest"]
    files = Written.at(tmp_path / "image.tar").files
    assert {name: content for name, content in files.items() if name != "manifest.json"} == tree(tmp_path / "image")


def test_dockers_own_manifest_leads_to_the_same_image(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    written = write(artifact, Image(base, tag="team/tumour:1"), tmp_path / "image.tar")
    (saved,) = json.loads(written.files["manifest.json"])
    assert saved["RepoTags"] == ["team/tumour:1"]
    assert json.loads(written.files[saved["Config"]]) == written.config
    assert [written.files[name] for name in saved["Layers"]] == written.layers


def test_an_export_from_another_store_folder_and_time_is_the_same_archive(
    artifact: Artifact, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_artifact(tmp_path / "elsewhere")
    other_base = make_layout(tmp_path / "copy" / "base", [BASE_LAYER])
    first = export(artifact, Image(base), tmp_path / "one.tar")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.chdir(tmp_path / "copy")
    mask = os.umask(0o077)
    try:
        second = export(other, Image(other_base), Path("two.tar"))
    finally:
        os.umask(mask)
    assert first.digest == second.digest
    assert (tmp_path / "one.tar").read_bytes() == Path("two.tar").read_bytes()


def test_a_layers_bytes_never_change(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    # Were they to, every image would be pulled anew after an upgrade.
    written = write(artifact, Image(base), tmp_path / "image")
    expected = "sha256:7a236b72f1307d58b5682e336228853c06a89e99ae9c977738b83efed122f898"
    assert written.manifest["layers"][-1]["digest"] == expected


def test_what_was_exported_is_told(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    done: Exported = export(artifact, Image(base), tmp_path / "image.tar")
    written = Written.at(tmp_path / "image.tar")
    assert done.document["name"] == "tumour:1.2.0"
    assert done.document["image_id"] == written.manifest["config"]["digest"]
    assert done.document["platform"] == "linux/amd64"
    assert done.document["layers"] == written.manifest["layers"][1:]


def test_progress_ends_at_the_whole(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    export(artifact, Image(base), tmp_path / "image", progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


# -- how it is layered


def described(sizes: dict[str, int]) -> Files:
    return {
        PurePosixPath(name): (Part(PurePosixPath(name), 0, size, "d", size, compressed=False, content="d"),)
        for name, size in sizes.items()
    }


def names(groups: list[Files]) -> list[list[str]]:
    return [[str(path) for path in group] for group in groups]


def test_each_large_file_has_a_layer_and_the_small_ones_share_the_last() -> None:
    files = described({"a.json": 1, "b.bin": 64 * MEBIBYTE, "c.txt": 64 * MEBIBYTE - 1, "d.bin": 80 * MEBIBYTE})
    assert names(layer_groups(files)) == [["b.bin"], ["d.bin"], ["a.json", "c.txt"]]


def test_a_model_of_large_files_alone_has_no_empty_layer() -> None:
    assert names(layer_groups(described({"b.bin": 64 * MEBIBYTE}))) == [["b.bin"]]


def test_many_large_files_share_layers_in_their_order() -> None:
    groups = layer_groups(described({f"{number:03}.bin": 64 * MEBIBYTE for number in range(163)}))
    assert len(groups) == 55
    assert [path for group in names(groups) for path in group] == [f"{number:03}.bin" for number in range(163)]


def test_versions_share_the_layer_of_an_unchanged_large_file(tmp_path: Path) -> None:
    weights = bytes(64 * MEBIBYTE)
    first, second = (
        layer_digests(make_artifact(tmp_path, {"w.bin": weights, "s.json": text}, version=version, part_bytes=2**30))
        for version, text in (("1.0.0", b"1"), ("1.1.0", b"2"))
    )
    assert first[0] == second[0]
    assert first[1] != second[1]


def layer_digests(artifact: Artifact) -> list[str]:
    targets: list[HashingTarget] = []
    for files in layer_groups(artifact.files):
        targets.append(HashingTarget())
        write_archive(artifact, files, MODEL_DIR, targets[-1], Meter(None, 0))
    return [target.digest for target in targets]


def test_a_base_with_too_many_layers_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", [layer({f"{number}": b""}) for number in range(120)])
    with pytest.raises(ExportRefused, match="the base has 120 layers and the model 1"):
        export(artifact, Image(base), tmp_path / "image")


def test_a_file_beyond_8_gib_can_be_in_a_layer(tmp_path: Path) -> None:
    size = 9 * 2**30
    with open(tmp_path / "layer.tar", "wb") as file:
        file.write(file_header("model/weights.bin", size))
        file.truncate(file.tell() + size + 1024)
    with tarfile.open(tmp_path / "layer.tar") as archive:
        assert [(member.name, member.size) for member in archive] == [("model/weights.bin", size)]


# -- what it runs


def test_the_servers_command_stands_in_place_of_the_bases(artifact: Artifact, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", [BASE_LAYER], config={"Entrypoint": ["/bin/sh"], "Cmd": ["-c", "x"]})
    config = write(artifact, Image(base), tmp_path / "image").config["config"]
    assert config["Entrypoint"] == ["/oip-server"]
    assert " ".join(config["Cmd"]) == "-host 0.0.0.0 -http-port 8080 -model tumour -version 1.2.0 -quiet"
    assert config["ExposedPorts"] == {"8080/tcp": {}}


def test_the_servers_variables_join_the_bases(artifact: Artifact, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", [BASE_LAYER], config={"Env": ["PATH=/bin", "WEIGHTS=old"]})
    config = write(artifact, Image(base), tmp_path / "image").config["config"]
    assert config["Env"] == ["PATH=/bin", "WEIGHTS=/model/weights.bin", 'PRICE=a "$5" \\ note']


def test_a_server_that_is_given_goes_before_the_packages(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    server = ServerSettings(command=["serve", "{grpc_port}", "{metrics_port}"], grpc=True, metrics_path="/metrics")
    config = write(artifact, Image(base, server=server), tmp_path / "image").config["config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["serve"], ["8081", "8082"])
    assert sorted(config["ExposedPorts"]) == ["8080/tcp", "8081/tcp", "8082/tcp"]


@pytest.mark.parametrize(("given", "found"), [("", "65532:65532"), ("0:0", "65532:65532"), ("app", "app")])
def test_the_server_does_not_run_as_root(artifact: Artifact, tmp_path: Path, given: str, found: str) -> None:
    base = make_layout(tmp_path / "base", [BASE_LAYER], config={"User": given})
    assert write(artifact, Image(base), tmp_path / "image").config["config"]["User"] == found


def test_a_user_can_be_named(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    assert write(artifact, Image(base, user="1000"), tmp_path / "image").config["config"]["User"] == "1000"


@pytest.mark.parametrize("user", ["1000\nRUN x", "$USER", "a:b:c", " "])
def test_a_user_that_is_none_is_refused(artifact: Artifact, base: Path, tmp_path: Path, user: str) -> None:
    with pytest.raises(ExportRefused, match="a user is USER"):
        export(artifact, Image(base, user=user), tmp_path / "image")


@pytest.mark.parametrize("name", ["A B", "A=1", "A\nUSER root", ""])
def test_a_variable_whose_name_is_none_is_refused(artifact: Artifact, base: Path, tmp_path: Path, name: str) -> None:
    server = ServerSettings(command=["serve"], env={name: "value"})
    with pytest.raises(ExportRefused, match="a variable's name"):
        export(artifact, Image(base, server=server), tmp_path / "image")


def test_labels_say_what_the_model_is_and_not_what_the_base_was(artifact: Artifact, tmp_path: Path) -> None:
    labels = {"org.opencontainers.image.created": "2020", "org.opencontainers.image.url": "base", "vendor": "v"}
    base = make_layout(tmp_path / "base", [BASE_LAYER], config={"Labels": labels})
    written = write(artifact, Image(base, source="https://example.org/models"), tmp_path / "image")
    base_digest = json.loads((base / "index.json").read_bytes())["manifests"][0]["digest"]
    said = {
        "org.opencontainers.image.title": "tumour",
        "org.opencontainers.image.version": "1.2.0",
        "org.opencontainers.image.revision": GIT.commit,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.authors": "Vision team",
        "org.opencontainers.image.source": "https://example.org/models",
        "org.opencontainers.image.base.digest": base_digest,
        "lepton.artifact": artifact.digest,
    }
    assert written.config["config"]["Labels"] == said | {"vendor": "v"}
    assert written.manifest["annotations"] == said


def test_the_rest_of_the_bases_settings_and_its_history_stay(artifact: Artifact, tmp_path: Path) -> None:
    history = [{"created_by": "made"}, {"created_by": "ENV", "empty_layer": True}]
    base = make_layout(
        tmp_path / "base", [BASE_LAYER], platform="linux/arm64/v8", config={"WorkingDir": "/srv"}, history=history
    )
    written = write(artifact, Image(base), tmp_path / "image")
    assert written.config["config"]["WorkingDir"] == "/srv"
    assert written.config["history"][:2] == history
    assert written.entry["platform"] == {"os": "linux", "architecture": "arm64", "variant": "v8"}
    assert (written.config["architecture"], written.config["variant"]) == ("arm64", "v8")


@pytest.mark.parametrize(
    ("tag", "full"),
    [
        ("tumour:1", "docker.io/library/tumour:1"),
        ("team/tumour:1", "docker.io/team/tumour:1"),
        ("localhost/tumour:1", "localhost/tumour:1"),
        ("registry.example:5000/team/tumour:1", "registry.example:5000/team/tumour:1"),
    ],
)
def test_the_image_has_the_name_that_engines_will_give_it(
    artifact: Artifact, base: Path, tmp_path: Path, tag: str, full: str
) -> None:
    entry = write(artifact, Image(base, tag=tag), tmp_path / "image").entry
    assert entry["annotations"] == {
        "io.containerd.image.name": full,
        "org.opencontainers.image.ref.name": "1",
    }


@pytest.mark.parametrize(
    "tag", ["tumour", "Tumour:1", "tumour:", "tumour:-1", "a//b:1", "tumour:1\n", "x:" + "1" * 129]
)
def test_a_tag_that_no_engine_takes_is_refused(artifact: Artifact, base: Path, tmp_path: Path, tag: str) -> None:
    with pytest.raises(ExportRefused, match="an image's name is"):
        export(artifact, Image(base, tag=tag), tmp_path / "image")


def test_the_image_serves_the_models_sample(artifact: Artifact, tmp_path: Path, model_server: Path) -> None:
    base = make_layout(tmp_path / "base", [layer({"oip-server": model_server.read_bytes()})])
    written = write(artifact, Image(base), tmp_path / "image")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(written, written.unpack(tmp_path / "root"), port):
        until(lambda: answer(port, "GET", "/v2/health/ready") is not None, 60, what="the server is ready")
        said = answer(port, "POST", "/v2/models/tumour/infer", SAMPLE)
    assert said is not None
    assert said["model_version"] == "1.2.0"


@contextlib.contextmanager
def running(image: Written, root: Path, port: int) -> Iterator[None]:
    """Runs the image's command as its user, in its files alone. Without a network of its own, at another port."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder the root of a process")
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)
    config = image.config["config"]
    command = [*config["Entrypoint"], *(str(port) if part == "8080" else part for part in config["Cmd"])]
    process = subprocess.Popen(
        ["chroot", f"--userspec={config['User']}", str(root), *command],
        env=dict(variable.split("=", 1) for variable in config["Env"]) | {"PATH": os.environ["PATH"]},
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def answer(port: int, method: str, path: str, body: Any = None) -> Any:
    """What the server answers; None where it doesn't, or not with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        content = response.read()
        return json.loads(content or b"{}") if response.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


# -- what is refused


def test_a_harmed_artifact_leaves_no_image(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    harm(artifact, "weights.bin")
    for name in ("image", "image.tar"):
        with pytest.raises(DigestMismatch, match=r"weights\.bin"):
            export(artifact, Image(base), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "made"]


@pytest.mark.parametrize("name", ["image", "image.tar"])
def test_what_is_there_is_kept_unless_asked(artifact: Artifact, base: Path, tmp_path: Path, name: str) -> None:
    first = export(artifact, Image(base), tmp_path / name)
    form = Image(base, tag="other:1")
    with pytest.raises(TargetExists):
        export(artifact, form, tmp_path / name)
    assert Written.at(tmp_path / name).entry["annotations"]["org.opencontainers.image.ref.name"] == "1.2.0"
    second = export(artifact, form, tmp_path / name, replace=True)
    assert Written.at(tmp_path / name).entry["annotations"]["org.opencontainers.image.ref.name"] == "1"
    assert first.digest == second.digest
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["base", name, "made"]


def test_a_layout_that_no_export_made_is_never_replaced(artifact: Artifact, base: Path) -> None:
    before = sorted(base.rglob("*"))
    with pytest.raises(ExportRefused, match="is not what an earlier export as image left"):
        export(artifact, Image(base), base, replace=True)
    assert sorted(base.rglob("*")) == before


def test_an_image_without_a_target_is_refused(artifact: Artifact, base: Path) -> None:
    with pytest.raises(ExportRefused, match="no target is given"):
        export(artifact, Image(base), None)


# -- what it is built on


def test_a_packed_base_is_taken_over_as_it_is(artifact: Artifact, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", [BASE_LAYER], packed=True)
    written = write(artifact, Image(base), tmp_path / "image")
    assert written.manifest["layers"][0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert gzip.decompress(written.layers[0]) == BASE_LAYER
    assert written.config["rootfs"]["diff_ids"][0] == digest_of(BASE_LAYER)


def test_a_layer_that_a_base_has_twice_is_written_once(artifact: Artifact, tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", [BASE_LAYER, layer({"b": b"b"}), BASE_LAYER])
    export(artifact, Image(base), tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as archive:
        members = archive.getnames()
    assert len(members) == len(set(members))
    assert len(Written.at(tmp_path / "image.tar").layers) == 4


def test_an_image_can_be_the_base_of_another(artifact: Artifact, base: Path, tmp_path: Path) -> None:
    export(artifact, Image(base), tmp_path / "first.tar")
    written = write(artifact, Image(tmp_path / "first.tar"), tmp_path / "second")
    assert len(written.layers) == 3
