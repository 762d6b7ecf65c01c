"""Asks a running server by the Open Inference Protocol V2: for all rows in batches, and one by one with a watch."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import httpx
import numpy as np

from model_packaging.errors import AnswerRefused
from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.outputs import Answer, Roles, read_answer
from model_packaging.evaluation.results import Latency
from model_packaging.evaluation.server import RunningServer
from model_packaging.package import Tensor


class Client:
    """Sends one version's requests to its server."""

    def __init__(
        self,
        server: RunningServer,
        request: EvaluationRequest,
        inputs: tuple[Tensor, ...],
        roles: Roles,
        options: Options,
    ) -> None:
        self._server = server
        self._request = request
        self._inputs = inputs
        self._roles = roles
        self._options = options
        self._parameters = _sample_parameters(request)
        limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        self._http = httpx.Client(base_url=server.url, timeout=options.request_timeout, limits=limits, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def predict(self, batches: Iterable[list[np.ndarray]], done: Callable[[int], None]) -> Iterator[Answer]:
        """The answers to all batches, in their order, `concurrency` requests being in flight at a time.

        Args:
            batches: the tensors of each request.
            done: is told after each answer how many rows it was for.

        Raises:
            ServerFailed: a request got no answer, or an error.
            AnswerRefused: an answer is not one to these rows, or is another version's.
        """
        waiting: deque[tuple[int, Future[Answer]]] = deque()
        with ThreadPoolExecutor(self._options.concurrency) as pool:
            try:
                for tensors in batches:
                    waiting.append((len(tensors[0]), pool.submit(self._ask, tensors)))
                    # One more than are in flight, so that its tensors are ready when an answer is.
                    if len(waiting) > self._options.concurrency:
                        yield self._next(waiting, done)
                while waiting:
                    yield self._next(waiting, done)
            finally:
                for _, future in waiting:
                    future.cancel()

    def measure_latency(self, tensors: list[np.ndarray], neighbours: int | None) -> Latency:
        """Sends the rows of `tensors` one by one, again from the first after the last; see `Latency` for what counts.

        Raises:
            ServerFailed: a request got no answer, or an error.
        """
        bodies = [self._body([tensor[row : row + 1] for tensor in tensors]) for row in range(len(tensors[0]))]
        spent = np.zeros(self._options.latency_requests)
        for number, body in zip(range(len(spent)), itertools.cycle(bodies), strict=False):
            started = time.perf_counter()
            self._post(body)
            spent[number] = (time.perf_counter() - started) * 1000
        p50, p95, p99 = np.percentile(spent, (50, 95, 99)).tolist()
        return Latency(
            requests=len(spent), mean_ms=float(spent.mean()), p50_ms=p50, p95_ms=p95, p99_ms=p99, neighbours=neighbours
        )

    def _next(self, waiting: deque[tuple[int, Future[Answer]]], done: Callable[[int], None]) -> Answer:
        rows, future = waiting.popleft()
        answer = future.result()
        done(rows)
        return answer

    def _ask(self, tensors: list[np.ndarray]) -> Answer:
        response = self._post(self._body(tensors))
        try:
            document = response.json()
        except ValueError as error:
            raise AnswerRefused(f"the answer is not JSON: {error}") from None
        given = document.get("model_version") if isinstance(document, dict) else None
        if given not in (None, "", self._request.version):
            raise AnswerRefused(
                f"the answer is by version {given!r}, and {self._request.version} was asked; "
                "correct the version in the settings of its server"
            )
        return read_answer(document, self._roles, len(tensors[0]))

    def _post(self, body: bytes) -> httpx.Response:
        path = f"/v2/models/{self._request.model}/infer"
        try:
            response = self._http.post(path, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            raise self._server.failure(f"gave no answer to POST {path}: {error or type(error).__name__}") from error
        if response.status_code != httpx.codes.OK:
            raise self._server.failure(f"answered {response.status_code} to POST {path}: {response.text[:500]}")
        return response

    def _body(self, tensors: list[np.ndarray]) -> bytes:
        own, by_input = self._parameters
        document: dict[str, Any] = {
            **own,
            "inputs": [
                {
                    "name": tensor.name,
                    "shape": list(array.shape),
                    "datatype": tensor.datatype,
                    **by_input.get(tensor.name, {}),
                    "data": array.ravel().tolist(),
                }
                for tensor, array in zip(self._inputs, tensors, strict=True)
            ],
            "outputs": [{"name": tensor.name} for tensor in self._roles.outputs],
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _sample_parameters(request: EvaluationRequest) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the first sample sets beside the data, such as MLServer's content types: for the request, and by input."""
    sample = request.package.samples[0]
    inputs = sample.get("inputs")
    if not isinstance(inputs, list):
        return {}, {}
    given = [cast("dict[str, Any]", tensor) for tensor in inputs if isinstance(tensor, dict)]
    own = {"parameters": sample["parameters"]} if "parameters" in sample else {}
    return own, {tensor["name"]: {"parameters": tensor["parameters"]} for tensor in given if "parameters" in tensor}
