"""Warms a version up before it first gets weight: its own sample requests, through the endpoint, pinned to it."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from infra.errors import UserError
from infra.names import VERSION_HEADER
from rollout.asking import Answer, connection_to, post
from rollout.clock import Clock, SystemClock
from rollout.project import Project, StackConfig
from rollout.release import Releases
from rollout.sample_requests import SampleRequests, sample_requests

_ROUTE_SECONDS = 5
"""How long the router may take to know the version: a gateway's data plane follows what its status says."""
_POLL_SECONDS = 0.1
_SHOWN_CHARACTERS = 200


class NotWarmError(UserError):
    """A version didn't answer its own samples."""


@dataclass(frozen=True)
class Warmed:
    """A version that has answered."""

    requests: int
    seconds: float


def warm_up(
    releases: Releases, project: Project, endpoint: StackConfig, version: str, clock: Clock | None = None
) -> Warmed:
    """Has a variant, whatever its weight, answer the samples of its package, as often as its `warm_up` says.

    They are sent in turn, one after the other, to the endpoint's own URL.

    Raises:
        NotWarmError: when an answer isn't 200, or another version's, or all of them take longer than the version's
            `ready_timeout`.
        NotDeployedError, UnknownStackError: where there is no such endpoint, or no such version.
    """
    deployed = project.version_of(endpoint, version).version
    if deployed.warm_up == 0:
        return Warmed(0, 0.0)
    asked = sample_requests(releases, project, endpoint, version)
    return send_samples(asked, version, deployed.warm_up, deployed.ready_timeout, clock or SystemClock())


def send_samples(asked: SampleRequests, version: str, requests: int, seconds: float, clock: Clock) -> Warmed:
    """Posts so many of the samples, in turn, pinned to the version, in so many seconds at most. Raises NotWarmError."""
    started, samples = clock.monotonic(), asked.samples
    visitor = _Visitor(asked, version, started + seconds, clock)
    with closing(visitor.connection):
        for number in range(requests):
            sample = number % len(samples)
            problem = visitor.problem_with(json.dumps(dict(samples[sample])).encode())
            if problem:
                raise NotWarmError(
                    f"{asked.url}: {version} can't get weight before it has answered {requests} of its own samples: "
                    f"request {number + 1} (sample {sample + 1} of its package) {problem}"
                )
    return Warmed(requests, clock.monotonic() - started)


class _Visitor:
    """A client that asks for one version. `deadline`: of all its requests together, on `clock`'s monotonic time."""

    def __init__(self, asked: SampleRequests, version: str, deadline: float, clock: Clock) -> None:
        self.connection = connection_to(asked.url, at=asked.at)
        self._path = urlsplit(asked.url).path
        self._version = version
        self._clock = clock
        self._deadline = deadline
        self._route_deadline = min(deadline, clock.monotonic() + _ROUTE_SECONDS)

    def problem_with(self, body: bytes) -> str | None:
        """What is wrong with the answer, if anything is."""
        while True:
            remaining = self._deadline - self._clock.monotonic()
            if remaining <= 0:
                return "was not reached within the version's ready_timeout"
            try:
                answer = self._ask(body, remaining)
            except (OSError, http.client.HTTPException) as error:
                return f"had no answer: {type(error).__name__}: {error}"
            # Until there is a route to the version, an endpoint has an error of its own, or the split answers.
            if answer.version == self._version or self._clock.monotonic() > self._route_deadline:
                return self._fault_of(answer)
            self._clock.sleep(_POLL_SECONDS)

    def _ask(self, body: bytes, seconds: float) -> Answer:
        if self.connection.sock is not None:
            self.connection.sock.settimeout(seconds)
        self.connection.timeout = seconds
        return post(self.connection, self._path, body, {VERSION_HEADER: self._version})

    def _fault_of(self, answer: Answer) -> str | None:
        if answer.status != http.HTTPStatus.OK:
            words = " ".join(answer.body.decode(errors="replace").split())
            return f"was answered {answer.status}: {words[:_SHOWN_CHARACTERS] or '(an empty body)'}"
        if answer.version != self._version:
            return f"was answered by {answer.version or 'nobody that says its version'}"
        return None
