"""The example as a user has it: a real model on a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from infra.names import VERSION_HEADER
from infra.single_node.machine.claims import ports_of
from infra.single_node.machine.envoy import PROGRAM as ROUTER
from infra.single_node.machine.metrics import query
from infra.single_node.machine.supervisor import Supervisor
from model_packaging.artifact import Artifact
from rollout.split import measure_split
from tests.engine.sandbox import REPOSITORY, TEAM, Outcome, Sandbox

ENDPOINT = f"{TEAM}/dev.tumour"
WEIGHTS = {"1.0.0": 90, "1.1.0": 10}


class Example(Sandbox):
    def __init__(self) -> None:
        super().__init__()
        for file in (REPOSITORY / "stacks" / TEAM).glob("Pulumi.dev.tumour*.yaml"):
            shutil.copy(file, self.root / "stacks" / TEAM)
        # The repository's may hold what its owner last tried.
        self.write_endpoint("tumour", WEIGHTS)
        built = self.run(
            sys.executable, str(REPOSITORY / "examples/tumour/build.py"), "--store", str(self.store.path), "--work",
            str(self.root / ".state/examples"), folder=REPOSITORY,
        )  # fmt: skip
        assert built.status == 0, built
        self.up: Outcome = self.must("up", "dev")
        self.endpoint_url = f"{self.url}/{TEAM}/tumour"

    @property
    def sample(self) -> dict[str, Any]:
        return dict(Artifact.find(self.store, "tumour", "1.0.0").description.package.samples[0])

    def split(self, requests: int) -> dict[str, int]:
        found = measure_split(f"{self.endpoint_url}/v2/models/tumour/infer", self.sample, requests)
        assert found.failures == {}
        return found.versions


@pytest.fixture(scope="module")
def example() -> Iterator[Example]:
    sandbox = Example()
    try:
        yield sandbox
    finally:
        sandbox.close()


def test_up_prints_a_curl_that_works_when_pasted(example: Example) -> None:
    (curl,) = re.findall(r"^curl .*$", example.up.out, re.MULTILINE)
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    headers, body = answer.replace("\r", "").split("\n\n", 1)
    assert headers.startswith("HTTP/1.1 200")
    version = re.search(rf"^{VERSION_HEADER}: (\S+)$", headers, re.MULTILINE)
    assert version
    assert json.loads(body)["model_version"] == version[1]


def test_up_prints_the_url_and_the_measured_split(example: Example) -> None:
    assert f"{ENDPOINT}  {example.endpoint_url}" in example.up.out
    assert "split of 500 requests" in example.up.out


def test_the_catalogue_knows_where_each_version_is_deployed(example: Example) -> None:
    found = example.must("package", "list", "--environment", "dev", "--json").json
    assert [summary["version"] for summary in found] == list(WEIGHTS)
    deployed = example.must("package", "show", "tumour:1.0.0", "--json").json["deployments"]
    assert {(each["stack"], each["revision"], each["weight"]) for each in deployed} == {
        (f"{TEAM}/dev.tumour-1.0.0", 1, None),
        (ENDPOINT, 1, WEIGHTS["1.0.0"]),
    }


def test_a_version_that_is_served_is_not_retired(example: Example) -> None:
    for step in ("promote", "promote", "deprecate"):
        example.must("package", step, "tumour:1.1.0")
    assert_not_retired(example.lepton("package", "retire", "tumour:1.1.0"))


def test_nor_is_it_from_outside_of_the_project(example: Example, tmp_path: Path) -> None:
    url = f"sqlite:///{example.root / '.state' / 'catalogue.sqlite'}"
    assert_not_retired(example.run("lepton", "package", "retire", "tumour:1.1.0", "--catalogue", url, folder=tmp_path))


def test_nor_is_it_where_an_update_that_took_its_weight_has_failed(example: Example) -> None:
    file = example.config("dev.tumour")
    before = file.read_text()
    example.write_endpoint("tumour", {"1.0.0": 90, "9.9.9": 10})
    assert example.pulumi("up", "--yes", "--skip-preview", "--stack", "dev.tumour").status != 0
    example.write_endpoint("tumour", {"1.0.0": 90})
    assert_not_retired(example.lepton("package", "retire", "tumour:1.1.0"))
    file.write_text(before)


def assert_not_retired(refused: Outcome) -> None:
    assert refused.status == 1
    assert f"endpoint {ENDPOINT} gives it weight {WEIGHTS['1.1.0']}" in refused.err


def test_both_versions_answer_by_weight(example: Example) -> None:
    versions = example.split(1000)
    assert sum(versions.values()) == 1000
    # Five standard deviations of the binomial around 100.
    assert 53 <= versions["1.1.0"] <= 147


def test_an_ordinary_oip_client_works_against_the_printed_url(example: Example) -> None:
    data = np.array(example.sample["inputs"][0]["data"], dtype=np.float64).reshape(1, 30)
    tensor = triton_http.InferInput("features", [1, 30], "FP64")
    tensor.set_data_from_numpy(data, binary_data=False)
    with triton_http.InferenceServerClient(example.endpoint_url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        outputs = [triton_http.InferRequestedOutput("predict", binary_data=False)]
        answer = client.infer("tumour", [tensor], outputs=outputs)
    prediction = answer.as_numpy("predict")
    assert prediction is not None
    assert prediction.shape == (1, 1)


def test_grpc_reaches_the_versions_through_the_router(example: Example) -> None:
    data = np.array(example.sample["inputs"][0]["data"], dtype=np.float64).reshape(1, 30)
    tensor = triton_grpc.InferInput("features", [1, 30], "FP64")
    tensor.set_data_from_numpy(data)
    address = f"127.0.0.1:{example.port}"
    with triton_grpc.InferenceServerClient(
        address, channel_args=[("grpc.default_authority", f"tumour.{TEAM}")]
    ) as client:
        answer = client.infer("tumour", [tensor], headers={VERSION_HEADER: "1.1.0"})
    assert answer is not None
    assert answer.get_response().model_version == "1.1.0"


def test_grpc_reaches_the_server_itself(example: Example) -> None:
    (program,) = example.node.programs.glob("diagnostics.tumour-1.0.0_*.conf")
    port = ports_of(example.node, program.stem)["grpc"]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_model_ready("tumour")


def test_the_metrics_of_each_version_are_there(example: Example) -> None:
    example.split(100)

    def rates() -> dict[str, float]:
        samples = query(f"http://127.0.0.1:{example.metrics_port}", "version:requests:rate1m")
        return {labels["version"]: value for labels, value in samples if labels["model"] == "tumour"}

    found = example.wait_until(lambda: (r := rates()).get("1.0.0", 0) > 0 and r, 30, "a request rate")
    assert found["1.0.0"] > 0


def test_a_killed_server_costs_its_share_for_two_seconds_at_most_and_comes_back(example: Example) -> None:
    (pid,) = [p for p in example.server_pids("tumour", "1.1.0") if psutil.Process(p).ppid() == _supervisor(example)]
    example.must("traffic", "set", ENDPOINT, "1.0.0=50", "1.1.0=50")

    psutil.Process(pid).kill()
    killed = time.monotonic()
    while time.monotonic() - killed < 2:
        measure_split(f"{example.endpoint_url}/v2/models/tumour/infer", example.sample, 10)
    after = measure_split(f"{example.endpoint_url}/v2/models/tumour/infer", example.sample, 100)

    assert after.failures == {}
    example.wait_until(lambda: example.split(20).get("1.1.0"), 60, "the server's return")
    example.must("traffic", "set", ENDPOINT, "1.0.0=90", "1.1.0=10")


def test_a_killed_router_is_back_within_five_seconds_with_the_same_weights(example: Example) -> None:
    pid = Supervisor(example.node).pid(ROUTER)
    assert pid
    killed = time.monotonic()
    psutil.Process(pid).kill()

    def serves() -> bool:
        return (
            Supervisor(example.node).pid(ROUTER) != pid
            and not measure_split(f"{example.endpoint_url}/v2/models/tumour/infer", example.sample, 1, 1).failures
        )

    example.wait_until(serves, 5, "the router's return")
    assert time.monotonic() - killed < 5
    assert example.status(ENDPOINT)["observed_weights"] == WEIGHTS


def test_any_grpc_client_reaches_the_endpoint_by_its_host_name(example: Example) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{example.port}", [("grpc.default_authority", f"tumour.{TEAM}")]) as channel:
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=5)
    assert ready == b"\x08\x01"


def _supervisor(example: Example) -> int:
    return next(p.pid for p in example.processes() if "supervisor.supervisord" in " ".join(p.cmdline()))
