"""The Docker Engine of the tests: the environment's where one answers, else a `dockerd` of their own."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import psutil
import pytest
from docker import DockerClient

_START_SECONDS = 60
_STOP_SECONDS = 60
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_PLUGINS = Path("/run/docker/plugins")


@dataclass(frozen=True)
class Engine:
    client: DockerClient
    image: str
    """Holds nothing but the programs `/oip-server`, the stand-in model server, and `/inside`."""
    is_own: bool
    """Whether it is the tests' alone."""


class NoEngineError(Exception):
    """There is no engine, and none can be started. Its text says why."""


def connect(environment: Mapping[str, str] | None = None) -> DockerClient | None:
    """The engine that the environment's `DOCKER_HOST` or the default socket leads to, if it answers."""
    client = None
    with warnings.catch_warnings():
        # The client leaves the socket of an attempt that failed to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.from_env(environment=environment)
        gc.collect()
    return client


@contextlib.contextmanager
def any_engine() -> Iterator[tuple[DockerClient, bool]]:
    """A client of the environment's engine, or of one of the tests' own, and whether it is that.

    What is tested finds the same one. Skips where there is none.
    """
    with contextlib.ExitStack() as stack:
        client = connect()
        is_own = client is None
        if client is None:
            try:
                address = stack.enter_context(own_engine())
            except NoEngineError as reason:
                pytest.skip(str(reason))
            stack.enter_context(pytest.MonkeyPatch.context()).setenv("DOCKER_HOST", address)
            client = docker.from_env()
        stack.callback(client.close)
        yield client, is_own


@contextlib.contextmanager
def own_engine() -> Iterator[str]:
    """Runs a `dockerd` with a folder of its own, and gives its `DOCKER_HOST`. One at a time: others wait.

    Raises:
        NoEngineError: where that can't be done.
    """
    program = shutil.which("dockerd")
    if program is None:
        raise NoEngineError("no Docker Engine answers, and dockerd is not installed (on Debian: docker.io)")
    if os.geteuid() != 0:
        raise NoEngineError("no Docker Engine answers, and only root can start one")
    with open(program, "rb") as lock:
        # Two would write each other's firewall rules.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _machine_restored():
            folder = Path(tempfile.mkdtemp(prefix="lepton-dockerd-"))
            try:
                yield from _run(folder)
            finally:
                _unmount_below(folder)
                shutil.rmtree(folder)
                for group in [*_CONTROL_GROUPS.glob(folder.name), *_CONTROL_GROUPS.glob(f"*/{folder.name}")]:
                    group.rmdir()


def _run(folder: Path) -> Iterator[str]:
    address = f"unix://{folder}/docker.sock"
    (folder / "daemon.json").write_text("{}")
    command = ["dockerd", "--host", address, "--config-file", str(folder / "daemon.json")]
    command += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--pidfile", str(folder / "dockerd.pid"), "--bridge", "none", "--log-level", "warn"]
    command += ["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{folder.name}"]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (client := connect({"DOCKER_HOST": address})) is None:
            if daemon.poll() is not None or time.monotonic() > deadline:
                last = "\n".join((folder / "log").read_text().splitlines()[-3:])
                raise NoEngineError(f"this machine does not let dockerd start: {last}")
            time.sleep(0.05)
        with contextlib.closing(client):
            yield address
            # What failed tests leave: its firewall rules and interfaces would outlive the daemon.
            for container in client.containers.list(all=True):
                container.remove(force=True)
            client.networks.prune()
    finally:
        daemon.terminate()
        try:
            daemon.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        # What dockerd would have ended itself, had it been given the time.
        left = [process for process in psutil.process_iter() if _names(process, folder)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def _names(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(argument.startswith(str(folder)) for argument in process.cmdline())
    except psutil.Error:
        return False


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=True)


@contextlib.contextmanager
def _machine_restored() -> Iterator[None]:
    """Takes away what dockerd leaves outside its folder, unless another had left the same before."""
    forwarding, rules, has_plugins = _FORWARDING.read_text(), _rules(), _PLUGINS.exists()
    try:
        yield
    finally:
        if not has_plugins and _PLUGINS.exists():
            _PLUGINS.rmdir()
            _PLUGINS.parent.rmdir()
        if not any("DOCKER" in rule for _, rule in rules):
            left = [(table, rule.split()) for table, rule in _rules() if "DOCKER" in rule]
            # A chain goes once no rule names it.
            for action, opposite in (("-A", "-D"), ("-N", "-X")):
                for table, rule in left:
                    if rule[0] == action:
                        _iptables(table, opposite, *rule[1:])
            for table, rule in rules:
                if rule.startswith("-P"):
                    _iptables(table, *rule.split())
            _FORWARDING.write_text(forwarding)


def _rules() -> list[tuple[str, str]]:
    """Every rule with its table, in the form of the arguments that make it."""
    return [(table, line) for table in ("filter", "nat") for line in _iptables(table, "-S").splitlines()]


def _iptables(table: str, *arguments: str) -> str:
    command = ["iptables", "--wait", "--table", table, *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoEngineError(f"dockerd needs iptables: {getattr(error, 'stderr', None) or error}") from None


def build_image(client: DockerClient, tag: str, programs: Mapping[str, Path]) -> None:
    """Builds an image that holds nothing but these programs, in its root folder."""
    # Its own entry point is there to be replaced.
    lines = ["FROM scratch", *(f"COPY {name} /{name}" for name in programs), 'ENTRYPOINT ["/entry-point"]']
    dockerfile = "\n".join(lines).encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, path in programs.items():
            archive.add(path, name)
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(dockerfile)
        archive.addfile(member, io.BytesIO(dockerfile))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
