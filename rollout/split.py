"""Measures how an endpoint's requests are really split, by sending it some."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from infra.addresses import host_and_port
from infra.names import VERSION_HEADER

_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Split:
    """Answers by the version that gave them, and what went wrong."""

    versions: dict[str, int]
    failures: dict[str, int]
    """Requests without a good answer, by status or error."""
    seconds: float

    @property
    def requests(self) -> int:
        return sum(self.versions.values()) + sum(self.failures.values())

    def summary(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "versions": self.versions,
            "failures": self.failures,
            "seconds": self.seconds,
        }


def measure_split(
    url: str,
    sample: Mapping[str, Any],
    requests: int = 500,
    connections: int = 8,
    rate: float | None = None,
    *,
    at: str | None = None,
) -> Split:
    """Posts `sample` to `url` as often as asked for, over some connections at a time.

    `at`: where the URL's host is reached (`infra.addresses.reached_at`).
    `rate`: requests/s, all connections together; left out, each is sent as soon as another was answered. An interrupt
    ends it with what was answered until then.
    """
    path = urlsplit(url).path
    body = json.dumps(dict(sample)).encode()
    answers: list[tuple[str | None, str | None]] = []
    stop = threading.Event()
    started = time.monotonic()

    def ask(first: int) -> None:
        with closing(connection_to(url, _TIMEOUT_SECONDS, at=at)) as connection:
            for turn in range(first, requests, connections):
                due = started + turn / rate if rate else 0.0
                if stop.wait(max(0.0, due - time.monotonic())):
                    return
                answers.append(_told(connection, path, body))

    with ThreadPoolExecutor(max_workers=connections) as pool:
        try:
            list(pool.map(ask, range(connections)))
        except KeyboardInterrupt:
            stop.set()
    return Split(
        versions=dict(sorted(Counter(version for version, _ in answers if version).items())),
        failures=dict(Counter(failure for _, failure in answers if failure)),
        seconds=time.monotonic() - started,
    )


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

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


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


def _told(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[str | None, str | None]:
    """The version that answered, or else what went wrong."""
    try:
        answer = post(connection, path, body)
    except (OSError, http.client.HTTPException) as error:
        return None, type(error).__name__
    if answer.status != http.HTTPStatus.OK:
        return None, str(answer.status)
    return answer.version or "unknown", None


def _named_in(body: bytes) -> str | None:
    """The version that an answer says in itself, where the router can't put it into a header.

    Source: `model_version` of the Open Inference Protocol V2's inference response.
    """
    try:
        named = json.loads(body)["model_version"]
    except (ValueError, LookupError, TypeError):
        return None
    return named if isinstance(named, str) else None
