"""What goes wrong in a cluster, really caused: what then is said, what is left as it was, and how it is put right."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from benchmarks.open_loop import Request, json_field
from infra.cluster.names import ENVIRONMENT_LABEL, SERVER, team_namespace
from tests.certificates import make_certificates
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import NEVER_READY, KwokNodes
from tests.deadline import until
from tests.engine.cluster_sandbox import Cluster, ServingSandbox
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import Outcome
from tests.plugins.kubernetes.api import ApiError

OLD, NEW = "1.0.0", "2.0.0"
POOL_LABEL = "lepton-tests/pool"
ROUTES = "gateway.networking.k8s.io/v1", "HTTPRoute"
NEVER_READY_IMAGE = f"docker.io/lepton-tests/{NEVER_READY}@sha256:{'0' * 64}"
WEBHOOKS = "admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"
READY_TIMEOUT, BOUNDED_SECONDS = "5s", 150
"""In which a deploy that can't succeed fails, where it is given so long to be ready."""
RETURN_TIMEOUT = "180s"
"""After an API server was away, its clients look again within a minute: controllers, scheduler and nodes."""


class Faulty(ServingSandbox):
    """Two teams; an endpoint between two versions that really serve; and simulated nodes of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.nodes = KwokNodes(cluster.control_plane)
        super().__init__(cluster)
        self.others = f"others-{self.unique}"
        self.add_team(self.others)
        pools = [
            *self.settings["pools"],
            {"name": "spare", "labels": self.labels("spare")},
            {"name": "gpus", "labels": self.labels("gpus"), "gpu_resource": "nvidia.com/gpu"},
        ]
        self.write_platform(teams={self.team: {}, self.others: {}}, pools=pools)
        self.nodes.add(f"spare-{self.unique}", labels=self.labels("spare"))
        self.nodes.add(f"gpus-{self.unique}", labels=self.labels("gpus"), gpus=2)
        for version in (OLD, NEW):
            self.write_version("steady", version)
        self.endpoint = self.write_endpoint("steady", {OLD: 90, NEW: 10})
        self.write_version("lost", OLD, pool="spare")
        self.write_version("lost", NEW)
        self.losing = self.write_endpoint("lost", {OLD: 0, NEW: 100})
        self.write_version("greedy", OLD, pool="gpus", resources={"gpu": 2})
        self.forgotten = self.write_version("forgotten", OLD)
        self.up()
        # It takes a while until anybody notices.
        self.nodes.lose(f"spare-{self.unique}")

    def labels(self, pool: str) -> dict[str, str]:
        return {POOL_LABEL: f"{pool}-{self.unique}"}

    def request(self) -> Request:
        return Request(infer_url(self.url, "steady", self.team), version_in=json_field("model_version"))

    def edit_weights(self, weights: list[int]) -> None:
        """As `kubectl edit` does it."""
        namespace = team_namespace(self.name, self.team)
        route = self.object(*ROUTES, "steady", namespace)
        (split,) = [rule for rule in route["spec"]["rules"] if len(rule.get("backendRefs", [])) == len(weights)]
        for backend, weight in zip(split["backendRefs"], weights, strict=True):
            backend["weight"] = weight
        rules = {"spec": {"rules": route["spec"]["rules"]}}
        self.control_plane.api.patch(*ROUTES, "steady", namespace, rules, manager="kubectl-edit")

    def close(self) -> None:
        pods = client.CoreV1Api(self.control_plane.client())
        namespace = self.namespace("lost", OLD)
        for pod in self.control_plane.list("v1", "Pod", namespace):
            # As `kubectl delete --force`: nobody on a lost node says that the Pod has ended.
            pods.delete_namespaced_pod(pod["metadata"]["name"], namespace, grace_period_seconds=0)
        super().close()
        for name in ("spare", "gpus"):
            self.nodes.remove(f"{name}-{self.unique}")


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Iterator[Faulty]:
    sandbox = Faulty(cluster)
    try:
        yield sandbox
    finally:
        sandbox.close()


def test_an_edit_of_weights_by_kubectl_is_found_by_drift_and_put_right_by_the_next_deploy(project: Faulty) -> None:
    project.edit_weights([1, 99])
    drift = project.lepton("drift", project.endpoint)
    assert drift.status == 3, drift
    assert "HTTPRoute" in drift.out

    project.must("deploy", project.endpoint)

    assert project.observed(project.endpoint) == {OLD: 90, NEW: 10}
    assert project.must("drift", project.endpoint).status == 0


@pytest.fixture(scope="module")
def doomed(project: Faulty) -> dict[str, Outcome]:
    """What becomes of deploys that can't succeed, by the version's model."""
    if project.cluster.node:
        stuck = project.write_version("stuck", OLD, "--never-ready", ready_timeout=READY_TIMEOUT)
    else:
        stuck = project.write_version("stuck", OLD, ready_timeout=READY_TIMEOUT, image=NEVER_READY_IMAGE)
    greedy = project.write_version("greedy", NEW, pool="gpus", resources={"gpu": 1}, ready_timeout=READY_TIMEOUT)
    started = time.monotonic()
    deploys = {"stuck": project.start("lepton", "deploy", stuck), "greedy": project.start("lepton", "deploy", greedy)}
    outcomes = {model: project.finish(deploy) for model, deploy in deploys.items()}
    assert time.monotonic() - started < BOUNDED_SECONDS
    return outcomes


def test_a_pod_that_never_becomes_ready_fails_its_deploy_in_time_and_says_why(doomed: dict[str, Outcome]) -> None:
    assert doomed["stuck"].status == 1, doomed["stuck"]
    assert f"container {SERVER}" in doomed["stuck"].err


def test_a_version_beyond_the_gpus_fails_its_deploy_and_names_the_pool_and_what_it_lacks(
    doomed: dict[str, Outcome],
) -> None:
    assert doomed["greedy"].status == 1, doomed["greedy"]
    assert "pool gpus lacks 1 nvidia.com/gpu on one node: 0 are free" in doomed["greedy"].err


def test_a_version_whose_node_is_lost_gets_no_weight_and_others_serve_on(project: Faulty) -> None:
    namespace = project.namespace("lost", OLD)

    def unready() -> bool:
        slices = project.control_plane.list("discovery.k8s.io/v1", "EndpointSlice", namespace)
        return not any(found["conditions"]["ready"] for part in slices for found in part["endpoints"] or [])

    until(unready, 60, what="the lost node's endpoints being not ready")

    with Load(project.request()) as load:
        outcome = project.lepton("traffic", "set", project.losing, f"{OLD}=50", f"{NEW}=50")

    assert outcome.status == 1, outcome
    assert f"{OLD} has no ready replica" in outcome.err
    assert project.observed(project.losing) == {OLD: 0, NEW: 100}
    assert not load.lost()


def test_a_namespace_that_somebody_deleted_is_drift_and_the_next_deploy_makes_it_again(project: Faulty) -> None:
    namespace = project.namespace("forgotten", OLD)
    project.control_plane.delete("v1", "Namespace", namespace)
    until(lambda: not project.control_plane.get("v1", "Namespace", namespace), 90, what="the namespace's end")

    drift = project.lepton("drift", project.forgotten)
    assert drift.status == 3, drift
    assert "Namespace" in drift.out
    project.must("deploy", project.forgotten)

    assert project.object("apps/v1", "Deployment", SERVER, namespace)["status"]["readyReplicas"] == 1


def test_an_admission_webhook_that_refuses_is_quoted_and_nothing_of_the_workload_is_made(
    project: Faulty, tmp_path: Path
) -> None:
    version = project.write_version("refused", OLD)
    reason = "no deploys on Fridays, says the change board"
    with _refusing(project, tmp_path, reason):
        outcome = project.lepton("deploy", version)
        assert outcome.status == 1, outcome
        assert reason in outcome.err
        assert not project.control_plane.get("apps/v1", "Deployment", SERVER, project.namespace("refused", OLD))
    project.must("deploy", version)


def test_two_teams_deploy_at_the_same_time(project: Faulty) -> None:
    versions = [project.write_version("both", OLD), project.write_version("both", OLD, team=project.others)]
    deploys = [project.start("lepton", "deploy", version) for version in versions]
    outcomes = [project.finish(deploy) for deploy in deploys]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes


def test_an_api_server_that_goes_during_a_deploy_fails_it_in_time_and_the_next_one_succeeds(
    own_control_plane: ControlPlane,
) -> None:
    gateway, nodes = GatewayClass(own_control_plane), KwokNodes(own_control_plane)
    gateway.start()
    nodes.start()
    nodes.add("simulated", labels={POOL_LABEL: "simulated"})
    nowhere = "http://127.0.0.1:9"
    project = ServingSandbox(
        Cluster(own_control_plane, gateway, nowhere, None),
        pools=[{"name": "real", "labels": {POOL_LABEL: "simulated"}}],
    )
    try:
        project.up()
        version = project.write_version("cut", OLD, image=NEVER_READY_IMAGE, ready_timeout="15s")
        deploy = project.start("lepton", "deploy", version)
        namespace = project.namespace("cut", OLD)
        until(lambda: own_control_plane.get("apps/v1", "Deployment", SERVER, namespace), 60, what="the Deployment")
        own_control_plane.stop_api_server()
        gone = time.monotonic()
        outcome = project.finish(deploy)
        assert outcome.status == 1, outcome
        assert time.monotonic() - gone < BOUNDED_SECONDS
        assert own_control_plane.url in outcome.err

        own_control_plane.start_api_server()
        project.write_version("cut", OLD, ready_timeout=RETURN_TIMEOUT)
        project.must("deploy", version)
        assert project.locks("cut") == []
    finally:
        own_control_plane.start_api_server()
        project.close()


@contextmanager
def _refusing(project: ServingSandbox, folder: Path, reason: str) -> Iterator[None]:
    """A validating webhook that refuses every Deployment of the project's environment."""

    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            response = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": reason}}
            body = json.dumps({**review, "request": None, "response": response}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: pytest's output is for the tests."""

    made = make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    name, authority = f"refusing-{project.unique}", made.authority.read_bytes()
    project.control_plane.apply(_webhook(name, server.server_port, authority, project.name))
    namespace = team_namespace(project.name, project.team)
    try:
        until(lambda: _is_refused(project, namespace), what="the webhook being asked")
        yield
        project.control_plane.delete(*WEBHOOKS, name)
        until(lambda: not _is_refused(project, namespace), what="the webhook being asked no longer")
    finally:
        project.control_plane.delete(*WEBHOOKS, name)
        server.shutdown()
        thread.join()
        server.server_close()


def _webhook(name: str, port: int, authority: bytes, environment: str) -> dict[str, Any]:
    return {
        "apiVersion": WEBHOOKS[0],
        "kind": WEBHOOKS[1],
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "refusing.tests.lepton",
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/",
                    "caBundle": base64.b64encode(authority).decode(),
                },
                "rules": [
                    {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
                ],
                "namespaceSelector": {"matchLabels": {ENVIRONMENT_LABEL: environment}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 5,
            }
        ],
    }


def _is_refused(project: ServingSandbox, namespace: str) -> bool:
    """Whether a Deployment in this namespace would be."""
    labels = {"app": "probe"}
    container = {"name": "probe", "image": "docker.io/lepton-tests/probe"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    probe = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "probe", "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    try:
        project.control_plane.apply(probe, dry_run=True)
    except ApiError as refusal:
        return "denied the request" in str(refusal)
    return False
