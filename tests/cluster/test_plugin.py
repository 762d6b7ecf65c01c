"""The stand-in for Pulumi's Kubernetes plugin, under the real engine and against the real API server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import psutil
import pytest
import yaml
from pulumi.runtime.proto import provider_pb2

from tests.cluster.control_plane import ControlPlane
from tests.cluster.kwok_nodes import NEVER_READY, KwokNodes
from tests.deadline import until
from tests.plugins.kubernetes import COMMAND, has_real, objects, with_plugin
from tests.plugins.kubernetes.api import Api, Connection
from tests.plugins.kubernetes.server import Plugin
from tests.plugins.serving import to_python, to_struct

NO_CONTEXT = cast(grpc.ServicerContext, None)
"""Of use to a call that fails alone."""
REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json
import pulumi
import pulumi_kubernetes

document = json.load(open("objects.json"))
provider = pulumi_kubernetes.Provider("provider", **document["provider"])


class Object(pulumi.CustomResource):
    metadata: pulumi.Output[dict]


made = {}
for name, manifest in document["objects"].items():
    version, kind = manifest["apiVersion"], manifest["kind"]
    token = f"kubernetes:{version if '/' in version else 'core/' + version}:{kind}"
    for key, source in document["uids"].get(name, {}).items():
        manifest["data"][key] = made[source].metadata.apply(lambda metadata: metadata.get("uid", "not known yet"))
    made[name] = Object(
        token,
        name,
        manifest | {"status": None},
        pulumi.ResourceOptions(
            provider=provider,
            depends_on=list(made.values()),
            custom_timeouts=pulumi.CustomTimeouts(create=document["timeout"], update=document["timeout"]),
        ),
    )
"""


class Project:
    """A Pulumi program that declares the objects in `objects`, in their order."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder = folder
        self.objects: dict[str, Any] = {}
        self.uids: dict[str, dict[str, str]] = {}
        self.provider: dict[str, Any] = {"kubeconfig": str(kubeconfig)}
        self.timeout = "30s"
        self._started: list[subprocess.Popen[str]] = []
        (folder / "state").mkdir(parents=True)
        (folder / "__main__.py").write_text(PROGRAM)
        (folder / "Pulumi.yaml").write_text(
            f"name: plugin\nruntime: python\nbackend: {{url: 'file://{folder}/state'}}\n"
        )
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "PYTHON"))}
        path = [str(Path(sys.prefix) / "bin"), str(REPOSITORY / ".tools" / "bin"), mine["PATH"]]
        own = {"PATH": os.pathsep.join(path), "PULUMI_HOME": str(folder / "home"), "PULUMI_CONFIG_PASSPHRASE": ""}
        self.environment = with_plugin(mine | own | {"PULUMI_SKIP_UPDATE_CHECK": "true"})
        self.run("stack", "init", "test")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        names = ("objects", "uids", "provider", "timeout")
        (self.folder / "objects.json").write_text(json.dumps({name: getattr(self, name) for name in names}))
        process = subprocess.Popen(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Ends what a failed test left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=180)
        return process.returncode, out

    def up(self, *arguments: str) -> str:
        status, out = self.run("up", "--yes", "--skip-preview", *arguments)
        assert status == 0, out
        return out

    def fails(self, *arguments: str) -> str:
        status, out = self.run(*arguments)
        assert status != 0, out
        return out

    def plugins(self) -> list[psutil.Process]:
        """Those that work for this project."""
        home = str(self.folder / "home")
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if COMMAND in " ".join(process.cmdline()) and process.environ().get("PULUMI_HOME") == home:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def project(tmp_path: Path, control_plane: ControlPlane) -> Iterator[Project]:
    found = Project(tmp_path / "project", control_plane.kubeconfig)
    yield found
    found.close()


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    name = control_plane.namespace(request.node.name.replace("_", "-")[:50].strip("-"))
    yield name
    control_plane.delete("v1", "Namespace", name)


def config_map(name: str, namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def deployment(namespace: str, **pod: Any) -> dict[str, Any]:
    labels = {"app": "server"}
    pod = {"containers": [{"name": "server", "image": "example.com/server"}]} | pod
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server", "namespace": namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def test_an_object_is_previewed_made_changed_and_deleted(project: Project, control_plane: ControlPlane) -> None:
    space = "lives-and-dies"
    project.provider |= {"enable_config_map_mutable": True}
    project.objects = {
        "space": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}},
        "first": config_map("first", space, key="old"),
        "second": config_map("second", space),
    }
    project.uids = {"second": {"uid": "first"}}

    def live(name: str) -> dict[str, Any] | None:
        return control_plane.get("v1", "ConfigMap", name, space)

    status, out = project.run("preview")
    assert (status, control_plane.get("v1", "Namespace", space)) == (0, None), out

    project.up()
    first, second = live("first"), live("second")
    assert first
    assert second
    assert first["data"] == {"key": "old"}
    assert second["data"] == {"uid": first["metadata"]["uid"]}
    status, out = project.run("preview", "--expect-no-changes", "--refresh")
    assert status == 0, out

    project.objects["first"]["data"] = {"key": "new"}
    status, out = project.run("preview", "--diff")
    assert '~ key: "old" => "new"' in out
    assert live("first") == first
    project.up()
    changed = live("first")
    assert changed
    assert (changed["data"], changed["metadata"]["uid"]) == ({"key": "new"}, first["metadata"]["uid"])

    status, out = project.run("destroy", "--yes", "--skip-preview")
    assert (status, control_plane.get("v1", "Namespace", space)) == (0, None), out
    assert project.plugins() == []


def test_the_api_servers_refusal_is_seen_in_the_preview(project: Project, namespace: str) -> None:
    project.objects = {"a": config_map("a", namespace) | {"immutabel": True}}
    assert ".immutabel: field not declared in schema" in project.fails("preview")
    project.objects = {"a": {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}}}
    assert project.run("preview")[0] == 0, "the kind may be made by then"


def test_a_field_that_somebody_else_manages_is_taken_by_force_alone(
    project: Project, namespace: str, control_plane: ControlPlane
) -> None:
    control_plane.api.apply(config_map("a", namespace, key="theirs"), manager="somebody")
    project.objects = {"a": config_map("a", namespace, key="ours")}
    out = project.fails("up", "--yes", "--skip-preview")
    assert "field conflict detected" in out
    assert '"somebody"' in out
    project.objects["a"]["metadata"]["annotations"] = {"pulumi.com/patchForce": "true"}
    project.up()
    live = control_plane.get("v1", "ConfigMap", "a", namespace)
    assert live
    assert live["data"] == {"key": "ours"}


def test_drift_is_seen_by_a_refresh_and_repaired(project: Project, namespace: str, control_plane: ControlPlane) -> None:
    forced = {"annotations": {"pulumi.com/patchForce": "true"}}
    for name in ("edited", "deleted"):
        project.objects[name] = config_map(name, namespace, key="ours")
        project.objects[name]["metadata"] |= forced
    project.up()
    control_plane.api.patch("v1", "ConfigMap", "edited", namespace, {"data": {"key": "theirs", "more": "theirs"}})
    control_plane.delete("v1", "ConfigMap", "deleted", namespace)

    status, out = project.run("preview", "--expect-no-changes")
    assert status == 0, f"without a refresh nothing is seen:\n{out}"
    out = project.fails("preview", "--expect-no-changes", "--refresh", "--diff")
    assert '~ key: "theirs" => "ours"' in out
    project.provider |= {"enable_config_map_mutable": True}
    project.up("--refresh")
    edited = control_plane.get("v1", "ConfigMap", "edited", namespace)
    assert edited
    assert edited["data"] == {"key": "ours", "more": "theirs"}
    assert control_plane.get("v1", "ConfigMap", "deleted", namespace)


def test_a_deployment_is_waited_for(
    project: Project, namespace: str, control_plane: ControlPlane, kwok_nodes: KwokNodes
) -> None:
    project.objects = {"server": deployment(namespace)}
    project.up()
    live = control_plane.get("apps/v1", "Deployment", "server", namespace)
    assert live
    assert live["status"]["availableReplicas"] == 1


def test_a_deployment_that_does_not_become_ready_says_why_and_is_tried_again(
    project: Project, namespace: str, kwok_nodes: KwokNodes
) -> None:
    project.timeout = "3s"
    project.objects = {"server": deployment(namespace, nodeSelector={"no": "where"})}
    out = project.fails("up", "--yes", "--skip-preview")
    assert "not ready within 3 s; 0 of 1 replicas are available" in out
    assert re.search(r"PodScheduled False: Unschedulable: 0/\d+ nodes are available", out)

    stuck = [{"name": "server", "image": f"example.com/{NEVER_READY}"}]
    project.objects = {"server": deployment(namespace, containers=stuck)}
    out = project.fails("up", "--yes", "--skip-preview")
    assert "container server waiting: CrashLoopBackOff: back-off 40s restarting failed container" in out

    project.objects = {"server": deployment(namespace)}
    assert "1 updated" in project.up()


def test_an_object_that_is_not_to_be_waited_for_is_not(project: Project, namespace: str) -> None:
    project.objects = {"server": deployment(namespace, nodeSelector={"no": "where"})}
    project.objects["server"]["metadata"]["annotations"] = {"pulumi.com/skipAwait": "true"}
    project.up()


def test_what_can_not_change_in_place_is_replaced(
    project: Project, namespace: str, control_plane: ControlPlane
) -> None:
    project.objects = {"a": config_map("a", namespace, key="old"), "b": config_map("b", namespace)}
    project.up()
    before = control_plane.get("v1", "ConfigMap", "a", namespace)
    project.objects["a"]["data"]["key"] = "new"
    project.objects["b"]["metadata"]["name"] = "c"
    assert "2 replaced" in project.up().replace("+-", "")
    after = control_plane.get("v1", "ConfigMap", "a", namespace)
    assert before
    assert after
    assert before["metadata"]["uid"] != after["metadata"]["uid"]
    assert control_plane.get("v1", "ConfigMap", "b", namespace) is None
    assert control_plane.get("v1", "ConfigMap", "c", namespace)


def test_a_cluster_out_of_reach_fails_the_update_and_not_the_preview(project: Project, tmp_path: Path) -> None:
    kubeconfig = Path(project.provider["kubeconfig"]).read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("".join(_nowhere(line) for line in kubeconfig.splitlines(keepends=True)))
    project.provider["kubeconfig"] = str(elsewhere)
    project.objects = {"a": config_map("a", "default")}
    status, out = project.run("preview")
    assert status == 0, out
    assert "configured Kubernetes cluster is unreachable" in project.fails("up", "--yes", "--skip-preview")


def test_an_interrupted_update_stops_waiting(project: Project, namespace: str, control_plane: ControlPlane) -> None:
    project.timeout = "5m"
    project.objects = {"server": deployment(namespace, nodeSelector={"no": "where"})}
    process = project.start("up", "--yes", "--skip-preview")
    until(lambda: control_plane.get("apps/v1", "Deployment", "server", namespace), 60)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "the operation was cancelled" in out
    assert project.plugins() == []


def test_a_killed_engine_leaves_no_plugin(project: Project, namespace: str, control_plane: ControlPlane) -> None:
    project.timeout = "5m"
    project.objects = {"server": deployment(namespace, nodeSelector={"no": "where"})}
    process = project.start("up", "--yes", "--skip-preview")
    until(lambda: control_plane.get("apps/v1", "Deployment", "server", namespace), 60)
    assert project.plugins()
    process.kill()
    process.communicate()
    until(lambda: not project.plugins(), what="the plugin's end")


def test_what_is_read_without_inputs_is_all_but_what_the_server_owns(
    control_plane: ControlPlane, namespace: str
) -> None:
    live = control_plane.apply(config_map("a", namespace, key="value"))
    plugin = Plugin()
    settings = to_struct({"kubeconfig": control_plane.kubeconfig.read_text()})
    plugin.Configure(provider_pb2.ConfigureRequest(args=settings), NO_CONTEXT)

    def read(name: str) -> Any:
        urn = "urn:pulumi:stack::project::lepton:a:B$kubernetes:core/v1:ConfigMap::name"
        return plugin.Read(provider_pb2.ReadRequest(id=f"{namespace}/{name}", urn=urn), NO_CONTEXT)

    found = read("a")
    assert to_python(found.inputs) == config_map("a", namespace, key="value")
    assert to_python(found.properties)["metadata"]["uid"] == live["metadata"]["uid"]
    assert not read("b").id


def test_another_cluster_replaces_the_provider_and_another_way_to_it_does_not(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    text = control_plane.kubeconfig.read_text()
    ways = {
        "path": str(control_plane.kubeconfig),
        "contents": text,
        "elsewhere": "".join(map(_nowhere, text.splitlines(keepends=True))),
    }

    def replaces(way: str) -> list[str]:
        olds, news = to_struct({"kubeconfig": ways["path"]}), to_struct({"kubeconfig": ways[way]})
        return list(Plugin().DiffConfig(provider_pb2.DiffRequest(olds=olds, news=news), NO_CONTEXT).replaces)

    assert {way: replaces(way) for way in ways} == {"path": [], "contents": [], "elsewhere": ["kubeconfig"]}


def test_credentials_come_from_a_plugin_of_kubectl_too(control_plane: ControlPlane, tmp_path: Path) -> None:
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    user = document["users"][0]["user"]
    status = {
        "clientCertificateData": Path(user["client-certificate"]).read_text(),
        "clientKeyData": Path(user["client-key"]).read_text(),
    }
    version = "client.authentication.k8s.io/v1"
    (tmp_path / "answer").write_text(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}))
    command = {"apiVersion": version, "command": "cat", "args": [str(tmp_path / "answer")]}
    document["users"][0]["user"] = {"exec": command}
    connection = Connection.of(yaml.safe_dump(document), None)
    assert Api(connection).get("v1", "Namespace", "default")

    document["users"][0]["user"] = {"exec": command | {"args": ["/nowhere"]}}
    with pytest.raises(ValueError, match=r"cat exited with 1: .*/nowhere"):
        Connection.of(yaml.safe_dump(document), None)
    with pytest.raises(ValueError, match="the kubeconfig has no context 'other'"):
        Connection.of(yaml.safe_dump(document), "other")


def test_the_stand_in_steps_aside_for_a_real_plugin(tmp_path: Path) -> None:
    none = {"PATH": "/nowhere", "PULUMI_HOME": str(tmp_path)}
    assert with_plugin(none)["PATH"].startswith("/nowhere:")
    assert not has_real(with_plugin(none)), "the stand-in is not taken for the real one"
    real = tmp_path / "plugins" / "resource-kubernetes-v4.34.2" / COMMAND
    real.parent.mkdir(parents=True)
    real.touch(mode=0o755)
    assert with_plugin(none) == none
    assert with_plugin({"PATH": str(real.parent)}) == {"PATH": str(real.parent)}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1.0}, []),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}, [("limits.cpu", "update")]),
        ({}, {"a": []}, [("a", "add")]),
        ({"a": {}}, {}, [("a", "delete")]),
        ({"a": None}, {}, []),
        ({"a": {}}, {"a": {"b.c": 1}}, [('a["b.c"]', "add")]),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}]}, [("a[1]", "delete")]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, [("a[0].b", "update")]),
        ({"a": [1]}, {"a": [1, {}]}, [("a[1]", "add")]),
    ],
)
def test_differences_are_those_of_the_text(old: Any, new: Any, found: list[tuple[str, str]]) -> None:
    assert [(objects.written(path), what) for path, what in objects.differences(old, new)] == found


def _nowhere(line: str) -> str:
    return line.partition("server:")[0] + "server: https://127.0.0.1:9\n" if "server:" in line else line
