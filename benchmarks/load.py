"""Sends requests: as fast as they are answered (wrk), at a fixed rate (h2load), or with every answer kept."""

from __future__ import annotations

import http.client
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError, find, pinned
from infra.names import VERSION_HEADER

BODY = json.dumps({"id": "7", "inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.0]}]})
CONTENT_TYPE = {"content-type": "application/json"}

_WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = %s
wrk.headers["content-type"] = "application/json"
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\nRESULT {"requests": %%d, "microseconds": %%d, "failed": %%d}\\n',
    summary.requests, summary.duration, failed))
end
"""


@dataclass(frozen=True)
class Burst:
    requests: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def full_speed(url: str, *, connections: int, seconds: float, cores: Sequence[int], directory: Path) -> Burst:
    """One wrk thread; each connection sends its next request when it has its answer.

    Raises:
        BenchmarkError: when a request failed, as errors are fast and would flatter.
    """
    script = directory / "wrk.lua"
    script.write_text(_WRK_SCRIPT % json.dumps(BODY).replace("\\u", "\\\\u"))
    whole_seconds = max(1, round(seconds))
    wrk = [find("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{whole_seconds}s", "-s", str(script), url]
    output = _run(pinned(wrk, cores), seconds + 30)
    found = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT ")).split(" ", 1)[1])
    if found["failed"] or not found["requests"]:
        raise BenchmarkError(f"{url}: {found['failed']} failed of {found['requests']} requests\n{output}")
    return Burst(found["requests"], found["microseconds"] / 1e6)


def fixed_rate(
    url: str, *, rate: float, connections: int, seconds: float, cores: Sequence[int], directory: Path
) -> list[float]:
    """Latencies in ms at `rate` requests/s by h2load, without those of its first 0.2 s.

    Raises:
        BenchmarkError: when a request failed.
    """
    body, log = directory / "body.json", directory / "h2load.tsv"
    body.write_text(BODY)
    log.unlink(missing_ok=True)
    # Durations are whole seconds to h2load.
    command = [
        *(find("h2load", "nghttp2-client"), "--h1", "-t1", f"-c{connections}", f"--rps={rate / connections}"),
        *(f"--duration={max(1, round(seconds))}", f"--data={body}", "--header=content-type: application/json"),
        *(f"--log-file={log}", url),
    ]
    output = _run(pinned(command, cores), seconds + 30)
    rows = [tuple(map(int, line.split("\t")[:3])) for line in log.read_text().splitlines()]
    failed = sum(status != 200 for _, status, _ in rows)
    if failed or not rows:
        raise BenchmarkError(f"{url}: {failed} failed of {len(rows)} requests\n{output}")
    warm = min(start for start, _, _ in rows) + 200_000
    return [microseconds / 1000 for start, _, microseconds in rows if start >= warm]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def _run(command: Sequence[str], timeout: float) -> str:
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if outcome.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)}: exit status {outcome.returncode}\n{outcome.stdout}{outcome.stderr}")
    return outcome.stdout


# -- with every answer kept


@dataclass(frozen=True)
class Answer:
    due: float
    """On the monotonic clock: when the request was to be sent."""
    ended: float
    version: str | None
    """Which version answered; None when the request failed."""
    failure: str = ""

    @property
    def latency_ms(self) -> float:
        return (self.ended - self.due) * 1000


class Client:
    """A keep-alive connection to an endpoint's infer path."""

    def __init__(self, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._path = path

    def infer(self, headers: Mapping[str, str] | None = None, *, due: float | None = None) -> Answer:
        due = time.monotonic() if due is None else due
        try:
            self._connection.request("POST", self._path, BODY, CONTENT_TYPE | dict(headers or {}))
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Answer(due, time.monotonic(), None, f"{type(error).__name__}: {error}")
        ended = time.monotonic()
        version = response.headers.get(VERSION_HEADER)
        if response.status != 200:
            return Answer(due, ended, None, f"status {response.status}")
        if version is None or f'"{version}"'.encode() not in body:
            return Answer(due, ended, None, f"{VERSION_HEADER}: {version} on an answer of another version: {body!r}")
        return Answer(due, ended, version)

    def close(self) -> None:
        self._connection.close()


def in_parallel(
    port: int, path: str, headers: Iterable[Mapping[str, str] | None], connections: int = 4
) -> list[Answer]:
    """One request for each of `headers`, in no set order of sending; the answers are in theirs.

    Raises:
        BenchmarkError: when a request failed.
    """
    wanted = list(headers)
    answers: list[Answer | None] = [None] * len(wanted)

    def send(first: int) -> None:
        client = Client(port, path)
        for index in range(first, len(wanted), connections):
            answers[index] = client.infer(wanted[index])
        client.close()

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(send, range(connections)))
    whole = [answer for answer in answers if answer is not None]
    failures = [answer.failure for answer in whole if answer.version is None]
    if failures:
        raise BenchmarkError(f"{len(failures)} of {len(whole)} requests failed, the first with: {failures[0]}")
    return whole


class OpenLoop:
    """Requests at a constant rate, sent when they are due whether or not others were answered.

    Latency counts from when a request was due, so that a router that stands still is charged for all who wait.
    """

    def __init__(self, port: int, path: str, rate: float, connections: int = 16) -> None:
        self.answers: list[Answer] = []
        self._rate, self._connections = rate, connections
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(Client(port, path), lane), daemon=True)
            for lane in range(connections)
        ]

    def __enter__(self) -> OpenLoop:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def first_since(self, moment: float, wanted: Callable[[Answer], bool]) -> Answer | None:
        """The earliest due of the answers so far that were due after `moment` and are `wanted`."""
        found = [answer for answer in list(self.answers) if answer.due >= moment and wanted(answer)]
        return min(found, key=lambda answer: answer.due, default=None)

    def _send(self, client: Client, lane: int) -> None:
        turn = lane
        while True:
            due = self._started + turn / self._rate
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            self.answers.append(client.infer(due=due))
            turn += self._connections
        client.close()
