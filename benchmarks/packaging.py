"""What packaging costs beside the least that could be done: one pass of `sha256sum` over the same files.

Also beside `tar | gzip` and a Docker image build, as models are packaged elsewhere; when one file of a hundred changed;
and when a store gets a version of which it has 95 % already. Files are random, as weights are to a compressor, and lie
in the page cache. What a build writes is on disk when it ends; nothing waits for that with the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks.processes import BenchmarkError, MissingToolError, find, version_of
from benchmarks.results import Cell, Figures, Goal, Result, Spread, Table
from model_packaging.build import build_artifact
from model_packaging.memory import Memory
from model_packaging.stores.copying import copy_version
from model_packaging.stores.layout import Layout
from tests.docker.engine import NoEngineError, connect, own_engine

SIZE_BYTES = 2_000_000_000
FILES = 100
CHANGED = 5
"""Files in which the version that is copied differs from the one that is there."""
SETTLED_SECONDS = 2.5
"""After so long a file counts as one that a later write would show on."""
GOAL_BUILD = 1.3
GOAL_REBUILD = 1.5
GOAL_COPY = 0.15
PACKAGE = "framework: {name: none, version: '1'}\ntraining_data: random\nlicence: MIT\nsamples: [{prompt: hello}]\n"


def run(
    directory: Path,
    rounds: int,
    seconds: float,
    progress: Progress,
    *,
    size_bytes: int = SIZE_BYTES,
    docker: bool = True,
) -> Result:
    del seconds
    bench = _Bench(directory, size_bytes)
    needed = 6 * size_bytes
    if shutil.disk_usage(directory).free < needed:
        raise BenchmarkError(f"{directory} has less than the {needed / 1e9:.0f} GB of room that this takes")
    result = Result(
        "packaging",
        {"bytes": size_bytes, "files": FILES, "rounds": rounds, "sha256sum": version_of(["sha256sum", "--version"])},
    )
    bench.prepare()
    parts: list[dict[str, float]] = []
    for number in progress.track(range(rounds), description="packaging"):
        work: list[tuple[str, Callable[[], float]]] = [
            ("sha256sum", bench.sha256sum),
            ("openssl", bench.openssl),
            ("build", bench.build),
            ("rebuild", bench.rebuild),
            ("one file", bench.build_one_file),
            ("copy", bench.copy_all),
            ("copy 5 %", bench.copy_the_rest),
        ]
        # Neither of the two that are compared always goes first.
        order = work if number % 2 == 0 else [work[2], work[0], work[1], *work[3:]]
        parts.append({name: measure() for name, measure in order})
    once = {"tar | gzip": bench.tar_gzip()}
    try:
        once |= {"docker build": bench.docker_build()} if docker else {}
    except (MissingToolError, NoEngineError) as missing:
        result.left_out.append(f"a Docker image build: {missing}")
    _report(result, parts, once)
    return result


def _report(result: Result, parts: list[dict[str, float]], once: dict[str, float]) -> None:
    def spread(name: str) -> Spread:
        return Spread.of([one[name] for one in parts])

    def ratio(name: str, base: str) -> Spread:
        return Spread.of([one[name] / one[base] for one in parts])

    size = f"{result.settings['bytes'] / 1e9:g} GB" if isinstance(result.settings["bytes"], int) else ""
    sha256sum = spread("sha256sum").median
    rows: list[list[Cell]] = [
        ["sha256sum", spread("sha256sum"), 1.0],
        ["openssl dgst -sha256, with the processor's instructions", spread("openssl"), ratio("openssl", "sha256sum")],
        ["build into a layout", spread("build"), ratio("build", "sha256sum")],
        *([name, seconds, seconds / sha256sum] for name, seconds in once.items()),
    ]
    result.tables.append(Table(f"{size} in {FILES} files", ["", "seconds", "beside sha256sum"], rows))
    rows = [
        ["build again, one file changed", spread("rebuild"), ratio("rebuild", "build")],
        ["build of that file alone", spread("one file"), ratio("one file", "build")],
        ["copy to an empty store", spread("copy"), ratio("copy", "build")],
        [f"copy where all but {CHANGED} files are", spread("copy 5 %"), ratio("copy 5 %", "build")],
    ]
    result.tables.append(Table("What is there already", ["", "seconds", "beside the build"], rows))
    goals = [
        ("build / sha256sum", "build", "sha256sum", GOAL_BUILD),
        ("build with one of 100 files changed / build of that file", "rebuild", "one file", GOAL_REBUILD),
        ("copy with 95 % present / copy of all", "copy 5 %", "copy", GOAL_COPY),
    ]
    for text, name, base, bound in goals:
        result.goals.append(
            Goal(text, statistics.median(one[name] / one[base] for one in parts), bound, at_least=False)
        )
    figures: list[Figures] = [{name: {"seconds": seconds} for name, seconds in one.items()} for one in parts]
    result.rounds["packaging"] = [*figures, {name: {"seconds": seconds} for name, seconds in once.items()}]


@dataclass
class _Bench:
    """Each method does one thing once and returns the seconds that it took."""

    home: Path
    size_bytes: int

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def single(self) -> Path:
        return self.home / "single"

    @property
    def files(self) -> list[Path]:
        return sorted(self.model.glob("weights-*"))

    def prepare(self) -> None:
        for folder in (self.model, self.single):
            folder.mkdir()
            (folder / "package.yaml").write_text(PACKAGE)
        for number in range(FILES):
            self._fill(self.model / f"weights-{number:03}")
        os.sync()

    def _fill(self, file: Path) -> None:
        file.write_bytes(os.urandom(self.size_bytes // FILES))

    def sha256sum(self) -> float:
        return _timed(lambda: _silent([find("sha256sum", "coreutils"), *map(str, self.files)]))

    def openssl(self) -> float:
        return _timed(lambda: _silent([find("openssl", "openssl"), "dgst", "-sha256", *map(str, self.files)]))

    def build(self) -> float:
        with self._store("model-built") as store:
            return _timed(lambda: build_artifact(self.model, "bench", "1.0.0", store))

    def rebuild(self) -> float:
        memory = Memory(self.home / "digests.sqlite")
        # What was written less than this ago would be read again.
        newest = max(file.stat().st_ctime for file in self.files)
        time.sleep(max(0.0, newest + SETTLED_SECONDS - time.time()))
        with self._store("rebuilt") as store:
            build_artifact(self.model, "bench", "1.0.0", store, memory=memory)
            self._fill(self.files[0])
            return _timed(lambda: build_artifact(self.model, "bench", "1.1.0", store, memory=memory))

    def build_one_file(self) -> float:
        self._fill(self.single / "weights")
        with self._store("single-built") as store:
            return _timed(lambda: build_artifact(self.single, "bench", "1.0.0", store))

    def copy_all(self) -> float:
        with self._store("source") as source, self._store("target") as target:
            build_artifact(self.model, "bench", "1.0.0", source)
            return _timed(lambda: copy_version(source, target, "bench", "1.0.0"))

    def copy_the_rest(self) -> float:
        with self._store("source") as source, self._store("target") as target:
            build_artifact(self.model, "bench", "1.0.0", source)
            copy_version(source, target, "bench", "1.0.0")
            for file in self.files[:CHANGED]:
                self._fill(file)
            build_artifact(self.model, "bench", "1.1.0", source)
            return _timed(lambda: copy_version(source, target, "bench", "1.1.0"))

    def tar_gzip(self) -> float:
        archive = self.home / "model.tar.gz"
        find("gzip", "gzip")
        try:
            return _timed(lambda: _silent([find("tar", "tar"), "-czf", str(archive), "-C", str(self.model), "."]))
        finally:
            archive.unlink(missing_ok=True)

    def docker_build(self) -> float:
        """An image of the files and nothing else, by the environment's engine or one of the benchmark's own."""
        command = [find("docker", "docker-cli"), "build", "--quiet", "--no-cache", "--tag", "lepton-bench", "."]
        (self.model / "Dockerfile").write_text("FROM scratch\nCOPY weights-* /model/\n")
        try:
            with _engine() as host:
                environment = os.environ | ({"DOCKER_HOST": host} if host else {})
                try:
                    return _timed(lambda: _silent(command, cwd=self.model, env=environment))
                finally:
                    remove = [command[0], "image", "rm", "--force", "lepton-bench"]
                    subprocess.run(remove, env=environment, capture_output=True, check=False)
        finally:
            (self.model / "Dockerfile").unlink()

    @contextlib.contextmanager
    def _store(self, name: str) -> Iterator[Layout]:
        """A new store; gone after the block, and written back first, so that the next one finds the disk idle."""
        path = self.home / name
        os.sync()
        try:
            yield Layout(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _engine() -> Iterator[str | None]:
    client = connect()
    if client is not None:
        client.close()
        yield None
        return
    with own_engine() as host:
        yield host


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _silent(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    outcome = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise BenchmarkError(f"{command[0]} failed: {outcome.stderr.strip()[-500:]}")
