"""A real registry server that Pods and this machine reach at the same address: the artifact store of a cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cluster.control_plane import free_ports, own_address
from tests.cluster.daemon import Daemon, missing
from tests.deadline import until


class RegistryServer:
    """The registry server of one folder, on plain HTTP, for whoever asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.host = f"{own_address()}:{port}"
        self._daemon = Daemon("registry", folder)

    @property
    def store(self) -> str:
        """The location of an artifact store there."""
        return f"oci+http://{self.host}/models"

    def start(self) -> None:
        if missing("registry"):
            pytest.skip("no registry on PATH: `make tools` builds it")
        configuration = self.folder / "registry.yaml"
        configuration.write_text(
            f"""\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {self.folder / "registry"}}}
  delete: {{enabled: true}}
http:
  addr: {self.host}
  secret: of the tests
"""
        )
        self._daemon.start("registry", "serve", str(configuration), env={"OTEL_TRACES_EXPORTER": "none"})
        until(self._answers, what="the registry server")

    def stop(self) -> None:
        self._daemon.stop()

    def _answers(self) -> bool:
        assert self._daemon.running, f"the registry server ended:\n{self._daemon.last_words()}"
        host, _, port = self.host.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0
