"""The images that images are built on: every way in which one is kept is read, and none that is harmed is taken."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_packaging.errors import BaseRefused
from model_packaging.forms.base_image import BaseImage, open_base
from model_packaging.forms.tar import HashingTarget
from tests.packaging.form_bases import (
    INDEX,
    LayoutFiles,
    config,
    digest,
    layer,
    make_layout,
    make_saved,
)

LAYERS = [layer({"a": b"one"}), layer({"b": b"two"})]


def single(layers: list[bytes] = LAYERS) -> LayoutFiles:
    files = LayoutFiles()
    return files.set_index(files.add_image(layers))


def several(*platforms: str) -> LayoutFiles:
    """An image for several platforms, as they are published: an index in the index."""
    files = LayoutFiles()
    images = []
    for platform in platforms:
        system, architecture, *variant = platform.split("/")
        described = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        images.append(
            {**files.add_image([layer({"platform": platform.encode()})], platform=platform), "platform": described}
        )
    return files.set_index(files.add({"schemaVersion": 2, "manifests": images}, INDEX))


def contents(base: BaseImage) -> list[str]:
    """The digests of what the layers really hold."""
    found = []
    for one in base.layers:
        target = HashingTarget()
        base.write(one, target)
        found.append(target.digest)
    return found


# -- what is read


def test_a_layout_in_a_folder_is_read(tmp_path: Path) -> None:
    with open_base(single().write(tmp_path / "base"), None) as base:
        assert contents(base) == list(base.diff_ids) == [digest(content) for content in LAYERS]


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_layout_in_an_archive_is_read(tmp_path: Path, prefix: str) -> None:
    with open_base(single().write_archive(tmp_path / "base.tar", prefix), None) as base:
        assert contents(base) == [digest(content) for content in LAYERS]


def test_what_docker_saved_is_read(tmp_path: Path) -> None:
    saved = make_saved(tmp_path / "base.tar", {"1/layer.tar": LAYERS[0], "2/layer.tar": LAYERS[1]}, LAYERS)
    with open_base(saved, None) as base:
        assert [one.digest for one in base.layers] == contents(base) == [digest(content) for content in LAYERS]
        assert base.digest is None


def test_a_packed_layer_of_a_saved_image_is_read(tmp_path: Path) -> None:
    packed = gzip.compress(LAYERS[0])
    with open_base(make_saved(tmp_path / "base.tar", {"1.tar.gz": packed}, LAYERS[:1]), None) as base:
        assert contents(base) == [digest(packed)]
        assert base.layers[0].media_type.endswith("+gzip")


def test_a_layer_that_docker_saved_as_a_link_is_read(tmp_path: Path) -> None:
    described = json.dumps(config([LAYERS[0], LAYERS[0]])).encode()
    saved = json.dumps([{"Config": "c.json", "Layers": ["1/layer.tar", "2/layer.tar"]}]).encode()
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        for name, content in {"1/layer.tar": LAYERS[0], "c.json": described, "manifest.json": saved}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("2/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../1/layer.tar"
        archive.addfile(link)
    with open_base(tmp_path / "base.tar", None) as base:
        assert contents(base) == [digest(LAYERS[0])] * 2


@pytest.mark.parametrize(
    ("platform", "found"),
    [("linux/amd64", "linux/amd64"), ("linux/arm64", "linux/arm64/v8"), ("linux/arm64/v8", "linux/arm64/v8")],
)
def test_the_platform_that_is_asked_for_is_taken(tmp_path: Path, platform: str, found: str) -> None:
    files = several("linux/amd64", "linux/arm64/v8", "linux/arm/v7")
    with open_base(files.write(tmp_path / "base"), platform) as base:
        assert base.platform == found


def test_a_platform_that_was_not_fetched_is_no_choice(tmp_path: Path) -> None:
    files = several("linux/amd64", "linux/arm64/v8")
    index = json.loads(files[f"blobs/sha256/{json.loads(files['index.json'])['manifests'][0]['digest'][7:]}"])
    del files[f"blobs/sha256/{index['manifests'][1]['digest'][7:]}"]
    with open_base(files.write(tmp_path / "base"), None) as base:
        assert base.platform == "linux/amd64"


def test_an_attestation_beside_the_image_is_no_choice(tmp_path: Path) -> None:
    files = LayoutFiles()
    attestation = files.add_image([layer({"in-toto": b""})])
    unknown = {"platform": {"os": "unknown", "architecture": "unknown"}}
    files.set_index(files.add_image(LAYERS), attestation | unknown)
    with open_base(files.write(tmp_path / "base"), None) as base:
        assert len(base.layers) == 2


def test_an_image_of_two_names_is_one(tmp_path: Path) -> None:
    files = LayoutFiles()
    image = files.add_image(LAYERS)
    files.set_index(image | {"annotations": {"n": "1"}}, image | {"annotations": {"n": "2"}})
    with open_base(files.write(tmp_path / "base"), None) as base:
        assert len(base.layers) == 2


# -- what is refused


def refused(place: Path, match: str, platform: str | None = None) -> None:
    with pytest.raises(BaseRefused, match=match), open_base(place, platform) as base:
        contents(base)


def test_of_several_platforms_one_must_be_named(tmp_path: Path) -> None:
    files = several("linux/amd64", "linux/arm64")
    refused(files.write(tmp_path / "base"), "holds 2 images, for linux/amd64, linux/arm64; name the platform")


def test_a_platform_that_the_base_is_not_for_is_refused(tmp_path: Path) -> None:
    base = several("linux/arm64/v8").write(tmp_path / "base")
    refused(base, "no image for linux/arm; those in it are for: linux/arm64/v8", "linux/arm")


def test_two_images_for_one_platform_are_refused(tmp_path: Path) -> None:
    files = LayoutFiles()
    files.set_index(files.add_image(LAYERS), files.add_image(LAYERS[:1]))
    refused(files.write(tmp_path / "base"), "a layout of its own")


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "base", "is not there")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"neither index\.json nor manifest\.json")


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"archive"), layer({"a": b"x" * 4000})[:2000]])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "base.tar").write_bytes(content)
    refused(tmp_path / "base.tar", "no image")


def test_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    files = single()
    del files[f"blobs/sha256/{digest(LAYERS[1])[7:]}"]
    refused(files.write(tmp_path / "base"), f"layer {digest(LAYERS[1])} is missing")


@pytest.mark.parametrize("harmed", [LAYERS[1][:-1], LAYERS[1] + b"x", LAYERS[1].replace(b"two", b"TWO")])
def test_a_layer_of_other_bytes_is_named(tmp_path: Path, harmed: bytes) -> None:
    files = single()
    files[f"blobs/sha256/{digest(LAYERS[1])[7:]}"] = harmed
    refused(files.write(tmp_path / "base"), f"layer {digest(LAYERS[1])} does not match its digest")


@pytest.mark.parametrize("harmed", [LAYERS[0], gzip.compress(LAYERS[0]), gzip.compress(LAYERS[1])[:-9]])
def test_a_saved_layer_of_other_bytes_is_named(tmp_path: Path, harmed: bytes) -> None:
    refused(make_saved(tmp_path / "base.tar", {"2/layer.tar": harmed}, LAYERS[1:]), r"layer 2/layer\.tar")


def test_a_saved_image_with_a_layer_less_is_refused(tmp_path: Path) -> None:
    saved = make_saved(tmp_path / "base.tar", {"1/layer.tar": LAYERS[0]}, LAYERS)
    refused(saved, "the config has 2 layers, and the manifest 1")


def test_instructions_that_only_an_engine_can_run_are_refused(tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", LAYERS, config={"OnBuild": ["RUN make"]})
    refused(base, "ONBUILD")


def test_a_layer_of_a_kind_that_is_not_known_is_named(tmp_path: Path) -> None:
    files = LayoutFiles()
    manifest = {
        "config": files.add(config(LAYERS[:1]), "c"),
        "layers": [files.add(LAYERS[0], "application/vnd.example")],
    }
    files.set_index(files.add(manifest, "application/vnd.oci.image.manifest.v1+json"))
    refused(files.write(tmp_path / "base"), r"of type 'application/vnd\.example'")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_documents_say_a_base_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    files = single() if data.draw(st.booleans()) else several("linux/amd64", "linux/arm64")
    documents = sorted(path for path, content in files.items() if content.startswith(b"{"))
    path = data.draw(st.sampled_from(documents))
    document = json.loads(files[path])
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SOME_KEYS), inner, max_size=3),
        )
    )
    files.replace(path, json.dumps(document).encode())
    archive = files.write_archive(tmp_path / "base.tar")
    try:
        with open_base(archive, data.draw(st.sampled_from([None, "linux/amd64", ""]))) as base:
            contents(base)
    except BaseRefused:
        pass


SOME_KEYS = ["digest", "size", "mediaType", "platform", "os", "architecture", "diff_ids", "Env", "layers"]
