"""Exports that are cut off, or run out of room or memory: what is there is whole."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.errors import DiskFull
from model_packaging.folders import remove
from model_packaging.forms import Folder, Form, Image, SageMaker, export
from tests.deadline import until
from tests.packaging.form_artifacts import make_artifact
from tests.packaging.form_bases import layer, make_layout

MEBIBYTE = 2**20
PROGRAM = """
import sys
from pathlib import Path
from model_packaging.artifact import Artifact
from model_packaging.forms import Folder, Image, SageMaker, export
from model_packaging.stores.layout import Layout
store, digest, base, target = sys.argv[1:]
forms = {"model": Folder(), "model.tar.gz": SageMaker(), "image": Image(Path(base)), "image.tar": Image(Path(base))}
artifact = Artifact.at(Layout(Path(store)), "tumour", digest)
export(artifact, forms[Path(target).name], Path(target), replace=True)
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")))
"""
TARGETS = ("model", "model.tar.gz", "image", "image.tar")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    noise = random.Random(1).randbytes(MEBIBYTE)
    files = {f"weights-{number}.bin": noise * 16 for number in range(2)}
    return make_artifact(tmp_path_factory.mktemp("artifact"), files, part_bytes=4 * MEBIBYTE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layout(tmp_path_factory.mktemp("base"), [layer({"program": b"program"})])


def form_for(target: str, base: Path) -> Form:
    return {"model": Folder(), "model.tar.gz": SageMaker()}.get(target) or Image(base)


def start(artifact: Artifact, base: Path, target: Path, output: int | None = None) -> subprocess.Popen[bytes]:
    arguments = [artifact.store.location, artifact.digest, str(base), str(target)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=output or subprocess.DEVNULL)


def content(target: Path) -> dict[str, bytes]:
    files = target.rglob("*") if target.is_dir() else [target]
    return {str(file.relative_to(target)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("name", TARGETS)
def test_a_killed_export_leaves_what_was_there_and_the_next_one_clears_up(
    artifact: Artifact, base: Path, tmp_path: Path, name: str
) -> None:
    export(artifact, form_for(name, base), tmp_path / "whole" / name)
    target = tmp_path / "out" / name
    for written_bytes in (0, 9 * MEBIBYTE):
        kill_midway(artifact, base, target, written_bytes)
        assert not target.exists()
    with start(artifact, base, target) as process:
        assert process.wait(30) == 0
    assert content(target) == content(tmp_path / "whole" / name)
    assert {path.name for path in target.parent.iterdir()} - {f".{name}.lepton-export"} == {name}


def kill_midway(artifact: Artifact, base: Path, target: Path, written_bytes: int) -> None:
    """Kills an export once it has written that much. One that was too fast for us doesn't count."""
    partial = target.with_name(f".{target.name}.partial")
    for _ in range(20):
        with start(artifact, base, target) as process:
            until(lambda: process.poll() is not None or written(partial) > written_bytes, what="the export writes")
            process.kill()
        if partial.exists():
            return
        remove(target)
    pytest.fail("every export was over before it could be killed")


def written(folder: Path) -> int:
    """Bytes of the files in a folder that someone else writes; -1 where there is none."""
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else -1
    except FileNotFoundError:
        return -1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine lets us mount no file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", TARGETS)
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    artifact: Artifact, base: Path, small_disk: Path, name: str
) -> None:
    with pytest.raises(DiskFull, match="has no room left: No space left on device"):
        export(artifact, form_for(name, base), small_disk / name)
    assert list(small_disk.iterdir()) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("large"), {"w.bin": bytes(256 * MEBIBYTE)}, part_bytes=2**30)


@pytest.mark.parametrize("name", ["model.tar.gz", "image.tar"])
def test_memory_stays_under_200_mb_whatever_the_size(large: Artifact, base: Path, tmp_path: Path, name: str) -> None:
    with start(large, base, tmp_path / name, subprocess.PIPE) as process:
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    label, peak, unit = told.decode().split()
    assert (label, unit) == ("VmHWM:", "kB")
    assert int(peak) * 1024 < 200e6
