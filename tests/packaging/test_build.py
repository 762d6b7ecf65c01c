"""Building an artifact: what goes into it, what is refused, and that the same inputs give the same digest."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings.loading import SettingsError
from model_packaging.artifact import Artifact
from model_packaging.build import PART_BYTES, build_artifact
from model_packaging.errors import FolderRefused, PickleRefused
from model_packaging.files import Stretch, list_files
from model_packaging.layers import Form
from model_packaging.manifest import GitSource
from model_packaging.sources.findings import Findings
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import blob, leftovers, tree

PACKAGE: dict[str, Any] = {
    "framework": {"name": "scikit-learn", "version": "1.9.1"},
    "training_data": "https://example.org/data.csv",
    "licence": "Apache-2.0",
    "signature": {
        "inputs": [{"name": "features", "shape": [-1, 2], "datatype": "FP64"}],
        "outputs": [{"name": "predict", "shape": [-1, 1], "datatype": "INT64"}],
    },
    "evaluation": {"accuracy": 0.97},
    "samples": [{"inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP64", "data": [0.5, 1e-3]}]}],
}
GIT = GitSource(commit="0123456789abcdef0123456789abcdef01234567", branch="main", dirty=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def make_folder(folder: Path, package: dict[str, Any] = PACKAGE) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "package.yaml").write_text(yaml.safe_dump(package))
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "model-settings.json").write_text("{}")
    (folder / "sub" / "README.md").write_text("# About")
    return folder


def package_with(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (PACKAGE | changes).items() if value is not None}


def refuse(tmp_path: Path, store: Layout, package: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as raised:
        build_artifact(make_folder(tmp_path / "refused", package), "tumour", "1.0.0", store)
    assert not store.path.exists()
    return str(raised.value)


# What goes in


def test_the_description_says_what_package_yaml_and_git_say(folder: Path, store: Layout) -> None:
    build_artifact(folder, "tumour", "1.0.0", store, git=GIT)
    description = Artifact.find(store, "tumour", "1.0.0").description
    assert (description.model, description.version, description.git) == ("tumour", "1.0.0", GIT)
    assert description.package.model_dump(mode="json", exclude_defaults=True) == PACKAGE


def test_each_file_but_package_yaml_is_a_layer_in_the_order_of_names(folder: Path, store: Layout) -> None:
    built = build_artifact(folder, "tumour", "1.0.0", store)
    layers = [
        (layer.annotations["org.opencontainers.image.title"], layer.media_type, layer.size)
        for layer in Artifact.at(store, "tumour", built.digest).manifest.layers
    ]
    assert layers == [
        ("model-settings.json", "application/vnd.cncf.model.weight.config.v1.raw", 2),
        ("model.bin", "application/vnd.cncf.model.weight.v1.raw", 7),
        ("sub/README.md", "application/vnd.cncf.model.doc.v1.raw", 7),
    ]
    assert built.size_bytes == 16


def test_the_config_is_one_that_modelpack_readers_understand(folder: Path, store: Layout) -> None:
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    built = build_artifact(folder, "tumour", "1.0.0", store, git=GIT, created=created)
    manifest = Artifact.at(store, "tumour", built.digest).manifest
    config = json.loads(blob(store, manifest.config.digest).read_bytes())
    assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
    assert config["descriptor"] == {
        "name": "tumour",
        "version": "1.0.0",
        "revision": GIT.commit,
        "licenses": ["Apache-2.0"],
        "createdAt": "2026-01-02T03:04:05Z",
    }
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer.digest for layer in manifest.layers]}


def test_progress_ends_with_every_byte_of_the_files(folder: Path, store: Layout) -> None:
    told: list[tuple[int, int]] = []
    build_artifact(folder, "tumour", "1.0.0", store, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (16, 16)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# What the files say


def test_a_pickle_is_refused_and_nothing_is_stored(folder: Path, store: Layout) -> None:
    (folder / "model.joblib").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    with pytest.raises(PickleRefused, match=r"model\.joblib is a pickle"):
        build_artifact(folder, "tumour", "1.0.0", store)
    assert not store.path.exists()


def test_a_pickle_that_is_allowed_by_name_is_recorded_for_policies_to_see(tmp_path: Path, store: Layout) -> None:
    folder = make_folder(tmp_path / "model", package_with(allow_pickle=["sub/model.bin"]))
    (folder / "sub" / "model.bin").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    build_artifact(folder, "tumour", "1.0.0", store)
    assert Artifact.find(store, "tumour", "1.0.0").description.pickles == ("sub/model.bin",)


def test_what_the_files_say_themselves_need_not_be_written(tmp_path: Path, store: Layout) -> None:
    folder = make_folder(tmp_path / "model", package_with(licence=None))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# About\n")
    build_artifact(folder, "tumour", "1.0.0", store)
    assert Artifact.find(store, "tumour", "1.0.0").description.package.licence == "Apache-2.0"


def test_what_the_place_says_that_files_were_fetched_from_counts_before_the_files(
    tmp_path: Path, store: Layout
) -> None:
    folder = make_folder(tmp_path / "model", package_with(licence=None))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# About\n")
    build_artifact(folder, "tumour", "1.0.0", store, found=Findings(licence="MIT", git=GIT))
    description = Artifact.find(store, "tumour", "1.0.0").description
    assert (description.package.licence, description.git) == ("MIT", GIT)


# Parts


def test_a_long_file_is_split_and_comes_out_as_it_went_in(folder: Path, store: Layout, tmp_path: Path) -> None:
    content = os.urandom(2_500)
    (folder / "model.bin").write_bytes(content)
    built = build_artifact(folder, "tumour", "1.0.0", store, part_bytes=1_000)
    artifact = Artifact.at(store, "tumour", built.digest)
    titles = [layer.annotations["org.opencontainers.image.title"] for layer in artifact.manifest.layers]
    assert titles[1:4] == ["model.bin.part-00000", "model.bin.part-00001", "model.bin.part-00002"]
    assert (artifact.unpack(tmp_path / "out") / "model.bin").read_bytes() == content


def test_a_part_that_did_not_change_is_stored_once(folder: Path, store: Layout) -> None:
    content = bytearray(os.urandom(5_000))
    (folder / "model.bin").write_bytes(content)
    build_artifact(folder, "tumour", "1.0.0", store, part_bytes=1_000)
    before = set(tree(store.path / "blobs"))
    content[2_500] ^= 1
    (folder / "model.bin").write_bytes(content)
    build_artifact(folder, "tumour", "1.1.0", store, part_bytes=1_000)
    # The part, the config and the manifest.
    assert len(set(tree(store.path / "blobs")) - before) == 3


def test_a_model_of_a_terabyte_stays_within_what_registries_take() -> None:
    layers = len(Form("none", PART_BYTES).stretches(10**12))
    assert layers <= 4_200
    # As many bytes as a layer with the longest numbers takes.
    assert layers * 700 < 4 << 20


def test_an_empty_file_is_kept(folder: Path, store: Layout, tmp_path: Path) -> None:
    (folder / "__init__.py").touch()
    built = build_artifact(folder, "tumour", "1.0.0", store)
    assert (Artifact.at(store, "tumour", built.digest).unpack(tmp_path / "out") / "__init__.py").read_bytes() == b""


# Compression


def test_a_compressed_artifact_is_smaller_and_comes_out_as_it_went_in(
    folder: Path, store: Layout, tmp_path: Path
) -> None:
    (folder / "model.bin").write_bytes(b"again and " * 10_000)
    built = build_artifact(folder, "tumour", "1.0.0", store, compression="zstd", part_bytes=30_000)
    artifact = Artifact.at(store, "tumour", built.digest)
    assert sum(layer.size for layer in artifact.manifest.layers) < 2_000
    assert {layer.media_type for layer in artifact.manifest.layers[1:5]} == {
        "application/vnd.cncf.model.weight.v1.raw+zstd"
    }
    assert (artifact.unpack(tmp_path / "out") / "model.bin").read_bytes() == b"again and " * 10_000


def test_what_compression_makes_no_smaller_stays_as_it_is(folder: Path, store: Layout) -> None:
    (folder / "model.bin").write_bytes(os.urandom(10_000))
    build_artifact(folder, "tumour", "1.0.0", store)
    plain = set(tree(store.path / "blobs"))
    build_artifact(folder, "tumour", "1.1.0", store, compression="zstd")
    # Config and manifest.
    assert len(set(tree(store.path / "blobs")) - plain) == 2


def test_compression_gives_the_same_digest_each_time(folder: Path, tmp_path: Path) -> None:
    (folder / "model.bin").write_bytes(b"again and " * 10_000)
    digests = {
        build_artifact(folder, "tumour", "1.0.0", Layout(tmp_path / name), compression="zstd").digest for name in "ab"
    }
    assert len(digests) == 1


# Digests repeat


def test_the_same_inputs_give_the_same_digest_in_another_place_at_another_time(tmp_path: Path) -> None:
    digests = set[str]()
    for number, order in enumerate((("b", "a/c", "a-b"), ("a-b", "a/c", "b"))):
        folder = tmp_path / f"folder-{number}"
        (folder / "a").mkdir(parents=True)
        (folder / "package.yaml").write_text(yaml.safe_dump(PACKAGE, sort_keys=bool(number)))
        for name in order:
            (folder / name).write_text(name)
            os.utime(folder / name, (number, number))
            (folder / name).chmod(0o600 | number)
            if os.geteuid() == 0:
                os.chown(folder / name, 1000 + number, 1000)
        digests.add(build_artifact(folder, "tumour", "1.0.0", Layout(tmp_path / f"store-{number}"), git=GIT).digest)
    assert len(digests) == 1


BUILD = (
    "import sys; from pathlib import Path; from model_packaging.build import build_artifact; "
    "from model_packaging.stores import open_store; "
    "print(build_artifact(Path(sys.argv[1]), 'tumour', '1.0.0', open_store(sys.argv[2])).digest)"
)


def build_in_a_process(folder: Path, store: Path, **more: Any) -> str:
    command = [sys.executable, "-c", BUILD, str(folder), str(store)]
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout.strip()


@pytest.mark.parametrize(
    "machine",
    [
        {"umask": 0o077},
        {"env": {**os.environ, "LC_ALL": "C", "PYTHONHASHSEED": "7"}},
        {"env": {**os.environ, "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "8"}},
    ],
    ids=["umask", "locale", "time zone"],
)
def test_the_machine_has_no_say_in_the_digest(tmp_path: Path, machine: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "model")
    for name in ("Ä", "ä", "Z", "a", "z", "µ", "ﬀ", "😀"):
        (folder / name).write_text(name)
    here = build_artifact(folder, "tumour", "1.0.0", Layout(tmp_path / "here")).digest
    assert build_in_a_process(folder, tmp_path / "there", **machine) == here


def test_a_locale_that_takes_names_for_something_else_is_told_how_to_read_them(folder: Path, tmp_path: Path) -> None:
    (folder / "Ä").touch()
    legacy = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with pytest.raises(subprocess.CalledProcessError) as raised:
        build_in_a_process(folder, tmp_path / "there", env=legacy)
    assert "set PYTHONUTF8=1" in raised.value.stderr


@pytest.mark.parametrize("other", ["content", "name", "commit", "evaluation", "version"])
def test_other_inputs_give_another_digest(tmp_path: Path, other: str) -> None:
    one = make_folder(tmp_path / "one")
    changed = make_folder(tmp_path / "two", package_with(evaluation={"f1": 1.0}) if other == "evaluation" else PACKAGE)
    if other == "content":
        (changed / "model.bin").write_bytes(b"weightz")
    if other == "name":
        (changed / "model.bin").rename(changed / "model.dat")
    git = GIT.model_copy(update={"dirty": True}) if other == "commit" else GIT
    version = "1.0.1" if other == "version" else "1.0.0"
    first = build_artifact(one, "tumour", "1.0.0", Layout(tmp_path / "a"), git=GIT)
    second = build_artifact(changed, "tumour", version, Layout(tmp_path / "b"), git=git)
    assert first.digest != second.digest


# What is refused


def test_a_link_in_the_folder_is_refused_and_named(folder: Path, store: Layout) -> None:
    (folder / "sub" / "shadow").symlink_to("/etc/hostname")
    with pytest.raises(FolderRefused, match=r"sub/shadow is a symbolic link"):
        build_artifact(folder, "tumour", "1.0.0", store)
    assert not store.path.exists()


def test_a_link_to_a_folder_is_refused_and_named(folder: Path, store: Layout, tmp_path: Path) -> None:
    (folder / "data").symlink_to(tmp_path)
    with pytest.raises(FolderRefused, match="data is a symbolic link"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_named_pipe_is_refused_and_does_not_hang(folder: Path, store: Layout) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(FolderRefused, match="pipe is neither a file nor a folder"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_name_that_is_not_utf8_is_refused(folder: Path, store: Layout) -> None:
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.bin"), "wb") as file:
        file.write(b"x")
    with pytest.raises(FolderRefused, match="not UTF-8"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_folders_in_folders_without_end_are_refused(folder: Path, store: Layout) -> None:
    deep = str(folder)
    for _ in range(300):
        deep += "/d"
        os.mkdir(deep)
    with pytest.raises(FolderRefused, match="folders deep"):
        build_artifact(folder, "tumour", "1.0.0", store)


@pytest.mark.parametrize("become", ["link", "pipe", "folder", "nothing"])
def test_a_file_that_is_none_any_more_when_it_is_read_is_refused(folder: Path, tmp_path: Path, become: str) -> None:
    file = next(file for file in list_files(folder) if file.path.name == "model.bin")
    (folder / "model.bin").rename(tmp_path / "elsewhere")
    if become == "link":
        (folder / "model.bin").symlink_to(tmp_path / "elsewhere")
    elif become == "pipe":
        os.mkfifo(folder / "model.bin")
    elif become == "folder":
        (folder / "model.bin").mkdir()
    with pytest.raises(FolderRefused, match=r"model\.bin (can't be read|changed)"), file.opened(0, 7, lambda _: None):
        pass


def append(folder: Path) -> None:
    with open(folder / "model.bin", "ab") as file:
        file.write(b"!")


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.bin", 3)


def rewrite_and_put_the_time_back(folder: Path) -> None:
    before = (folder / "model.bin").stat()
    (folder / "model.bin").write_bytes(b"weightz")
    os.utime(folder / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(folder: Path) -> None:
    (folder / "new").write_bytes(b"weights")
    (folder / "new").rename(folder / "model.bin")


def change_another(folder: Path) -> None:
    """It was read before."""
    (folder / "model-settings.json").write_text("[]")


def add_one(folder: Path) -> None:
    (folder / "extra").touch()


def change_the_description(folder: Path) -> None:
    with open(folder / "package.yaml", "a") as file:
        file.write("# later\n")


@pytest.mark.parametrize(
    "meddle",
    [append, truncate, rewrite_and_put_the_time_back, replace, change_another, add_one, change_the_description],
)
def test_a_folder_that_changes_while_it_is_read_is_refused(
    folder: Path, store: Layout, meddle: Callable[[Path], None]
) -> None:
    class Meddler:
        """Changes the folder when the last file's first bytes have been read."""

        done = False

        def __call__(self, done: int, total: int) -> None:
            if done == total and not self.done:
                self.done = True
                meddle(folder)

    with pytest.raises(FolderRefused, match=r"while (it|the folder) was read; build again"):
        build_artifact(folder, "tumour", "1.0.0", store, progress=Meddler())
    assert list(store.entries()) == []
    assert not leftovers(store.path)


def test_a_file_that_changes_under_the_hands_of_who_reads_it_is_refused(folder: Path) -> None:
    file = next(file for file in list_files(folder) if file.path.name == "model.bin")
    with pytest.raises(FolderRefused, match="changed while it was read"), file.opened(0, 7, lambda _: None):
        append(folder)


def test_a_file_that_cannot_be_read_is_refused_and_named(tmp_path: Path) -> None:
    # A folder gives no bytes, as a disk that fails doesn't.
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FolderRefused, match=r"weights\.bin can't be read"):
            Stretch(descriptor, tmp_path / "weights.bin", 0, 10, lambda _: None).read(10)
    finally:
        os.close(descriptor)


def test_a_folder_without_files_is_refused(tmp_path: Path, store: Layout) -> None:
    (tmp_path / "package.yaml").write_text(yaml.safe_dump(PACKAGE))
    with pytest.raises(FolderRefused, match="no file besides"):
        build_artifact(tmp_path, "tumour", "1.0.0", store)


def test_a_folder_without_package_yaml_is_refused_and_told_what_to_write(tmp_path: Path, store: Layout) -> None:
    with pytest.raises(FolderRefused, match=r"has no package\.yaml; describe the model there"):
        build_artifact(tmp_path, "tumour", "1.0.0", store)


def test_a_folder_that_is_not_there_is_refused_and_named(tmp_path: Path, store: Layout) -> None:
    with pytest.raises(FolderRefused, match=r"nowhere/? can't be read"):
        build_artifact(tmp_path / "nowhere", "tumour", "1.0.0", store)


@pytest.mark.parametrize(("model", "version"), [("Tumour", "1.0.0"), ("tumour", "1.0"), ("tumour", "1.0.0+build")])
def test_a_name_that_no_version_has_is_refused(folder: Path, store: Layout, model: str, version: str) -> None:
    with pytest.raises(SettingsError):
        build_artifact(folder, model, version, store)
    assert not store.path.exists()


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"licence: a\nlicence: b\n"])
def test_a_package_yaml_that_is_not_yaml_is_refused_and_named(folder: Path, store: Layout, content: bytes) -> None:
    (folder / "package.yaml").write_bytes(content)
    with pytest.raises(FolderRefused, match=r"package\.yaml can't be read as YAML"):
        build_artifact(folder, "tumour", "1.0.0", store)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (package_with(license="MIT"), ["package.license", "did you mean 'licence'"]),
        (package_with(licence=None), ["package.licence is required"]),
        (package_with(samples=[]), ["package.samples", "at least 1"]),
        (package_with(framework={"name": "onnx", "version": 1.7}), ["package.framework.version", "in quotes"]),
        (package_with(evaluation={"f1": "high"}), ["package.evaluation.f1", "'high'"]),
        (package_with(evaluation={"f1": float("nan")}), ["package.evaluation.f1", "finite"]),
        (package_with(samples=[{"inputs": [], "x": float("inf")}]), ["infinity"]),
    ],
)
def test_an_error_in_package_yaml_names_file_key_and_remedy(
    tmp_path: Path, store: Layout, package: dict[str, Any], words: list[str]
) -> None:
    text = refuse(tmp_path, store, package)
    assert str(tmp_path / "refused" / "package.yaml") in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [1, 3]}, "shape [1, 3], the signature says [-1, 2]"),
        ({"shape": None}, "shape None"),
        ({"datatype": "FP32"}, "datatype FP32, the signature says FP64"),
        ({"name": "other"}, "gives inputs ['other'], the signature asks for ['features']"),
        ({"name": 3}, "each input is"),
    ],
)
def test_a_sample_that_the_signature_refuses_is_an_error(
    tmp_path: Path, store: Layout, change: dict[str, Any], words: str
) -> None:
    sample = {"inputs": [PACKAGE["samples"][0]["inputs"][0] | change]}
    assert words in refuse(tmp_path, store, package_with(samples=[sample]))


def test_a_datatype_that_the_protocol_does_not_know_is_refused(tmp_path: Path, store: Layout) -> None:
    signature = PACKAGE["signature"] | {"outputs": [{"name": "y", "shape": [-1], "datatype": "float32"}]}
    assert "package.signature.outputs[0].datatype" in refuse(tmp_path, store, package_with(signature=signature))


# Memory of the process


def peak_mib(tmp_path: Path, mib: int, compression: str) -> int:
    folder = make_folder(tmp_path / f"model-{mib}")
    with open(folder / "model.bin", "wb") as file:
        file.truncate(mib << 20)
    program = (
        "import sys; from pathlib import Path; from model_packaging.build import build_artifact; "
        "from model_packaging.stores import open_store; "
        "built = build_artifact(Path(sys.argv[1]), 'tumour', '1.0.0', open_store(sys.argv[2]), "
        "compression=sys.argv[3], part_bytes=32 << 20); "
        "assert built.size_bytes > int(sys.argv[4]) << 20; "
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", program, folder, tmp_path / f"store-{mib}", compression, str(mib)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) >> 10


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_memory_stays_small_whatever_the_size(tmp_path: Path, compression: str) -> None:
    small, large = peak_mib(tmp_path, 40, compression), peak_mib(tmp_path, 400, compression)
    assert large < 200
    assert large - small < 20
