"""Where endpoints are reached, as their URLs don't say it where DNS doesn't know their names."""

from __future__ import annotations

from urllib.parse import urlsplit


def reached_at(url: str, base: str) -> str | None:
    """Where an endpoint is reached (`SCHEME://HOST:PORT`) that has a host name of its own; None: where its URL says.

    `url`: the endpoint's. `base`: the environment's `endpoint_base_url`. A name below the base's is where clients find
    it; else the base says where the gateway is.
    """
    host, gateway = urlsplit(url).hostname or "", urlsplit(base).hostname
    return None if host == gateway or host.endswith(f".{gateway}") else base


def host_and_port(url: str) -> tuple[str, int]:
    """Of a URL, with its scheme's port where it names none."""
    target = urlsplit(url)
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)
