"""`lepton package`: what scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cli.package import app
from model_packaging.artifact import Artifact
from model_packaging.stores.layout import Layout

PACKAGE = {
    "framework": {"name": "scikit-learn", "version": "1.9.1"},
    "training_data": "made up",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "package.yaml").write_text(yaml.safe_dump(PACKAGE))
    (folder / "weights.bin").write_bytes(b"1234")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def build(folder: Path, *more: object, model: str = "tumour", version: str = "1.0.0") -> Result:
    return run("build", folder, "--model", model, "--version", version, "--store", folder.parent / "store", *more)


def test_build_prints_what_scripts_need_as_json(folder: Path, tmp_path: Path) -> None:
    result = build(folder, "--json")
    assert result.exit_code == 0, result.output
    expected = {
        "digest": Layout(tmp_path / "store").resolve("tumour", "1.0.0"),
        "model": "tumour",
        "version": "1.0.0",
        "store": str(tmp_path / "store"),
        "git_commit": None,
        "size_bytes": 4,
        "created": True,
    }
    assert json.loads(result.stdout).items() >= expected.items()


def test_build_again_says_that_nothing_was_created(folder: Path) -> None:
    build(folder)
    assert json.loads(build(folder, "--json").stdout)["created"] is False
    assert build(folder).stdout.startswith("unchanged tumour 1.0.0")


def test_build_for_people_ends_with_the_digest(folder: Path, tmp_path: Path) -> None:
    result = build(folder)
    first, second = result.stdout.splitlines()
    assert first == f"packaged tumour 1.0.0, 4 bytes, no Git commit, in {tmp_path / 'store'}"
    assert second == Layout(tmp_path / "store").resolve("tumour", "1.0.0")


def test_the_commit_is_that_of_the_source_folder(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", source], check=True)
    subprocess.run(["git", "-C", source, *identity, "commit", "-q", "--allow-empty", "-m", "One"], check=True)
    head = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    result = build(folder, "--source", source, "--json")
    assert json.loads(result.stdout)["git_commit"] == head.stdout.strip()


def test_the_store_of_the_project_is_the_default(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.yaml").touch()
    (tmp_path / "stacks").mkdir()
    result = run("build", folder, "--model", "tumour", "--version", "1.0.0", "--json")
    assert json.loads(result.stdout)["store"] == str(tmp_path / ".state" / "store")


def test_outside_a_project_a_store_must_be_named(folder: Path) -> None:
    result = run("build", folder, "--model", "tumour", "--version", "1.0.0")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_version_with_other_bytes_fails_with_an_error_on_stderr(folder: Path) -> None:
    build(folder)
    (folder / "weights.bin").write_bytes(b"5678")
    result = build(folder, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert "already has tumour 1.0.0 with other bytes" in result.stderr


def test_a_wrong_package_yaml_fails_naming_the_key(folder: Path) -> None:
    (folder / "package.yaml").write_text(yaml.safe_dump(PACKAGE | {"licence": ""}))
    result = build(folder)
    assert result.exit_code == 1
    assert "package.licence" in result.stderr


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("Tumour", "1.0.0", "DNS-1123"),
        ("tumour", "1.0", "semantic version"),
        ("tumour", "1.0.0+build", "build metadata"),
    ],
)
def test_a_wrong_name_or_version_is_wrong_usage(folder: Path, model: str, version: str, words: str) -> None:
    result = build(folder, model=model, version=version)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (folder.parent / "store").exists()


def test_the_time_of_source_date_epoch_is_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    digest = json.loads(build(folder, "--json").stdout)["digest"]
    assert Artifact.at(Layout(tmp_path / "store"), "tumour", digest).description.created == "1970-01-02T00:00:00Z"


def test_a_source_date_epoch_that_is_no_number_is_wrong_usage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    result = build(folder)
    assert result.exit_code == 2
    assert "yesterday" in result.stderr


def test_verify_says_that_an_artifact_is_intact(folder: Path, tmp_path: Path) -> None:
    build(folder)
    result = run("verify", "tumour:1.0.0", "--store", tmp_path / "store")
    assert result.exit_code == 0
    assert "intact" in result.stdout


def test_verify_names_every_harmed_file(folder: Path, tmp_path: Path) -> None:
    (folder / "more.bin").write_bytes(b"more")
    digest = json.loads(build(folder, "--json").stdout)["digest"]
    store = Layout(tmp_path / "store")
    for part in Artifact.at(store, "tumour", digest).parts:
        (store.path / "blobs/sha256" / part.digest[7:]).write_bytes(b"harm")
    result = run("verify", "tumour:1.0.0", "--store", store.path)
    assert result.exit_code == 1
    assert "'more.bin'" in result.stderr
    assert "'weights.bin'" in result.stderr


def test_verify_of_a_version_that_is_not_there_fails(folder: Path, tmp_path: Path) -> None:
    build(folder)
    result = run("verify", "tumour:2.0.0", "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "it has 1.0.0" in result.stderr


def test_verify_without_a_version_is_wrong_usage(tmp_path: Path) -> None:
    assert run("verify", "tumour", "--store", tmp_path).exit_code == 2


def test_importing_the_command_loads_nothing_heavy() -> None:
    program = "import sys, cli.package; print([m for m in ('pydantic', 'ruamel.yaml', 'pulumi') if m in sys.modules])"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_verify_prints_the_faults_as_json(folder: Path, tmp_path: Path) -> None:
    build(folder)
    store = tmp_path / "store"
    sound = json.loads(run("verify", "tumour:1.0.0", "--store", store, "--json").stdout)
    expected = {"model": "tumour", "version": "1.0.0", "digest": Layout(store).resolve("tumour", "1.0.0"), "faults": []}
    assert sound.items() >= expected.items()
    blob = next(path for path in (store / "blobs" / "sha256").iterdir() if path.read_bytes() == b"1234")
    blob.chmod(0o644)
    blob.write_bytes(b"1235")
    harmed = run("verify", "tumour:1.0.0", "--store", store, "--json")
    assert harmed.exit_code == 1
    assert "weights.bin" in json.loads(harmed.stdout)["faults"][0]
