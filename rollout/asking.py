"""Asks an endpoint, and hears which version answered."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from infra.addresses import host_and_port
from infra.names import VERSION_HEADER


class Answer(NamedTuple):
    """An endpoint's answer."""

    status: int
    version: str | None
    """That gave it; None where it is the router's own, or nobody says."""
    body: bytes


def connection_to(url: str, timeout: float | None = None, *, at: str | None = None) -> http.client.HTTPConnection:
    """A connection for `post` to where the URL's scheme and host say, made by its first request.

    A certificate is checked by the CAs that OpenSSL trusts here; `SSL_CERT_FILE` names a file of others. It has to be
    for the URL's host, also where that is reached `at` another address (`infra.addresses.reached_at`).

    `timeout`: seconds that nothing may happen for.
    """
    target = urlsplit(url)
    kind = _TlsConnection if target.scheme == "https" else _Connection
    connection = kind(target.netloc, timeout=timeout)
    connection.address = host_and_port(at or url)
    return connection


class _Connection(http.client.HTTPConnection):
    """To the host that it is named for, wherever that is."""

    address: tuple[str, int]

    def connect(self) -> None:
        self.sock = socket.create_connection(self.address, self.timeout)
        # A request's head and body are two segments, of which the second would wait for the first's receipt.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _TlsConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, *, timeout: float | None) -> None:
        super().__init__(host, timeout=timeout)
        # Once, as a connection that was closed is made anew.
        self._trusted = ssl.create_default_context()

    def connect(self) -> None:
        super().connect()
        self.sock = self._trusted.wrap_socket(self.sock, server_hostname=self.host)


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Answer:
    """Raises OSError or http.client.HTTPException where there is no whole answer; the connection is closed then."""
    try:
        connection.request("POST", path, body, {"content-type": "application/json", **(headers or {})})
        response = connection.getresponse()
        answered = response.read()
        return Answer(response.status, response.getheader(VERSION_HEADER) or _named_in(answered), answered)
    except (OSError, http.client.HTTPException):
        connection.close()
        raise


def _named_in(body: bytes) -> str | None:
    """The version that an answer says in itself, where the router can't put it into a header.

    Source: `model_version` of the Open Inference Protocol V2's inference response.
    """
    try:
        named = json.loads(body)["model_version"]
    except (ValueError, LookupError, TypeError):
        return None
    return named if isinstance(named, str) else None
