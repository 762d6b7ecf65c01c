"""`lepton up` and `lepton down`: whole environments, and what `up` says at its end."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from typing import Any

from cli import output
from cli.journal import note
from infra.addresses import host_and_port
from infra.errors import UserError
from rollout.fleet import Done, verify
from rollout.fleet import bring_down as destroy
from rollout.fleet import bring_up as update
from rollout.project import Project, StackConfig
from rollout.release import Releases
from rollout.sample_requests import SampleRequests
from rollout.split import measure_split


class NotAnsweringError(UserError):
    """Requests to an endpoint failed."""


def bring_up(project: Project, environment: str, requests: int, *, as_json: bool) -> None:
    started = time.monotonic()
    with output.progress(f"bringing {environment} up", quiet=as_json) as notify:
        done = _told(project, update(project, environment, notify), notify)
    stacks = [item.stack for item in done if item.stack.kind == "endpoint"]
    verified = verify(project, Releases(project), stacks)
    # One after the other: what is measured is the endpoint, and not what its siblings leave it.
    endpoints = [_measured(stack, asked, requests) for stack, asked in zip(stacks, verified, strict=True)]
    seconds = time.monotonic() - started
    changed = any(item.changes.any for item in done)
    if as_json:
        output.document(
            {
                "environment": environment,
                "changed": changed,
                "stacks": {item.stack.address: item.changes.counts for item in done},
                "endpoints": endpoints,
                "seconds": seconds,
            }
        )
    else:
        output.line(f"{environment} is up in {seconds:.1f} s" + ("" if changed else "; nothing changed"))
        for endpoint in endpoints:
            _print_endpoint(endpoint)
    _refuse_failures(endpoints)


def bring_down(project: Project, environment: str, *, as_json: bool) -> None:
    with output.progress(f"taking {environment} down", quiet=as_json) as notify:
        done = _told(project, destroy(project, environment, notify), notify, removed=True)
    stacks = {item.stack.address: item.changes.counts for item in done}
    output.result({"environment": environment, "stacks": stacks}, f"{environment} is down", as_json=as_json)


def _told(project: Project, stacks: Iterator[Done], notify: output.Notify, *, removed: bool = False) -> list[Done]:
    """Says of each stack what came of it as it is done, and notes those that were, also where others failed."""
    done: list[Done] = []
    try:
        for item in stacks:
            done.append(item)
            notify(f"{item.stack.address}: {item.changes} ({item.changes.seconds:.1f} s)")
    finally:
        note(project, [item.stack for item in done], removed=removed)
    return done


def _measured(stack: StackConfig, asked: SampleRequests, requests: int) -> dict[str, Any]:
    """What is said of an endpoint, with its split as real requests see it."""
    sample = asked.samples[0]
    split = measure_split(asked.url, sample, requests, at=asked.at) if requests else None
    return {
        "endpoint": stack.address,
        "url": asked.endpoint_url,
        "reached_at": asked.at,
        "request": {"path": asked.path, "body": sample},
        "weights": stack.endpoint.weights,
        "split": split.summary() if split else None,
    }


def _print_endpoint(endpoint: dict[str, Any]) -> None:
    output.line(f"\n{endpoint['endpoint']}  {endpoint['url']}\n")
    body = shlex.quote(json.dumps(endpoint["request"]["body"], separators=(",", ":")))
    elsewhere = "--connect-to ::{}:{} ".format(*host_and_port(at)) if (at := endpoint["reached_at"]) else ""
    url = endpoint["url"] + endpoint["request"]["path"]
    output.line(f"curl -i {elsewhere}{url} -H 'content-type: application/json' -d {body}\n")
    split = endpoint["split"]
    if split is None:
        return
    total = sum(endpoint["weights"].values())
    output.line(f"split of {split['requests']} requests, {split['requests'] / split['seconds']:.0f} a second:")
    output.table(
        ["version", "weight", "expected", "answered"],
        [
            [version, weight, f"{weight / total:.1%}", f"{split['versions'].get(version, 0) / split['requests']:.1%}"]
            for version, weight in endpoint["weights"].items()
        ],
    )


def _refuse_failures(endpoints: list[dict[str, Any]]) -> None:
    """An environment whose endpoints don't answer is not up."""
    problems = [
        f"{endpoint['endpoint']}: of {split['requests']} requests failed {sum(split['failures'].values())}: "
        + ", ".join(f"{count} with {failure}" for failure, count in split["failures"].items())
        for endpoint in endpoints
        if (split := endpoint["split"]) and split["failures"]
    ]
    if problems:
        raise NotAnsweringError("\n".join(problems))
