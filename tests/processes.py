"""Work in several processes at once."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

FORK = multiprocessing.get_context("fork")

_SECONDS = 60


def at_once(count: int, work: Callable[[int, Callable[[], object]], Any]) -> list[Any]:
    """Runs `work` in that many processes, and returns what they return.

    Each is given its number, and a function that returns once all have called it.
    """
    barrier = FORK.Barrier(count, timeout=_SECONDS)
    pipes = [FORK.Pipe(duplex=False) for _ in range(count)]

    def run(number: int) -> None:
        try:
            answer = True, work(number, barrier.wait)
        except BaseException:
            answer = False, traceback.format_exc()
            # The others need not wait for this one.
            barrier.abort()
        pipes[number][1].send(answer)

    processes = [FORK.Process(target=run, args=(number,), daemon=True) for number in range(count)]
    try:
        for process in processes:
            process.start()
        answers: list[Any] = []
        for receiving, _ in pipes:
            assert receiving.poll(_SECONDS), "a process does not end"
            succeeded, answer = receiving.recv()
            assert succeeded, answer
            answers.append(answer)
        return answers
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for end in (end for pipe in pipes for end in pipe):
            end.close()
