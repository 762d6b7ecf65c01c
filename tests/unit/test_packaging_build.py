"""Building an artifact: what goes into it, what is refused, and that the same inputs give the same digest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings.loading import SettingsError
from model_packaging import store as store_module
from model_packaging.build import build_artifact
from model_packaging.errors import FolderRefused, GitFailed
from model_packaging.git import git_source
from model_packaging.manifest import GitSource
from model_packaging.store import Store

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
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def make_folder(folder: Path, package: dict[str, Any] = PACKAGE) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "package.yaml").write_text(yaml.safe_dump(package))
    (folder / "model.joblib").write_bytes(b"weights")
    (folder / "model-settings.json").write_text("{}")
    (folder / "sub" / "README.md").write_text("# About")
    return folder


def package_with(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (PACKAGE | changes).items() if value is not None}


def refuse(tmp_path: Path, store: Store, package: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as raised:
        build_artifact(make_folder(tmp_path / "refused", package), "tumour", "1.0.0", store)
    assert not store.path.exists()
    return str(raised.value)


def test_the_description_says_what_package_yaml_and_git_say(folder: Path, store: Store) -> None:
    built = build_artifact(folder, "tumour", "1.0.0", store, git=GIT)
    description = store.description(built.digest)
    assert (description.model, description.version, description.git) == ("tumour", "1.0.0", GIT)
    assert description.package.model_dump(mode="json") == PACKAGE


def test_each_file_but_package_yaml_is_a_layer_in_the_order_of_names(folder: Path, store: Store) -> None:
    built = build_artifact(folder, "tumour", "1.0.0", store)
    layers = [(str(path), layer.media_type, layer.size) for path, layer in store.manifest(built.digest).files]
    assert layers == [
        ("model-settings.json", "application/vnd.cncf.model.weight.config.v1.raw", 2),
        ("model.joblib", "application/vnd.cncf.model.weight.v1.raw", 7),
        ("sub/README.md", "application/vnd.cncf.model.doc.v1.raw", 7),
    ]
    assert built.size_bytes == 16


def test_the_config_is_one_that_modelpack_readers_understand(folder: Path, store: Store) -> None:
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    built = build_artifact(folder, "tumour", "1.0.0", store, git=GIT, created=created)
    manifest = store.manifest(built.digest)
    config = json.loads((store.path / "blobs/sha256" / manifest.config.digest[7:]).read_bytes())
    assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
    assert config["descriptor"] == {
        "name": "tumour",
        "version": "1.0.0",
        "revision": GIT.commit,
        "licenses": ["Apache-2.0"],
        "createdAt": "2026-01-02T03:04:05Z",
    }
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer.digest for layer in manifest.layers]}


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
        digests.add(build_artifact(folder, "tumour", "1.0.0", Store(tmp_path / f"store-{number}"), git=GIT).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("other", ["content", "name", "commit", "evaluation", "version"])
def test_other_inputs_give_another_digest(tmp_path: Path, other: str) -> None:
    one = make_folder(tmp_path / "one")
    changed = make_folder(tmp_path / "two", package_with(evaluation={"f1": 1.0}) if other == "evaluation" else PACKAGE)
    if other == "content":
        (changed / "model.joblib").write_bytes(b"weightz")
    if other == "name":
        (changed / "model.joblib").rename(changed / "model.pkl")
    git = GIT.model_copy(update={"dirty": True}) if other == "commit" else GIT
    version = "1.0.1" if other == "version" else "1.0.0"
    first = build_artifact(one, "tumour", "1.0.0", Store(tmp_path / "a"), git=GIT)
    second = build_artifact(changed, "tumour", version, Store(tmp_path / "b"), git=git)
    assert first.digest != second.digest


def test_a_link_in_the_folder_is_refused_and_named(folder: Path, store: Store) -> None:
    (folder / "sub" / "shadow").symlink_to("/etc/hostname")
    with pytest.raises(FolderRefused, match=r"sub/shadow is a symbolic link"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_link_to_a_folder_is_refused_and_named(folder: Path, store: Store, tmp_path: Path) -> None:
    (folder / "data").symlink_to(tmp_path)
    with pytest.raises(FolderRefused, match="data is a symbolic link"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_named_pipe_is_refused_and_does_not_hang(folder: Path, store: Store) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(FolderRefused, match="pipe is neither a file nor a folder"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_file_that_becomes_a_link_or_a_pipe_on_the_way_is_refused(tmp_path: Path, store: Store) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link-target")
    (tmp_path / "link-target").write_text("secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(FolderRefused, match=name):
            store.add_file(tmp_path / name)
    assert not [path for path in store.path.rglob("*") if path.is_file()]


def test_a_name_that_is_not_utf8_is_refused(folder: Path, store: Store) -> None:
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.bin"), "wb") as file:
        file.write(b"x")
    with pytest.raises(FolderRefused, match="not UTF-8"):
        build_artifact(folder, "tumour", "1.0.0", store)


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = store_module._copy

    def copy_while_written(*arguments: Any, **more: Any) -> tuple[str, int]:
        result = copy(*arguments, **more)
        with open(folder / "model.joblib", "ab") as file:
            file.write(b"!")
        return result

    monkeypatch.setattr(store_module, "_copy", copy_while_written)
    with pytest.raises(FolderRefused, match="changed while it was read"):
        store.add_file(folder / "model.joblib")


def test_a_folder_without_files_is_refused(tmp_path: Path, store: Store) -> None:
    (tmp_path / "package.yaml").write_text(yaml.safe_dump(PACKAGE))
    with pytest.raises(FolderRefused, match="no file besides"):
        build_artifact(tmp_path, "tumour", "1.0.0", store)


def test_a_folder_without_package_yaml_is_refused_and_told_what_to_write(tmp_path: Path, store: Store) -> None:
    with pytest.raises(FolderRefused, match=r"has no package\.yaml; describe the model there"):
        build_artifact(tmp_path, "tumour", "1.0.0", store)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"licence: a\nlicence: b\n"])
def test_a_package_yaml_that_is_not_yaml_is_refused_and_named(folder: Path, store: Store, content: bytes) -> None:
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
    tmp_path: Path, store: Store, package: dict[str, Any], words: list[str]
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
    tmp_path: Path, store: Store, change: dict[str, Any], words: str
) -> None:
    sample = {"inputs": [PACKAGE["samples"][0]["inputs"][0] | change]}
    assert words in refuse(tmp_path, store, package_with(samples=[sample]))


def test_a_datatype_that_the_protocol_does_not_know_is_refused(tmp_path: Path, store: Store) -> None:
    signature = PACKAGE["signature"] | {"outputs": [{"name": "y", "shape": [-1], "datatype": "float32"}]}
    assert "package.signature.outputs[0].datatype" in refuse(tmp_path, store, package_with(signature=signature))


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    with open(folder / "model.joblib", "wb") as file:
        file.truncate(300 << 20)
    program = (
        "import sys; from pathlib import Path; from model_packaging.build import build_artifact; "
        "from model_packaging.store import Store; "
        "print(build_artifact(Path(sys.argv[1]), 'tumour', '1.0.0', Store(Path(sys.argv[2]))).size_bytes); "
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "store")]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    size_bytes, peak_kib = map(int, run.stdout.split())
    assert size_bytes > 300 << 20
    assert peak_kib < 200 << 10


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=trunk"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "First")
    return folder


def test_a_clean_repository_gives_commit_and_branch(repository: Path) -> None:
    expected = GitSource(commit=git(repository, "rev-parse", "HEAD"), branch="trunk", dirty=False)
    assert git_source(repository) == expected


@pytest.mark.parametrize("name", ["train.py", "new.py"])
def test_a_changed_or_unknown_file_makes_it_dirty(repository: Path, name: str) -> None:
    (repository / name).write_text("2")
    found = git_source(repository)
    assert found is not None
    assert found.dirty


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    found = git_source(repository)
    assert found is not None
    assert found.branch is None


def test_a_folder_in_no_repository_has_no_source(tmp_path: Path) -> None:
    assert git_source(tmp_path) is None


def test_a_repository_without_a_commit_has_no_source(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_source(tmp_path) is None


def test_a_repository_that_git_cannot_read_is_an_error_with_gits_words(repository: Path) -> None:
    (repository / ".git" / "index").write_bytes(b"not an index")
    with pytest.raises(GitFailed, match="index"):
        git_source(repository)
