"""The same work on a Ray cluster, which these tests start and stop."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from model_packaging.errors import EngineMissing
from model_packaging.evaluation.engines.ray import RayEngine
from model_packaging.evaluation.options import Options
from model_packaging.evaluation.run import evaluate
from model_packaging.evaluation.version import Progress
from tests.deadline import until
from tests.evaluation.conftest import SameProcess, Version

OPTIONS = Options(target="label", latency_requests=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one node, whose files and whose tasks' files are in one folder."""
    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        for variable in ("RAY_TMPDIR", "TMPDIR"):
            patch.setenv(variable, folder)
        started = Cluster(initialize_head=True, head_node_args=head)
        yield str(started.address)
        started.shutdown()


def test_a_cluster_gives_what_this_machine_gives(cluster: str, version: Version, table: Path) -> None:
    requests = [version("1.0.0"), version("1.1.0", "worse"), version("1.2.0", "fails")]
    told: list[Progress] = []
    on_ray = evaluate(requests, table, OPTIONS, RayEngine(cluster), told.append)
    here = evaluate(requests, table, OPTIONS, SameProcess())
    assert [one.metrics for one in on_ray.evaluations] == [one.metrics for one in here.evaluations]
    assert on_ray.comparisons == here.comparisons
    assert [one.version for one in on_ray.failures] == ["1.2.0"]
    assert "the weights are wrong" in on_ray.failures[0].reason
    assert {(one.version, one.stage) for one in told} >= {("1.0.0", "done"), ("1.1.0", "done"), ("1.2.0", "failed")}
    assert not ray.is_initialized()


@pytest.fixture
def connected(cluster: str) -> Iterator[None]:
    ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("connected")
def test_a_process_that_is_connected_stays_so(version: Version, table: Path) -> None:
    assert len(evaluate([version()], table, OPTIONS, RayEngine()).evaluations) == 1
    assert ray.is_initialized()


@pytest.mark.usefixtures("connected")
def test_a_node_without_the_data_fails_its_version(version: Version, table: Path) -> None:
    def remove(progress: Progress) -> None:
        if progress.stage == "waiting":
            table.rename(table.with_suffix(".gone"))

    found = evaluate([version()], table, OPTIONS, RayEngine(), remove)
    assert "every machine that evaluates needs it there" in found.failures[0].reason


@pytest.mark.usefixtures("connected")
def test_a_worker_that_is_killed_fails_its_version_and_takes_its_server_along(version: Version, table: Path) -> None:
    hanging = version(behaviour="hangs")
    killed: list[int] = []

    def kill_worker() -> None:
        until((hanging.folder / "requests.jsonl").exists, 60, what="the first request")
        server = psutil.Process(int((hanging.folder / "server.pid").read_text()))
        guard = server.parent()
        assert guard is not None
        worker = guard.parent()
        assert worker is not None
        worker.kill()
        killed.append(server.pid)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    found = evaluate([hanging], table, OPTIONS, RayEngine())
    killer.join()
    assert "its Ray task was lost" in found.failures[0].reason
    until(lambda: not psutil.pid_exists(killed[0]), what="the end of the server")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_no_cluster_is_an_error_that_says_how_to_start_one(address: str) -> None:
    with pytest.raises(EngineMissing, match=f"no Ray cluster answers at '{address}'.*ray start --head"):
        RayEngine(address).run([], lambda _: None)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineMissing, match=r"pip install 'lepton\[ray\]'"):
        RayEngine().run([], lambda _: None)
