"""Nodes that only say that they run Pods, by kwok: for tests of size, of scheduling, and of GPUs that aren't here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon, missing
from tests.deadline import until

NEVER_READY = "never-ready"
"""A Pod with this word in a container's image runs, and never becomes ready."""

_STAGES = Path(__file__).parents[2] / ".tools" / "share" / "kwok"
_MANAGED = {"kwok.x-k8s.io/node": "fake"}
"""A label, as kwok lets go of a node that loses it; and the annotation that marks such nodes everywhere."""
_READY_SECONDS = 30
_STUCK = """\
phase: Running
conditions:
- {type: Initialized, status: "True"}
- {type: Ready, status: "False", reason: ContainersNotReady, message: "containers with unready status"}
- {type: ContainersReady, status: "False", reason: ContainersNotReady, message: "containers with unready status"}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: false
  restartCount: 3
  state: {waiting: {reason: CrashLoopBackOff, message: "back-off 40s restarting failed container"}}
{{ end }}
"""


class KwokNodes:
    """kwok beside a control plane. Without `pod_addresses` its Pods are ready and have no address: of a Service that
    selects them just the endpoints of host processes are left (`tests.cluster.gateway.put_behind`).
    """

    def __init__(self, control_plane: ControlPlane, *, pod_addresses: bool = True) -> None:
        self._control_plane = control_plane
        self._pod_addresses = pod_addresses
        self._daemon = Daemon("kwok", control_plane.folder)

    def start(self) -> None:
        if missing("kwok") or not _STAGES.exists():
            pytest.skip(f"no kwok on PATH, or no stages in {_STAGES}: `make tools` has both")
        (port,) = free_ports(1)
        stages = self._control_plane.folder / "stages.yaml"
        stages.write_text(yaml.safe_dump_all(self._stages()))
        self._daemon.start(
            "kwok",
            f"--kubeconfig={self._control_plane.kubeconfig}",
            f"--config={stages}",
            f"--manage-nodes-with-label-selector={','.join(f'{key}={value}' for key, value in _MANAGED.items())}",
            "--cidr=10.64.0.0/12",
            "--node-lease-duration-seconds=16",
            f"--server-address=127.0.0.1:{port}",
        )

    def stop(self) -> None:
        """The nodes are lost: nobody renews their leases any more."""
        self._daemon.stop()

    def start_again(self) -> None:
        self._daemon.start_again()

    def add(
        self,
        name: str,
        *,
        gpu: str = "",
        gpus: int = 0,
        labels: dict[str, str] | None = None,
        taints: list[dict[str, str]] | None = None,
        wait: bool = True,
        **resources: str | int,
    ) -> str:
        """A node, once Pods can be placed on it unless told not to wait; returns its name.

        `gpu` is a product as NVIDIA's feature discovery writes it (`NVIDIA-H100-80GB-HBM3`). `resources` are further
        ones or others, by their whole names: `**{"nvidia.com/mig-1g.10gb": 7, "cpu": 8}`.
        """
        own = {"nvidia.com/gpu": str(gpus)} if gpus else {}
        amounts = {"cpu": "64", "memory": "512Gi", "pods": "1000", "ephemeral-storage": "1Ti"} | own
        amounts |= {key: str(amount) for key, amount in resources.items()}
        own_labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        } | _MANAGED
        own_labels |= {"nvidia.com/gpu.product": gpu} if gpu else {}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "annotations": _MANAGED, "labels": own_labels | (labels or {})},
            "spec": {"taints": taints or []},
            "status": {"allocatable": amounts, "capacity": amounts},
        }
        self._control_plane.api.create(node)
        if wait:
            until(lambda: self.is_ready(name), _READY_SECONDS, what=f"node {name} being ready")
        return name

    def remove(self, name: str) -> None:
        self._control_plane.delete("v1", "Node", name)

    def lose(self, name: str) -> None:
        """The node is there, and nobody hears of it: its lease runs out, and it becomes NotReady."""
        self._control_plane.api.patch("v1", "Node", name, None, {"metadata": {"labels": dict.fromkeys(_MANAGED)}})

    def is_ready(self, name: str) -> bool:
        """Ready, and without the taint that a node has at first."""
        node = self._control_plane.get("v1", "Node", name) or {}
        conditions = (node.get("status") or {}).get("conditions") or []
        taints = (node.get("spec") or {}).get("taints") or []
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions) and not any(
            taint["key"].startswith("node.kubernetes.io/") for taint in taints
        )

    def _stages(self) -> list[dict[str, Any]]:
        stages = [yaml.safe_load(file.read_text()) for file in sorted(_STAGES.glob("*.yaml"))]
        is_stuck = f'.spec.containers.[].image | select( test("{NEVER_READY}") )'
        for stage in stages:
            if stage["metadata"]["name"] != "pod-ready":
                continue
            if not self._pod_addresses:
                stage["spec"]["next"]["statusTemplate"] = stage["spec"]["next"]["statusTemplate"].replace(
                    "{{ with $podIPs }}", "{{ with false }}"
                )
            stuck = json.loads(json.dumps(stage))
            stage["spec"]["selector"]["matchExpressions"].append({"key": is_stuck, "operator": "DoesNotExist"})
            stuck["metadata"]["name"] = "pod-never-ready"
            stuck["spec"]["selector"]["matchExpressions"].append({"key": is_stuck, "operator": "Exists"})
            stuck["spec"]["next"] = {"statusTemplate": _STUCK}
            stages.append(stuck)
        return stages
