"""Sends requests: as fast as they are answered (wrk), at a fixed rate (h2load), or so many over some connections."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.open_loop import BODY, Answer, Client, Request
from benchmarks.processes import BenchmarkError, find, pinned

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


def in_parallel(url: str, headers: Iterable[Mapping[str, str] | None], connections: int = 4) -> list[Answer]:
    """One request for each of `headers`, in no set order of sending; the answers are in theirs.

    Raises:
        BenchmarkError: when a request failed.
    """
    wanted = list(headers)
    answers: list[Answer | None] = [None] * len(wanted)

    def send(first: int) -> None:
        client = Client(Request(url, body_names_version=True))
        for index in range(first, len(wanted), connections):
            answers[index] = client.send(wanted[index])
        client.close()

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(send, range(connections)))
    whole = [answer for answer in answers if answer is not None]
    failures = [answer.failure for answer in whole if answer.failure]
    if failures:
        raise BenchmarkError(f"{len(failures)} of {len(whole)} requests failed, the first with: {failures[0]}")
    return whole
