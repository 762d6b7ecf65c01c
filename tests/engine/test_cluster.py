"""The whole path in a Kubernetes cluster, by the commands that users type: real Pods behind a real Gateway.

The tests are one story, in their order; the last takes everything away.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from typing import Any

import httpx
import pytest

from benchmarks.open_loop import Request, json_field
from infra.cluster.names import SERVER
from model_packaging.artifact import Artifact
from tests.cluster.images import USER
from tests.deadline import until
from tests.engine.cluster_sandbox import Cluster, ServingSandbox
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import REPOSITORY, Outcome

MODEL = "tumour"
OLD, NEW, FAILING = "1.0.0", "1.1.0", "1.2.0"
VERSIONS = (OLD, NEW, FAILING)
ROLLOUT: dict[str, Any] = {
    "steps": [50, 100],
    "bake": "4s",
    "max_bake": "90s",
    "gates": [{"metric": "error_ratio", "detect": 0.3}],
}
"""The harm to be seen is so great that a few requests are enough to pass."""


class Example(ServingSandbox):
    """The example model's two versions on MLServer, and a third on the stand-in server, which fails every eleventh
    request: the ten samples that it has to answer before it gets any weight show nothing.

    Where no Pod is real the stand-in serves all three.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.endpoint = f"{self.team}/{self.name}.{MODEL}"
        built = self.run(
            sys.executable, str(REPOSITORY / "examples/tumour/build.py"), "--store", self.location, "--work",
            str(self.root / "example"), folder=REPOSITORY,
        )  # fmt: skip
        assert built.status == 0, built
        for version in (OLD, NEW):
            self.write_version(MODEL, version, package=False, **({"server": "mlserver"} if cluster.node else {}))
        self.write_version(MODEL, FAILING, "--error-ratio", str(1 / 11))
        self.write_endpoint(MODEL, {OLD: 90, NEW: 10}, rollout=ROLLOUT)
        self.brought_up: Outcome = self.must("up", self.name, "--requests", "100")

    @property
    def request(self) -> Request:
        """An inference on a row that no version was trained on."""
        sample = dict(Artifact.find(self.artifact_store, MODEL, OLD).description.package.samples[0])
        url = infer_url(self.url, MODEL, self.team)
        return Request(url, json.dumps(sample), version_in=json_field("model_version"))

    def rollout(self, *arguments: str) -> Outcome:
        return self.lepton("rollout", arguments[0], self.endpoint, *arguments[1:], "--json")


@pytest.fixture(scope="module")
def example(cluster: Cluster) -> Iterator[Example]:
    sandbox = Example(cluster)
    try:
        yield sandbox
    finally:
        sandbox.close()


def test_one_command_brings_platform_versions_and_endpoint_up(example: Example) -> None:
    assert f"{example.endpoint}  {example.url}/{example.team}/{MODEL}" in example.brought_up.out
    assert example.observed(example.endpoint) == {OLD: 90, NEW: 10}


def test_every_version_is_ready_in_pods_that_have_no_rights(example: Example) -> None:
    for version in VERSIONS:
        namespace = example.namespace(MODEL, version)
        labels = example.object("v1", "Namespace", namespace)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        (pod,) = example.control_plane.list("v1", "Pod", namespace)
        assert pod["spec"]["securityContext"]["runAsUser"] == USER
        conditions = {entry["type"]: entry["status"] for entry in pod["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        if example.cluster.node:
            assert pod["spec"]["nodeName"] == example.cluster.node.name


def test_the_model_answers_through_the_gateway_and_the_split_is_the_weights(example: Example) -> None:
    request = example.request
    with httpx.Client() as client:
        answers = [client.post(request.url, content=request.body, headers=request.headers) for _ in range(300)]
    assert {answer.status_code for answer in answers} == {200}
    versions = Counter(answer.json()["model_version"] for answer in answers)
    # Five standard deviations of a binomial distribution.
    assert abs(versions[NEW] - 30) < 5 * sqrt(300 * 0.1 * 0.9), versions
    if example.cluster.node:
        (prediction,) = [output for output in answers[0].json()["outputs"] if output["name"] == "predict"]
        assert prediction["data"] in ([0], [1])


def test_a_request_that_names_a_version_is_answered_by_it(example: Example) -> None:
    request = example.request
    for version in (OLD, NEW):
        headers = {**request.headers, "x-model-version": version}
        answers = [httpx.post(request.url, content=request.body, headers=headers) for _ in range(5)]
        assert {(answer.status_code, answer.json()["model_version"]) for answer in answers} == {(200, version)}


def test_traffic_send_says_which_version_answered(example: Example) -> None:
    sent = example.must("traffic", "send", example.endpoint, "--for", "2s", "--rate", "50", "--json").json
    assert sent["failures"] == {}
    assert set(sent["versions"]) <= {OLD, NEW}
    assert sum(sent["versions"].values()) == sent["requests"]


def test_a_healthy_canary_gets_all_traffic_and_no_request_is_lost(example: Example) -> None:
    with Load(example.request) as load:
        outcome = example.rollout("start", "--to", NEW)
    assert outcome.status == 0, outcome
    assert (outcome.json["phase"], outcome.json["weights"]) == ("succeeded", {OLD: 0, NEW: 100})
    assert [found["verdict"] for found in outcome.json["outcomes"]] == ["pass"]
    assert example.observed(example.endpoint) == {OLD: 0, NEW: 100}
    assert not load.lost()
    assert {answer.version for answer in load.answers} == {OLD, NEW}
    assert example.rollout("status").json == {"endpoint": example.endpoint, "rollout": None}


def test_rollback_restores_the_weights_of_before_the_canary(example: Example) -> None:
    with Load(example.request) as load:
        outcome = example.must("rollback", example.endpoint)
        until(lambda: load.answers[-1].version == OLD, what="answers of the version that most go to")
    assert f"{OLD}=90 {NEW}=10, as the data plane says" in outcome.out
    assert example.observed(example.endpoint) == {OLD: 90, NEW: 10}
    assert not load.lost()


def test_a_canary_that_fails_one_request_in_eleven_is_taken_back_and_costs_nothing_else(example: Example) -> None:
    with Load(example.request, rate=100) as load:
        outcome = example.rollout("start", "--to", FAILING)
    assert outcome.status == 1, outcome
    assert outcome.json["phase"] == "taken back"
    assert f"{FAILING} failed gate error-ratio" in outcome.json["reason"]
    weights = example.observed(example.endpoint)
    assert {version: weight for version, weight in weights.items() if weight} == {OLD: 90, NEW: 10}
    # The stand-in's own failures, and nothing of the Gateway's.
    assert {answer.failure for answer in load.lost()} == {"status 500"}
    assert load.of(FAILING)


def test_a_version_that_an_endpoint_serves_is_not_taken_away(example: Example) -> None:
    outcome = example.pulumi("destroy", "--yes", "--stack", f"{example.name}.{MODEL}-{NEW}")
    assert outcome.status != 0
    assert f"still a variant of {example.endpoint}" in outcome.out + outcome.err
    assert example.object("apps/v1", "Deployment", SERVER, example.namespace(MODEL, NEW))["status"]["readyReplicas"]


def test_down_leaves_nothing_in_the_cluster(example: Example) -> None:
    assert example.objects()
    example.must("down", example.name)
    assert example.objects() == []
