"""A project with one environment of mode `cluster`, driven as a user drives it, in a cluster that sandboxes share."""

from __future__ import annotations

import json
import uuid
from typing import Any

from infra.cluster.live.api import Api, NotFoundError
from infra.names import PLATFORM_PROJECT
from model_packaging.stores import Store, open_store
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import CLASS, GatewayClass
from tests.engine.sandbox import Outcome, Sandbox
from tests.plugins.kubernetes import with_plugin

_UNIMPORTANT = ("Event", "Lease", "ComponentStatus")
"""Kinds of what comes and goes by itself."""


class ClusterSandbox(Sandbox):
    """Its environment, its team and its namespaces are its own, so that no two sandboxes meet."""

    def __init__(
        self,
        control_plane: ControlPlane,
        gateway_class: GatewayClass,
        *,
        store: str = "",
        **settings: Any,
    ) -> None:
        """`store`: where its versions come from, if not from a folder; `settings` are of `lepton:platform.cluster`.

        `home` is the namespace of its platform.
        """
        self.unique = uuid.uuid4().hex[:6]
        self.name = f"e{self.unique}"
        self.team = f"team-{self.unique}"
        self.home = f"lepton-{self.unique}"
        self.control_plane = control_plane
        self.location = f"{store}/{self.unique}" if store else ""
        self.settings: dict[str, Any] = {
            "existing": {"kubeconfig": str(control_plane.kubeconfig)},
            "namespace": self.home,
            "teams": {self.team: {}},
            "gateway": {"class_name": CLASS, "port": gateway_class.port},
            "monitoring": {"kind": "external", "url": "http://prometheus.example.org:9090"},
        } | settings
        super().__init__()

    # -- what a user writes

    def write_platform(self, *, ports: str = "", **changes: Any) -> None:
        """`changes` are of `lepton:platform.cluster`; a cluster has no ports to give away."""
        self.settings |= changes
        document: dict[str, Any] = {"environment": self.name, "mode": "cluster", "cluster": self.settings}
        if self.location:
            document["store"] = self.location
        self._write("platform", self.name, "platform", document)

    @property
    def artifact_store(self) -> Store:
        return open_store(self.location) if self.location else super().artifact_store

    # -- what a user runs

    @property
    def environment(self) -> dict[str, str]:
        return with_plugin(super().environment)

    def up(self) -> Outcome:
        return self.must("up", self.name, "--requests", "0")

    def deploy(self, address: str) -> Outcome:
        return self.lepton("deploy", address)

    # -- what is there

    def outputs(self, address: str | None = None) -> dict[str, Any]:
        """Of a team's stack, or of the platform's."""
        team, _, stack = (address or f"{PLATFORM_PROJECT}/{self.name}").partition("/")
        return self.pulumi("stack", "output", "--json", "--stack", stack, team=team).json

    def objects(self) -> list[str]:
        """Every object in the cluster that is of this environment, or names it: its kind, namespace and name."""
        api = Api({"kubeconfig": str(self.control_plane.kubeconfig), "context": None, "document": None})
        found: list[str] = []
        for kind, path in _lists(api):
            try:
                items = api.items(path)
            except NotFoundError:
                # Its definition was another test's, and has gone.
                continue
            for item in items:
                metadata = {**item["metadata"], "managedFields": None}
                if self.unique in json.dumps(item | {"metadata": metadata}):
                    found.append(f"{kind} {metadata.get('namespace', '-')}/{metadata['name']}")
        return sorted(found)

    def close(self) -> None:
        """Takes down what is up, and says what that leaves."""
        down = self.lepton("down", self.name)
        super().close()
        assert down.status == 0, down


def _lists(api: Api) -> list[tuple[str, str]]:
    """Kind and path of all that can be listed, each in the version that the API server prefers."""
    groups = api.get("/apis")["groups"]
    paths = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    return [
        (resource["kind"], f"{path}/{resource['name']}")
        for path in paths
        for resource in api.get(path)["resources"]
        if "list" in resource["verbs"] and resource["kind"] not in _UNIMPORTANT
    ]
