"""What a platform stack's config may say: config key `lepton:platform`."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from infra.names import platform_stack
from infra.settings.cluster import ClusterSettings
from infra.settings.values import Name, Port, Seconds, Settings, TeamName

Mode = Literal["single-node", "cluster", "cloud"]
Runtime = Literal["process", "docker"]


def _port_range(value: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", value) if isinstance(value, str) else None
    if match is None or not 1024 <= int(match[1]) < int(match[2]) <= 65535:
        raise ValueError("a port range is '20000-20999', within 1024 to 65535")
    return int(match[1]), int(match[2])


def _address(value: object) -> str:
    # ip_address takes a number for an address, too.
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return str(ipaddress.ip_address(value))
    raise ValueError("an address is an IP address, such as '127.0.0.1' or '::1'; '0.0.0.0' and '::' are all there are")


class NodeSettings(Settings):
    """The machine of a single-node environment."""

    directory: str | None = None
    """Where the node keeps its files; relative paths start at the project's root. Default: `.state/nodes/ENV`."""
    address: Annotated[str, BeforeValidator(_address)] = "127.0.0.1"
    """The address the router listens on. Loopback unless told otherwise."""
    port: Port = 7080
    """The router's port."""
    ports: Annotated[tuple[int, int], BeforeValidator(_port_range)] = (20000, 20999)
    """Where model servers and the node's own services get their ports; always on loopback."""
    runtime: Runtime = "process"
    """How versions run that don't say it themselves."""
    gpus: list[str] | Literal["detect"] = "detect"
    """GPU device ids (as `nvidia-smi -L` numbers them), or `detect` to ask `nvidia-smi`."""


class MonitoringSettings(Settings):
    port: Port = 7090
    """Prometheus's port, on loopback."""
    scrape_interval: Seconds = 2.0
    retention: Seconds = 1296000.0


class TrustSettings(Settings):
    """Whose signatures on artifacts count in the environment.

    A key is the file of a public key (relative paths start at the project's root), or the public key itself in PEM.
    A team with several keys changes them in turn: the new one is added, and the old one goes once no version needs it.
    """

    required: bool = Field(default=True, strict=True)
    """Whether versions that no trusted key has signed are refused. Else policies can tell which are."""
    keys: tuple[str, ...] = ()
    """For versions of every team."""
    teams: dict[TeamName, tuple[str, ...]] = {}
    """For versions that the team deploys."""

    @model_validator(mode="after")
    def _trusts_somebody(self) -> TrustSettings:
        if not self.keys and not any(self.teams.values()):
            raise ValueError(
                "no key is trusted, so that no version could be served; give a team's public key, such as "
                "'teams: {diagnostics: [keys/diagnostics.pub]}', or leave 'trust' out"
            )
        return self


class PlatformSettings(Settings):
    """An environment: where it serves, and what its versions share."""

    environment: Name
    mode: Mode
    store: str = ".state/store"
    """The artifact store: a folder (OCI image layout; relative paths start at the project's root), or a registry
    `oci://HOST[:PORT]/PREFIX`."""
    trust: TrustSettings | None = None
    """Left out, signatures don't matter."""
    freeze: str | None = Field(default=None, min_length=1)
    """Why no rollout may begin a step in the environment; left out, they may."""
    guard: bool = Field(default=True, strict=True)
    """Whether `lepton guard` runs here, for the endpoints that have rules."""
    node: NodeSettings = Field(default_factory=NodeSettings)
    """Of mode single-node."""
    monitoring: MonitoringSettings = Field(default_factory=MonitoringSettings)
    """Of mode single-node."""
    cluster: ClusterSettings | None = None
    """Of mode cluster."""

    @model_validator(mode="after")
    def _is_of_one_mode(self) -> PlatformSettings:
        if self.mode == "cluster" and self.cluster is None:
            raise ValueError("mode 'cluster' needs 'cluster': which cluster, its teams and its Gateway")
        own = {"single-node": {"node", "monitoring"}, "cluster": {"cluster"}}
        foreign = [key for mode, keys in own.items() if mode != self.mode for key in keys & self.model_fields_set]
        if foreign:
            raise ValueError(f"{foreign[0]!r} is not of mode {self.mode!r}; leave it out, or change the mode")
        return self

    @model_validator(mode="after")
    def _ports_are_apart(self) -> PlatformSettings:
        first, last = self.node.ports
        for key, port in (("node.port", self.node.port), ("monitoring.port", self.monitoring.port)):
            if first <= port <= last:
                raise ValueError(f"{key} {port} lies within node.ports {first}-{last}; choose one outside")
        if self.node.port == self.monitoring.port:
            raise ValueError(f"node.port and monitoring.port are both {self.node.port}; choose two")
        return self

    def store_location(self, root: str) -> str:
        """The store as `model_packaging.stores.open_store` takes it."""
        return self.store if "://" in self.store else str(Path(root, self.store))

    @property
    def stack_name(self) -> str:
        """The name of the one stack that may have these settings."""
        return platform_stack(self.environment)
