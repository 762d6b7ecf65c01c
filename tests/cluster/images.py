"""Container images for the tests' real node, made here from nothing: a few files and a configuration each.

What runs in them (Python, the project, the model servers) is mounted by the node from this machine, read-only, so that
no image needs a distribution, and none is pulled.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PREFIX = "docker.io/lepton-tests"
"""Where the images' names say that they are from: nobody is there."""
USER = 65532
"""Whose passwd entry the images hold: what distroless images call `nonroot`."""

_PLACE = Path("/opt/lepton")
_ENVIRONMENT, _PROJECT, _COMMANDS = _PLACE / "environment", _PLACE / "project", _PLACE / "bin"
_PROGRAMS = _PLACE / "programs"
_MOUNTED = ("prometheus", "kube-state-metrics")
_COMMAND = f"""\
#!{_ENVIRONMENT}/bin/python
import sys
from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="NAME")
sys.exit(command.load()())
"""
"""The virtual environment's own commands say in their first line where it is on this machine."""

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Image:
    """An image as a tar file of an OCI image layout, as `ctr images import` takes it."""

    name: str
    """With its registry, and a tag."""
    digest: str
    archive: bytes

    @property
    def reference(self) -> str:
        """By digest, as settings want it."""
        return f"{self.name.rpartition(':')[0]}@{self.digest}"


def mounts() -> dict[Path, Path]:
    """What of this machine containers see, by where.

    The project and its virtual environment are in a place of their own: a Pod mounts over a folder such as `/tmp`, in
    which they may be here.
    """
    system = [Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64")]
    # The virtual environment leads to a Python that may lie anywhere.
    python = Path(sys.base_prefix).resolve()
    same = [path for path in [*system, python] if path.exists() and not any(other in path.parents for other in system)]
    found = {_PROGRAMS / name: Path(path).resolve() for name in _MOUNTED if (path := shutil.which(name))}
    return {path: path for path in same} | {_ENVIRONMENT: Path(sys.prefix).resolve(), _PROJECT: REPOSITORY} | found


def build(
    name: str,
    files: Mapping[str, bytes] | None = None,
    *,
    entrypoint: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Mapping[str, str] = {},
) -> Image:
    """An image with these programs (mode 0755) at these absolute paths."""
    commands = {f"{_COMMANDS}/{name}": _COMMAND.replace("NAME", name).encode() for name in ("lepton", "mlserver")}
    layer = _layer({**commands, **(files or {})})
    path = f"{_COMMANDS}:{_ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin"
    environment = {"PATH": path, "PYTHONPATH": str(_PROJECT), "HOME": "/tmp"} | dict(env)
    config = _json(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {
                "Env": [f"{key}={value}" for key, value in environment.items()],
                "Entrypoint": list(entrypoint),
                "Cmd": list(command),
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, layer)],
        }
    )
    full = f"{PREFIX}/{name}:{_digest(manifest).removeprefix('sha256:')[:12]}"
    named = _descriptor(_MANIFEST, manifest) | {"annotations": {"io.containerd.image.name": full}}
    index = _json({"schemaVersion": 2, "manifests": [named]})
    members = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    members |= {f"blobs/sha256/{_digest(blob)[7:]}": blob for blob in (layer, config, manifest)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for member, content in members.items():
            _add(tar, member, content)
    return Image(full, _digest(manifest), archive.getvalue())


def pause() -> Image:
    """The image of the process that holds a Pod's namespaces: the one that sees nothing of this machine."""
    sleep = shutil.which("sleep")
    assert sleep
    libraries = subprocess.run(["ldd", sleep], capture_output=True, text=True, check=True).stdout
    paths = [sleep, *re.findall(r"(/\S+) \(0x", libraries)]
    return build("pause", {path: Path(path).read_bytes() for path in paths}, command=[sleep, "infinity"])


def prometheus() -> Image:
    """This machine's, which its Pods only give arguments to."""
    return build("prometheus", entrypoint=[str(_PROGRAMS / "prometheus")])


def kube_state_metrics() -> Image:
    return build("kube-state-metrics", entrypoint=[str(_PROGRAMS / "kube-state-metrics")])


def _layer(files: dict[str, bytes]) -> bytes:
    users = f"root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/tmp:/usr/sbin/nologin\n"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder, mode in (("etc", 0o755), ("tmp", 0o1777)):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, mode
            tar.addfile(member)
        _add(tar, "etc/passwd", users.encode())
        _add(tar, "etc/group", f"root:x:0:\nnonroot:x:{USER}:\n".encode())
        for path, content in files.items():
            _add(tar, path.lstrip("/"), content, mode=0o755)
    return layer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
