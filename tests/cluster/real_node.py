"""A real node of the tests' control plane: a kubelet and a containerd that run real Pods on this machine.

Both run in namespaces of their own (processes, mounts, network): whatever they start, mount and configure is gone with
the first of their processes, however it ends. What is outside is a folder, control groups, and one end of a cable.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster import images
from tests.cluster.control_plane import SERVICE_ADDRESSES, ControlPlane
from tests.cluster.daemon import Daemon
from tests.cluster.images import Image
from tests.cluster.real_node_needs import network_plugins
from tests.deadline import until

REAL_NODES = {"lepton-tests/node": "real"}
"""What real nodes are labelled with."""
TOLERATION = {"key": "lepton-tests/node", "value": "real", "effect": "NoSchedule"}
"""Without it no Pod gets there: nothing could run what tests with simulated nodes ask for."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_READY_SECONDS = 60
_CPU_SHARES, _CPU_WEIGHT = 20 * 1024, 20 * 100
"""Twenty times what a process has: of control groups of version 1, and of version 2."""
_TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""Below /proc/sys: a kubelet sets them for the whole machine where they have other values, so it is shown these."""

_ENTER = """
echo $$ >"$FOLDER/unshare.pid"
exec unshare --mount --pid --net --fork --kill-child --mount-proc "$@"
"""
"""Runs its arguments in namespaces of their own."""
_START = """
set -eu
mount --bind "$FOLDER/lib" /var/lib
mount --bind "$FOLDER/log" /var/log
mount -t tmpfs tmpfs /run
# The kubelet's cAdvisor looks nowhere else for whose a container is.
mkdir /run/containerd && ln -s "$SOCKET" /run/containerd/containerd.sock
for file in $(cd "$FOLDER/tunables" && find . -type f); do mount --bind "$FOLDER/tunables/$file" "/proc/sys/$file"; done
until ip link show dev eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip link add cni0 address 02:00:00:00:00:02 type bridge
ip link set eth0 master cni0 up
ip address add "$ADDRESS/24" dev cni0
ip link set cni0 up
ip route add default via "$GATEWAY"
containerd --config "$FOLDER/containerd.toml" >"$FOLDER/containerd.log" 2>&1 &
until ctr --address "$SOCKET" version >/dev/null 2>&1; do sleep 0.02; kill -0 $!; done
ctr --address "$SOCKET" --namespace k8s.io images import "$FOLDER/pause.tar"
"$@" >"$FOLDER/kubelet.log" 2>&1 &
wait -n
tail -n 5 "$FOLDER/containerd.log" "$FOLDER/kubelet.log"
"""
"""The first process of the namespaces, in which the arguments start the kubelet. It ends with either of the two."""


class RealNode:
    """The node of one folder: `start` makes it, and any process that has the folder can use it."""

    def __init__(self, control_plane: ControlPlane, folder: Path, name: str = "real") -> None:
        self.name = name
        self.folder = folder
        self._control_plane = control_plane
        self._daemon = Daemon("node", folder)
        self._socket = folder / "containerd.sock"

    # -- its life

    def start(self) -> None:
        """Returns when the node is Ready. Raises `AssertionError` with the last words of what failed."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        for part in ("lib", "log", "cni", "tunables"):
            (self.folder / part).mkdir(parents=True)
        for tunable, value in _TUNABLES.items():
            (self.folder / "tunables" / tunable).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "tunables" / tunable).write_text(f"{value}\n")
        _remove_stale_groups()
        network = _free_network()
        facts = {"address": f"{network}.2", "gateway": f"{network}.1", "name": f"lepton{random.randrange(10**8):08}"}
        (self.folder / "facts.json").write_text(json.dumps(facts))
        for group in self._control_groups(make=True):
            group.mkdir()
            _prefer(group)
        pause = images.pause()
        (self.folder / "pause.tar").write_bytes(pause.archive)
        self._write_configuration(network, pause)
        kubelet = ["kubelet", f"--config={self.folder / 'kubelet.yaml'}", f"--kubeconfig={self._credentials()}"]
        kubelet += [f"--hostname-override={self.name}", f"--node-ip={self.address}"]
        kubelet += [f"--node-labels={','.join(f'{label}={value}' for label, value in REAL_NODES.items())}"]
        env = {"FOLDER": self.folder, "SOCKET": self._socket, "ADDRESS": self.address, "GATEWAY": self.host}
        self._daemon.start(
            *("bash", "-c", _ENTER, "enter", "bash", "-c", _START, "node", *kubelet),
            env={key: str(value) for key, value in env.items()},
        )
        self._plug_in()
        until(self._is_ready, _READY_SECONDS, what="the node being Ready")

    def stop(self) -> None:
        """Ends it with all its Pods, and throws its folder away. Its Node object stays, and is NotReady soon."""
        if not (self.folder / "facts.json").exists():
            return
        init = self._init()
        self._daemon.stop()
        if init:
            # The kernel kills all of a PID namespace with its first process.
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(init.pid, signal.SIGKILL)
            until(lambda: not alive(init), what="the end of the node's processes")
        for group in self._control_groups():
            _remove_group(group)
        shutil.rmtree(self.folder)

    @property
    def running(self) -> bool:
        return self._daemon.running

    # -- how to use it

    @property
    def address(self) -> str:
        """The node's own. Pods have others of the same /24 network, which this machine reaches as well."""
        return self._facts["address"]

    @property
    def marks(self) -> list[str]:
        """What all traces of this node outside its namespaces have one of in their names."""
        facts = self._facts
        network = facts["address"].removesuffix("2")
        return [str(self.folder), facts["name"], network]

    @property
    def host(self) -> str:
        """This machine's address in the Pods' network."""
        return self._facts["gateway"]

    def import_image(self, image: Image) -> str:
        """Gives the node an image, and returns the reference by digest that Pods find it by."""
        archive = self.folder / f"{image.digest.removeprefix('sha256:')}.tar"
        archive.write_bytes(image.archive)
        self._ctr("images", "import", str(archive))
        self._ctr("images", "tag", "--force", image.name, image.reference)
        archive.unlink()
        return image.reference

    def offer(self, **resources: int) -> None:
        """Extended resources in the node's status, such as `offer(**{"nvidia.com/gpu": 2})`: no device is there."""
        amounts = {name: str(amount) for name, amount in resources.items()}
        status = {"status": {"capacity": amounts, "allocatable": amounts}}
        self._control_plane.api.patch("v1", "Node", self.name, None, status, subresource="status")
        until(lambda: self._allocatable().items() >= amounts.items(), what=f"the node offering {amounts}")

    def run(self, *command: str) -> str:
        """Runs a command of this machine in the node's network, and returns what it says."""
        init = self._init()
        assert init, "the node has ended"
        return _run("nsenter", f"--target={init.pid}", "--net", "--mount", *command)

    def processes(self) -> list[psutil.Process]:
        """Of the node, containers' included."""
        init = self._init()
        return [init, *init.children(recursive=True)] if init else []

    # -- private

    @property
    def _facts(self) -> dict[str, Any]:
        """Its addresses, and the name of its control groups and of this machine's end of its cable."""
        return json.loads((self.folder / "facts.json").read_text())

    def _is_ready(self) -> bool:
        assert self._daemon.running, f"the node ended:\n{self._daemon.last_words()}"
        node = self._control_plane.get("v1", "Node", self.name)
        conditions = node["status"].get("conditions", []) if node else []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def _allocatable(self) -> dict[str, str]:
        node = self._control_plane.get("v1", "Node", self.name)
        return node["status"]["allocatable"] if node else {}

    def _credentials(self) -> Path:
        return self._control_plane.credentials(f"system:node:{self.name}", ["system:nodes"])

    def _ctr(self, *arguments: str) -> None:
        command = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *arguments]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, f"{shlex.join(command)}: {outcome.stderr}"

    def _init(self) -> psutil.Process | None:
        """The first process of the node's namespaces: the only child of `unshare`."""
        file = self.folder / "unshare.pid"
        if file.exists():
            with contextlib.suppress(psutil.NoSuchProcess, ValueError):
                return next(iter(psutil.Process(int(file.read_text())).children()), None)
        return None

    def _plug_in(self) -> None:
        """Gives the node its network card, the other end of which is this machine's."""

        def entered() -> psutil.Process | None:
            assert self._daemon.running, f"the node ended:\n{self._daemon.last_words()}"
            return self._init()

        init = until(entered, what="the node's first process")
        assert init
        cable = self._facts["name"]
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(init.pid))
        _run("ip", "address", "add", f"{self.host}/24", "dev", cable)
        _run("ip", "link", "set", cable, "up")

    def _control_groups(self, *, make: bool = False) -> list[Path]:
        """The node's own, one in each hierarchy."""
        groups = [root / self._facts["name"] for root in _hierarchies()]
        return groups if make else [group for group in groups if group.exists()]

    def _write_configuration(self, network: str, pause: Image) -> None:
        plugins = network_plugins()
        assert plugins
        addresses = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": f"{network}.0/24", "rangeStart": f"{network}.10", "gateway": self.host}]],
            # Services' addresses are the node's affair, as soon as there is something at it that knows them.
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": SERVICE_ADDRESSES, "gw": self.address}],
        }
        # The bridge has the cable as a port: Pods and this machine are neighbours, and nothing is forwarded.
        bridge = {"type": "bridge", "bridge": "cni0", "ipam": addresses}
        conflist = {"cniVersion": "0.4.0", "name": "lepton-tests", "plugins": [bridge]}
        (self.folder / "cni" / "10-bridge.conflist").write_text(json.dumps(conflist))
        (self.folder / "runtime-spec.json").write_text(json.dumps(_runtime_spec()))
        (self.folder / "resolv.conf").write_text("")
        (self.folder / "containerd.toml").write_text(
            f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self._socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause.name}"
  # A machine that is itself a container lets nobody lower an OOM score.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{self.folder / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "{self.folder / "runtime-spec.json"}"
"""
        )
        evict = {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(self._control_plane.certificate_authority)},
            },
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._facts['name']}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "resolvConf": str(self.folder / "resolv.conf"),
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "makeIPTablesUtilChains": False,
            "localStorageCapacityIsolation": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": evict,
            "nodeStatusUpdateFrequency": "4s",
            "registerWithTaints": [TOLERATION],
        }
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(configuration))


def _runtime_spec() -> dict[str, Any]:
    """containerd's own default, and what of this machine containers see."""
    document = subprocess.run(["ctr", "oci", "spec"], capture_output=True, check=True).stdout
    spec = json.loads(document)
    for destination, source in images.mounts().items():
        options = ["rbind", "ro", "nosuid"]
        spec["mounts"].append(
            {"destination": str(destination), "type": "bind", "source": str(source), "options": options}
        )
    return spec


def _free_network() -> str:
    """The first three numbers of a network that this machine has no route to."""
    routes = _run("ip", "-4", "route", "show", "table", "all")
    candidates = [f"10.{second}.{third}" for second in range(180, 200) for third in range(250)]
    free = [candidate for candidate in candidates if f"{candidate}." not in routes]
    return random.choice(free)


def _run(*command: str) -> str:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, f"{shlex.join(command)}: {outcome.stderr}"
    return outcome.stdout


def alive(process: psutil.Process) -> bool:
    """Whether it runs still; one that nobody has asked for its end does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _hierarchies() -> list[Path]:
    if (_CONTROL_GROUPS / "cgroup.controllers").exists():
        return [_CONTROL_GROUPS]
    return [path for path in _CONTROL_GROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _remove_stale_groups() -> None:
    """Those of nodes whose run was killed: they have no network card any more."""
    for group in (group for root in _hierarchies() for group in root.glob(f"lepton{'[0-9]' * 8}")):
        is_new = time.time() - group.stat().st_mtime < _READY_SECONDS
        if not is_new and group.name not in psutil.net_if_addrs():
            _remove_group(group)


def _prefer(group: Path) -> None:
    """Against each single process outside, all Pods together would else count as one, and not answer their probes."""
    for file, amount in (("cpu.shares", _CPU_SHARES), ("cpu.weight", _CPU_WEIGHT)):
        if (group / file).exists():
            (group / file).write_text(str(amount))


def _remove_group(group: Path) -> None:
    def empty() -> bool:
        folders = [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]
        with contextlib.suppress(OSError):
            for folder in folders:
                folder.rmdir()
        return not group.exists()

    until(empty, what=f"nobody left in {group}")
