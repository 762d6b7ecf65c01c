"""Monitoring of kind `manifests` as a platform's own `lepton up` brings it up: Prometheus in a Pod of a real node.

The cluster is the tests' own, as monitoring's Pods go to any node. They are one story, in their order; the last takes
everything away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.cluster.live.api import Api
from infra.cluster.manifests.monitoring.workload import NOBODY
from infra.cluster.manifests.teams import pod_security
from infra.cluster.observe import Observer
from infra.contracts import PlatformExports
from infra.names import PLATFORM_PROJECT
from tests.cluster import images
from tests.cluster.control_plane import ControlPlane
from tests.cluster.daemon import missing
from tests.cluster.gateway import GatewayClass
from tests.cluster.node_services import NodeServices
from tests.cluster.node_services import lacking as lacking_services
from tests.cluster.real_node import RealNode
from tests.cluster.real_node_needs import lacking
from tests.deadline import until
from tests.engine.cluster_sandbox import Cluster, ServingSandbox

MODEL, VERSION, REPLICAS = "tumour", "1.0.0", 2
STORAGE = "1Gi"
NODE = "open"
NOBODY_HAS_IT = f"{images.PREFIX}/alertmanager@sha256:{'0' * 64}"

_SECONDS = 60


class Monitored(ServingSandbox):
    """A platform that brings its own Prometheus, and one version.

    Alertmanager waits for a secret that nobody makes.
    """

    def __init__(self, cluster: Cluster) -> None:
        assert cluster.node
        built = {"prometheus": images.prometheus(), "kube_state_metrics": images.kube_state_metrics()}
        server = cluster.node.import_image(cluster.image)
        super().__init__(
            cluster,
            images={"server": server, "puller": server, "alertmanager": NOBODY_HAS_IT}
            | {key: cluster.node.import_image(image) for key, image in built.items()},
            monitoring={
                "kind": "manifests",
                "scrape_interval": "2s",
                "storage": STORAGE,
                "alert_secrets": ["pager"],
                "alert_receivers": [{"name": "on-call"}],
            },
        )
        self.volume = f"volume-{self.unique}"
        self._make_volume(cluster.node)
        self.write_version(MODEL, VERSION, replicas=REPLICAS)

    def _make_volume(self, node: RealNode) -> None:
        """For Prometheus's claim, as an administrator makes it where nothing else does: a folder of root's."""
        folder = node.folder / self.volume
        folder.mkdir(mode=0o755)
        values = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}
        spec = {
            "capacity": {"storage": STORAGE},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": self.home, "name": "data-prometheus-0"},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [values]}]}},
        }
        metadata = {"name": self.volume}
        self.control_plane.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})

    def pod(self, name: str) -> dict[str, Any]:
        (found,) = self.control_plane.list("v1", "Pod", self.home, labels=f"app.kubernetes.io/name={name}")
        return found

    def prometheus(self, path: str) -> Any:
        """What it says of itself, through the API server."""
        api = Api({"kubeconfig": str(self.control_plane.kubeconfig), "context": None, "document": None})
        status, body = api.service(self.home, "prometheus", "9090", f"/api/v1/{path}")
        assert status == 200, body
        return json.loads(body)["data"]

    @property
    def observer(self) -> Observer:
        outcome = self.pulumi("stack", "output", "--json", "--stack", self.name, team=PLATFORM_PROJECT)
        exports: PlatformExports = json.loads(outcome.out)
        assert exports["metrics_url"] == f"kubernetes://{self.home}/prometheus:9090"
        return Observer(exports)


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[ControlPlane, RealNode]]:
    """A cluster of one node, which anybody's Pods may go to, and find Services on."""
    if reason := lacking() or lacking_services():
        pytest.skip(reason)
    if gone := missing("prometheus", "kube-state-metrics"):
        pytest.skip(f"no {', '.join(gone)} on PATH: `make tools` builds them")
    plane = ControlPlane.in_new_folder()
    with ExitStack() as closing:
        closing.callback(plane.stop)
        plane.start()
        found = RealNode(plane, plane.folder / "node", name=NODE)
        closing.callback(found.stop)
        found.start()
        plane.api.patch("v1", "Node", found.name, None, {"spec": {"taints": None}})
        closing.enter_context(NodeServices(plane, found))
        yield plane, found


@pytest.fixture(scope="module")
def monitored(node: tuple[ControlPlane, RealNode]) -> Iterator[Monitored]:
    plane, real = node
    gateway = GatewayClass(plane)
    gateway.start()
    sandbox = Monitored(Cluster(plane, gateway, "", real))
    try:
        sandbox.up()
        yield sandbox
    finally:
        sandbox.close()


def test_one_command_brings_monitoring_up_and_waits_for_nobody_s_secret(monitored: Monitored) -> None:
    for name in ("prometheus", "kube-state-metrics"):
        conditions = {entry["type"]: entry["status"] for entry in monitored.pod(name)["status"]["conditions"]}
        assert conditions["Ready"] == "True", name
    alertmanager = monitored.object("apps/v1", "StatefulSet", "alertmanager", monitored.home)
    assert not alertmanager["status"].get("readyReplicas")


def test_its_pods_have_no_rights_and_are_restricted(monitored: Monitored) -> None:
    assert monitored.cluster.node
    running = {process.name(): process for process in monitored.cluster.node.processes()}
    for name in ("prometheus", "kube-state-metrics"):
        process = running[name]
        assert set(process.uids()) == set(process.gids()) == {NOBODY}
        assert "ro" in _root_options(process)
    namespace = monitored.control_plane.namespace("nothing-but-restricted", **pod_security("restricted"))
    for name in ("prometheus", "kube-state-metrics", "alertmanager"):
        # As the account is of another namespace.
        spec = monitored.pod(name)["spec"] | {"serviceAccountName": "default", "serviceAccount": "default"}
        metadata = {"name": name, "namespace": namespace}
        monitored.control_plane.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dry_run=True
        )


def test_its_rules_are_all_evaluated(monitored: Monitored) -> None:
    def evaluated() -> list[dict[str, Any]]:
        rules = [rule for group in monitored.prometheus("rules")["groups"] for rule in group["rules"]]
        return rules if rules and all(rule["health"] != "unknown" for rule in rules) else []

    rules = until(evaluated, _SECONDS, what="every rule being evaluated")
    assert len(rules) > 40
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_it_scrapes_kube_state_metrics_and_the_kubelet(monitored: Monitored) -> None:
    wanted = dict.fromkeys(("prometheus", "kube-state-metrics", "cadvisor"), ("up", ""))

    def health() -> dict[str, tuple[str, str]]:
        targets = monitored.prometheus("targets")["activeTargets"]
        return {target["labels"]["job"]: (target["health"], target["lastError"]) for target in targets}

    with suppress(AssertionError):
        until(lambda: health().items() >= wanted.items(), _SECONDS)
    assert {job: state for job, state in health().items() if job in wanted} == wanted


def test_what_it_counts_of_a_version_is_read_through_the_api_server(monitored: Monitored) -> None:
    observer = monitored.observer
    whose = {"team": monitored.team, "model": MODEL, "version": VERSION}

    def value(metric: str) -> float | None:
        return next((value for labels, value in observer.query(metric) if labels.items() >= whose.items()), None)

    for metric in ("version:replicas:desired", "version:replicas:ready"):
        until(lambda metric=metric: value(metric) == REPLICAS, _SECONDS, what=f"{metric} being {REPLICAS}")
    until(lambda: (value("version:memory:bytes") or 0) > 0, _SECONDS, what="what the kubelet says of its memory")

    def busy() -> list[str]:
        return [labels["instance"] for labels, value in observer.query("node:cpu:ratio") if value > 0]

    # On a busy machine a scrape may come too late, and without one there is no metric.
    until(lambda: busy() == [NODE], _SECONDS, what="what the kubelet says of its processors")


def test_down_leaves_nothing_but_the_administrator_s_volume(monitored: Monitored) -> None:
    assert monitored.objects()
    monitored.must("down", monitored.name)
    assert monitored.objects() == [f"PersistentVolume -/{monitored.volume}"]


def _root_options(process: psutil.Process) -> set[str]:
    """With which the root of its file system is mounted."""
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()]
    (options,) = [fields[5] for fields in mounts if fields[4] == "/"]
    return set(options.split(","))
