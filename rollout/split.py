"""Measures how an endpoint's requests are really split, by sending it some."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rollout.asking import connection_to, post

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


def _told(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[str | None, str | None]:
    """The version that answered, or else what went wrong."""
    try:
        answer = post(connection, path, body)
    except (OSError, http.client.HTTPException) as error:
        return None, type(error).__name__
    if answer.status != http.HTTPStatus.OK:
        return None, str(answer.status)
    return answer.version or "unknown", None
