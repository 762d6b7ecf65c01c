"""Requests at a constant rate, due whether or not others were answered, and every answer kept.

A closed loop waits for a system that stands still, and so hides it: here latency counts from when a request was due.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from infra.names import VERSION_HEADER

BODY = json.dumps({"id": "7", "inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.0]}]})
CONTENT_TYPE = {"content-type": "application/json"}

_ANSWERED_SECONDS = 30.0
_MOST_CONNECTIONS = 512

VersionIn = Callable[[http.client.HTTPMessage, bytes], str | None]
"""Tells from an answer's headers and body which version gave it, if it can be told."""


def header(name: str) -> VersionIn:
    """The version is the value of a header."""
    return lambda headers, body: headers.get(name)


def json_field(path: str) -> VersionIn:
    """The version is a field of the body's JSON, by its names joined with dots."""

    def version(headers: http.client.HTTPMessage, body: bytes) -> str | None:
        try:
            value = json.loads(body)
            for name in path.split("."):
                value = value[int(name)] if isinstance(value, list) else value[name]
        except (ValueError, LookupError, TypeError):
            return None
        return str(value)

    return version


@dataclass(frozen=True)
class Request:
    """What is sent again and again."""

    url: str
    body: str = BODY
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: CONTENT_TYPE)
    version_in: VersionIn = field(default_factory=lambda: header(VERSION_HEADER))
    body_names_version: bool = False
    """Whether a good answer whose body doesn't hold its version, as a JSON string, counts as failed."""


@dataclass(frozen=True)
class Answer:
    """What became of one request. Times are seconds on the monotonic clock."""

    due: float
    """When it was to be sent."""
    ended: float
    version: str | None
    """Which version answered, failed or not; None where that can't be told."""
    status: int | None
    """None where there was no answer."""
    failure: str = ""
    """Why it counts as lost; empty for a good answer."""

    @property
    def latency_ms(self) -> float:
        return (self.ended - self.due) * 1000


class Client:
    """A keep-alive connection that sends one request at a time."""

    def __init__(self, request: Request) -> None:
        self._request = request
        parts = urlsplit(request.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.netloc, timeout=_ANSWERED_SECONDS)
        self._path = parts.path + (f"?{parts.query}" if parts.query else "") or "/"

    def send(self, headers: Mapping[str, str] | None = None, *, due: float | None = None) -> Answer:
        """Sends the request, with more headers if given, and waits for its answer; never raises for what fails."""
        request = self._request
        due = time.monotonic() if due is None else due
        try:
            everything = {**request.headers, **(headers or {})}
            self._connection.request(request.method, self._path, request.body or None, everything)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Answer(due, time.monotonic(), None, None, f"{type(error).__name__}: {error}")
        ended = time.monotonic()
        version = request.version_in(response.headers, body)
        failure = "" if 200 <= response.status < 300 else f"status {response.status}"
        if not failure and request.body_names_version and f'"{version}"'.encode() not in body:
            failure = f"said to be of version {version}, on an answer of another: {body!r}"
        return Answer(due, ended, version, response.status, failure)

    def close(self) -> None:
        self._connection.close()


class OpenLoop:
    """Sends a request at a constant rate while the context lasts, over as many connections as that takes.

    On leaving, what was sent is waited for, so that no answer is missing.
    """

    def __init__(self, request: Request, rate: float) -> None:
        """`rate`: requests a second."""
        self.answers: list[Answer] = []
        """In the order in which they ended; grows while the context lasts."""
        self._request, self._rate = request, rate
        self._stop = threading.Event()
        self._next_turn = threading.Lock()
        """Held by the one worker that waits until the next request is due."""
        self._turn = 0
        self._counts = threading.Lock()
        self._waiting = 0
        """Workers that wait for their turn, the one whose turn it is among them."""
        self._workers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._add_worker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # A worker may add another until it has seen the end.
        for worker in self._workers:
            worker.join()

    def since(self, moment: float) -> list[Answer]:
        """The answers so far to requests that were due at `moment` or after it, by when they were due."""
        return sorted((answer for answer in list(self.answers) if answer.due >= moment), key=lambda one: one.due)

    def first_since(self, moment: float, wanted: Callable[[Answer], bool]) -> Answer | None:
        """The earliest due of the answers so far that were due since `moment` and are `wanted`."""
        return next(filter(wanted, self.since(moment)), None)

    def _add_worker(self) -> None:
        with self._counts:
            self._waiting += 1
        worker = threading.Thread(target=self._work, daemon=True)
        self._workers.append(worker)
        worker.start()

    def _work(self) -> None:
        client = Client(self._request)
        try:
            while True:
                with self._next_turn:
                    due = self._started + self._turn / self._rate
                    if self._stop.wait(max(0.0, due - time.monotonic())):
                        return
                    self._turn += 1
                    with self._counts:
                        self._waiting -= 1
                        nobody_waits = self._waiting == 0
                    if nobody_waits and len(self._workers) < _MOST_CONNECTIONS:
                        self._add_worker()
                self.answers.append(client.send(due=due))
                with self._counts:
                    self._waiting += 1
        finally:
            client.close()
