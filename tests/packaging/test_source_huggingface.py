"""Hugging Face snapshots: the cache's links, what is taken and left out, and what config and card say."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_packaging.errors import SourceRefused
from model_packaging.manifest import GitSource
from model_packaging.sources.huggingface import fetch, read_model, read_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "transformers_version": "4.51.0"}
CARD = "---\nlicense: apache-2.0\ndatasets: [squad, glue]\nbase_model: google-bert/bert-base\n---\n# A model\n"


def make_snapshot(cache: Path, files: dict[str, bytes] | None = None) -> Path:
    """A snapshot as the Hub's client lays it out: every file a link to a blob of its content's name."""
    repository = cache / "models--org--some-model"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"w": np.ones((2, 3), np.float32)}, cache / "weights")
    given = files or {
        "config.json": json.dumps(CONFIG).encode(),
        "README.md": CARD.encode(),
        "model.safetensors": (cache / "weights").read_bytes(),
        "pytorch_model.bin": b"the same weights",
        ".gitattributes": b"*.bin lfs\n",
        "onnx/vocab.txt": b"words",
    }
    for number, (name, content) in enumerate(given.items()):
        (repository / "blobs" / f"{number:040x}").write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(exist_ok=True)
        up = "../" * (2 + name.count("/"))
        link.symlink_to(f"{up}blobs/{number:040x}")
    return snapshot


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, files: dict[str, str]) -> Any:
    for name, content in files.items():
        (folder / name).write_text(content)
    return read_model(folder, [PurePosixPath(name) for name in files])


def test_a_snapshot_is_brought_as_plain_files(tmp_path: Path) -> None:
    found = fetch(make_snapshot(tmp_path / "cache"), tmp_path / "model")
    assert contents(tmp_path / "model") == {"README.md", "config.json", "model.safetensors", "onnx/vocab.txt"}
    assert not any(path.is_symlink() for path in (tmp_path / "model").rglob("*"))
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == CONFIG
    assert found.labels == {"huggingface.repository": "org/some-model", "huggingface.commit": COMMIT}
    assert found.git == GitSource(commit=COMMIT, branch=None, dirty=False)


def test_weights_in_a_second_form_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    found = fetch(snapshot, tmp_path / "model")
    assert found.remarks == ("pytorch_model.bin is left out: safetensors files hold the same weights",)
    assert PurePosixPath("pytorch_model.bin") in read_snapshot(snapshot, all_forms=True).files


def test_weights_in_their_only_form_are_taken(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache", {"pytorch_model.bin": b"weights", "config.json": b"{}"})
    assert read_snapshot(snapshot).left_out == ()


def test_files_can_be_linked_at_no_cost(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    fetch(snapshot, tmp_path / "model", link=True)
    assert (tmp_path / "model" / "model.safetensors").samefile(snapshot / "model.safetensors")
    fetch(snapshot, tmp_path / "copy")
    assert not (tmp_path / "copy" / "model.safetensors").samefile(snapshot / "model.safetensors")


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../secret", "../../blobs/../../secret", "../../refs/main"])
def test_a_link_out_of_the_repositorys_blobs_is_refused(target: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    (tmp_path / "cache" / "secret").write_text("secret")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    (snapshot / "link").symlink_to(target)
    with pytest.raises(SourceRefused, match="which is no file of its own repository"):
        fetch(snapshot, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_blob_that_leads_on_elsewhere_is_refused(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    (snapshot.parent.parent / "blobs" / "far").symlink_to("/etc/hostname")
    (snapshot / "link").symlink_to("../../blobs/far")
    with pytest.raises(SourceRefused, match="which is no file of its own repository"):
        read_snapshot(snapshot)


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    (snapshot / "link").symlink_to("../../blobs")
    with pytest.raises(SourceRefused, match="which is no file of its own repository"):
        read_snapshot(snapshot)


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    for target in ("../../blobs/missing", "link"):
        (snapshot / "link").unlink(missing_ok=True)
        (snapshot / "link").symlink_to(target)
        with pytest.raises(SourceRefused, match="leads nowhere"):
            read_snapshot(snapshot)


def test_links_in_a_folder_that_is_no_snapshot_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("config.json")
    with pytest.raises(SourceRefused, match="no snapshot of the Hub's cache"):
        read_snapshot(tmp_path)


def test_a_download_into_a_folder_is_taken_without_its_bookkeeping(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "config.json.metadata").write_text("etag")
    (tmp_path / "config.json").write_text("{}")
    snapshot = read_snapshot(tmp_path)
    assert list(snapshot.files) == [PurePosixPath("config.json")]
    assert (snapshot.repository, snapshot.commit) == (None, None)


def test_an_empty_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="holds no file"):
        read_snapshot(tmp_path)


def test_config_and_card_say_what_the_model_is(tmp_path: Path) -> None:
    found = read(tmp_path, {"config.json": json.dumps(CONFIG), "README.md": CARD})
    assert (found.framework.name, found.framework.version) == ("transformers", "4.51.0")
    assert (found.architecture, found.licence) == ("BertModel", "Apache-2.0")
    assert (found.training_data, found.parents) == ("squad, glue", ("google-bert/bert-base",))


@pytest.mark.parametrize(
    ("name", "document", "framework"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline", "_diffusers_version": "0.31.0"}, ("diffusers", "0.31.0")),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"}, ("peft", None)),
        (
            "config_sentence_transformers.json",
            {"__version__": {"sentence_transformers": "3.0.0"}},
            ("sentence-transformers", "3.0.0"),
        ),
    ],
)
def test_other_libraries_of_the_hub_are_known(
    name: str, document: dict[str, Any], framework: tuple[str, str | None], tmp_path: Path
) -> None:
    found = read(tmp_path, {name: json.dumps(document)})
    assert (found.framework.name, found.framework.version) == framework


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", "MIT"),
        ("license: [cc-by-4.0]", "CC-BY-4.0"),
        ("license: gpl-3.0", "gpl-3.0"),
        ("license: other\nlicense_name: llama3", "llama3"),
        ("license: [mit, apache-2.0]", None),
        ("license: other", None),
        ("title: x", None),
    ],
)
def test_the_licence_is_the_cards(front: str, licence: str | None, tmp_path: Path) -> None:
    found = read(tmp_path, {"README.md": f"---\n{front}\n---\n"})
    assert found.licence == licence
    assert bool(found.remarks) == (licence is None and "license" in front)


@pytest.mark.parametrize("text", ["", "# Title\n", "---\nno end", "---\n---\n", "Text\n---\nlicense: mit\n---\n"])
def test_a_readme_without_front_matter_says_nothing(text: str, tmp_path: Path) -> None:
    found = read(tmp_path, {"README.md": text})
    assert (found.licence, found.remarks) == (None, ())


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type"'])
def test_a_config_that_can_not_be_read_is_remarked_upon(config: str, tmp_path: Path) -> None:
    found = read(tmp_path, {"config.json": config})
    assert found.framework is None
    assert "config.json" in found.remarks[0]


def test_a_config_of_something_else_says_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, {"config.json": '{"port": 80}'})
    assert (found.framework, found.architecture, found.remarks) == (None, None, ())
