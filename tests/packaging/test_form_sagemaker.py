"""Exports for SageMaker: the archive, the objects below a prefix, and what SageMaker is told of either."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import pytest

from model_packaging.artifact import Artifact
from model_packaging.digests import digest_of
from model_packaging.errors import DigestMismatch, ExportRefused, TargetExists
from model_packaging.forms import SageMaker, export
from model_packaging.forms.sagemaker import check_names, model_data_source
from tests.packaging.form_artifacts import FILES, harm, make_artifact, tree

PREFIX = SageMaker(compressed=False, uri="s3://models.example/team/tumour/1.2.0")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "made")


def test_the_archive_holds_the_files_at_its_root(artifact: Artifact, tmp_path: Path) -> None:
    done = export(artifact, SageMaker(), tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz", "r:gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert tree(tmp_path / "out") == FILES
    content = (tmp_path / "model.tar.gz").read_bytes()
    assert (done.digest, done.size_bytes) == (digest_of(content), len(content))


def test_no_time_owner_or_mode_of_the_source_goes_into_the_archive(artifact: Artifact, tmp_path: Path) -> None:
    export(artifact, SageMaker(), tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz", "r:gz") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["code", "code/inference.py", "empty.txt", "weights.bin"]
    for member in members:
        mode = 0o755 if member.isdir() else 0o644
        assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", mode)


def test_two_exports_are_the_same_bytes_whatever_the_file_is_called(artifact: Artifact, tmp_path: Path) -> None:
    other = make_artifact(tmp_path / "elsewhere", part_bytes=5_000)
    first = export(artifact, SageMaker(), tmp_path / "model.tar.gz")
    second = export(other, SageMaker(), tmp_path / "other.tar.gz")
    assert first.digest == second.digest
    # RFC 1952: no name, no time.
    flags, *time = (tmp_path / "model.tar.gz").read_bytes()[3:8]
    assert (flags, time) == (0, [0, 0, 0, 0])


def test_names_beyond_ascii_and_beyond_100_characters_survive(tmp_path: Path) -> None:
    files = {f"{'d' * 90}/{'f' * 90}.bin": b"1", "größe ✓.json": b"2"}
    export(make_artifact(tmp_path / "made", files), SageMaker(), tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz", "r:gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert tree(tmp_path / "out") == files


def test_the_prefix_form_mirrors_the_objects(artifact: Artifact, tmp_path: Path) -> None:
    done = export(artifact, PREFIX, tmp_path / "prefix")
    assert tree(tmp_path / "prefix") == FILES
    keys = {entry["path"]: (entry["key"], entry["size_bytes"]) for entry in done.document["objects"]}
    assert keys == {name: (f"team/tumour/1.2.0/{name}", len(content)) for name, content in FILES.items()}


def test_sagemaker_is_told_of_a_prefix_that_ends_with_a_slash(artifact: Artifact, tmp_path: Path) -> None:
    done = export(artifact, PREFIX, tmp_path / "prefix")
    assert done.document["ModelDataSource"] == {
        "S3DataSource": {
            "S3Uri": "s3://models.example/team/tumour/1.2.0/",
            "S3DataType": "S3Prefix",
            "CompressionType": "None",
        }
    }


def test_sagemaker_is_told_of_the_archive_as_one_object(artifact: Artifact, tmp_path: Path) -> None:
    done = export(artifact, SageMaker(uri="s3://models.example/a/"), tmp_path / "model.tar.gz")
    assert done.document["ModelDataSource"] == {
        "S3DataSource": {
            "S3Uri": "s3://models.example/a/model.tar.gz",
            "S3DataType": "S3Object",
            "CompressionType": "Gzip",
        }
    }


@pytest.mark.parametrize("uri", ["s3://models.example", "s3://models.example/"])
def test_a_bucket_alone_is_a_place(uri: str) -> None:
    source = model_data_source(SageMaker(compressed=False, uri=uri))["ModelDataSource"]["S3DataSource"]
    assert source["S3Uri"] == "s3://models.example/"


@pytest.mark.parametrize("uri", ["https://models.example/a", "s3://", "s3://Models/a", "s3://a..b/c", "s3://ab/c", ""])
def test_a_uri_that_is_none_of_s3_is_refused_before_anything_is_written(
    artifact: Artifact, tmp_path: Path, uri: str
) -> None:
    for compressed in (True, False):
        with pytest.raises(ExportRefused, match="s3://BUCKET/PREFIX/"):
            export(artifact, SageMaker(compressed=compressed, uri=uri), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_uri_longer_than_the_api_takes_is_refused() -> None:
    with pytest.raises(ExportRefused, match="shorten it"):
        model_data_source(SageMaker(uri=f"s3://models.example/{'p' * 1000}"))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("code/ /x.py", "blank name"),
        ("ü" * 128, "256 bytes"),
        ("/".join(["d" * 200] * 5) + "/" + "f" * 20, "1025 bytes"),
    ],
)
def test_a_name_that_sagemaker_or_s3_refuses_is_named(path: str, problem: str) -> None:
    with pytest.raises(ExportRefused, match=problem):
        check_names([PurePosixPath(path)])


def test_the_prefix_counts_towards_a_keys_length() -> None:
    check_names([PurePosixPath("f" * 24)], "p/" * 500)
    with pytest.raises(ExportRefused, match="shorten the path or the prefix"):
        check_names([PurePosixPath("f" * 25)], "p/" * 500)


def test_a_file_that_is_there_is_kept_unless_asked(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "model.tar.gz"
    target.write_text("mine")
    with pytest.raises(TargetExists):
        export(artifact, SageMaker(), target)
    assert target.read_text() == "mine"
    done = export(artifact, SageMaker(), target, replace=True)
    assert digest_of(target.read_bytes()) == done.digest


def test_a_link_is_never_replaced_by_the_archive(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").symlink_to(tmp_path / "mine")
    with pytest.raises(ExportRefused, match="plain files only"):
        export(artifact, SageMaker(), tmp_path / "model.tar.gz", replace=True)
    assert (tmp_path / "model.tar.gz").is_symlink()


def test_a_folder_is_never_replaced_by_the_archive(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="name the file to write"):
        export(artifact, SageMaker(), tmp_path, replace=True)


def test_a_harmed_artifact_leaves_no_archive(artifact: Artifact, tmp_path: Path) -> None:
    harm(artifact, "weights.bin")
    with pytest.raises(DigestMismatch, match=r"weights\.bin"):
        export(artifact, SageMaker(), tmp_path / "model.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
