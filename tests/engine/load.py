"""Constant load on an endpoint while a test does something to it, and what was lost of it."""

from __future__ import annotations

from benchmarks.open_loop import Answer, OpenLoop, Request
from tests.deadline import until


class Load(OpenLoop):
    """`rate` requests a second to a sandbox's endpoint, or to any other URL that answers inferences."""

    def __init__(self, asked: str | Request, rate: float = 50.0) -> None:
        """`asked`: an inference's whole URL, as `infer_url` makes it, or more than that."""
        super().__init__(Request(asked) if isinstance(asked, str) else asked, rate)

    def __enter__(self) -> Load:
        super().__enter__()
        # A test that acts before the first answer might find no load at all.
        until(lambda: self.answers, what="a first answer")
        return self

    def lost(self, *, except_version: str | None = None) -> list[Answer]:
        """Requests without a good answer, but for those that this version is known to have failed."""
        return [
            answer
            for answer in list(self.answers)
            if answer.failure and (except_version is None or answer.version != except_version)
        ]

    def of(self, version: str, *, since: float = 0.0) -> list[Answer]:
        """Answers by a version, good and bad, to requests due since that moment of the monotonic clock."""
        return [answer for answer in self.since(since) if answer.version == version]


def infer_url(base: str, model: str, team: str = "diagnostics") -> str:
    """Where an endpoint answers inferences, below its environment's base URL."""
    return f"{base}/{team}/{model}/v2/models/{model}/infer"
