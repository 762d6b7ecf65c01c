"""What a rollout calls outside: the hooks around its steps, and the webhooks that are told what happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from infra.errors import UserError
from infra.settings.rollout import Hook, Notification
from rollout.strategies import words

_TELL_SECONDS = 3.0
_STOP_SECONDS = 2.0
"""Between asking a command that is out of time to end, and ending it."""
_KEPT_BYTES = 4096
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 200
_LONGEST_VARIABLE = 4096


class HookError(UserError):
    """A hook failed, or can't be called."""


def run_hooks(
    hooks: Sequence[Hook], facts: Mapping[str, Any], folder: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Calls hooks, one after the other, with the facts of a step; the first that fails ends it.

    A command runs in `folder`. It gets the facts as JSON on its standard input, and those that are a single value, and
    the weights (`1.0.0=90 1.1.0=10`), as variables `LEPTON_<FACT>` too. At its timeout its process group is ended.
    A URL gets the facts as the JSON of a POST; redirects aren't followed. A driver that follows one that was killed
    calls the hooks of its step again. `environment`: default this process's.

    Raises:
        HookError: naming the hook, never a URL's path, query or password.
    """
    given = os.environ if environment is None else environment
    for number, hook in enumerate(hooks, 1):
        name = f"hook {number} ({_named(hook)})"
        if hook.command is not None:
            problem = _run(hook.command, facts, folder, given, hook.timeout)
        else:
            problem = _post_in_time(_url(hook, given), facts, hook.timeout)
        if problem:
            raise HookError(f"{name} {problem}")


def tell(
    notifications: Sequence[Notification],
    on: str,
    text: str,
    facts: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Posts `{"text": …}` and the facts beside it to every webhook that wants to know of such an event.

    They are told side by side, for 3 s at most. Never raises: what went wrong is returned, a sentence a webhook,
    without its URL's path, query or password. https://api.slack.com/messaging/webhooks says the format.
    """
    given = os.environ if environment is None else environment
    # Slack reads <…> as links and mentions, which text that somebody wrote must not become.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    deadline = time.monotonic() + _TELL_SECONDS
    calls = [
        (_named(notification), _start_post(_url(notification, given), {**facts, "text": escaped}, _TELL_SECONDS))
        for notification in notifications
        if on in notification.on
    ]
    problems = [(name, _outcome(call, deadline, _TELL_SECONDS)) for name, call in calls]
    return [f"notification to {name} {problem}" for name, problem in problems if problem]


def public_url(url: str) -> str:
    """What of a webhook's URL may be shown: whose path or query often is its password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _named(target: Hook | Notification) -> str:
    """How errors call it: what could be a secret stays out."""
    if target.url_variable is not None:
        return f"the URL in {target.url_variable}"
    if target.url is not None:
        return public_url(target.url)
    assert isinstance(target, Hook)
    assert target.command is not None
    return target.command[0] + (" …" if len(target.command) > 1 else "")


def _url(target: Hook | Notification, environment: Mapping[str, str]) -> str | None:
    """None where its variable isn't set."""
    return target.url if target.url_variable is None else environment.get(target.url_variable) or None


def _run(
    command: Sequence[str], facts: Mapping[str, Any], folder: Path, environment: Mapping[str, str], seconds: float
) -> str | None:
    """What went wrong, if anything."""
    output = _Tail()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **_variables(facts)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"can't be run: {error}"
    assert process.stdin is not None
    assert process.stdout is not None
    threading.Thread(target=_feed, args=(process.stdin, _json(facts)), daemon=True).start()
    reader = threading.Thread(target=output.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end_group(process)
        reader.join(_STOP_SECONDS)
        return f"did not end within {seconds:g} s{output.shown()}"
    except BaseException:
        _end_group(process)
        raise
    # Something that the command left running may hold its output open.
    reader.join(_STOP_SECONDS if status else 0)
    if status < 0:
        return f"was ended by signal {-status}{output.shown()}"
    return f"ended with exit status {status}{output.shown()}" if status else None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _feed(pipe: BinaryIO, content: bytes) -> None:
    # A command need not read what it is given.
    with suppress(OSError), pipe:
        pipe.write(content)


class _Tail:
    """The end of what a command wrote."""

    def __init__(self) -> None:
        self._content = b""

    def read(self, pipe: BinaryIO) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 65536):
                self._content = (self._content + chunk)[-_KEPT_BYTES:]

    def shown(self) -> str:
        lines = self._content.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        return "".join(f"\n  {_printable(line)}" for line in lines)


def _variables(facts: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in facts.items():
        if name == "weights" and isinstance(value, Mapping):
            text = words(value)
        elif isinstance(value, str | int | float):
            text = str(value)
        else:
            continue
        found[f"LEPTON_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"] = text.replace("\0", "")[:_LONGEST_VARIABLE]
    return found


def _post_in_time(url: str | None, body: Mapping[str, Any], seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    return _outcome(_start_post(url, body, seconds), deadline, seconds)


def _start_post(url: str | None, body: Mapping[str, Any], seconds: float) -> Future[str | None]:
    """What goes wrong with a POST, if anything, in time.

    In a thread, as a client's timeouts are each for one part of a call, and a server can make many parts of it.
    """
    answer: Future[str | None] = Future()

    def call() -> None:
        try:
            answer.set_result(_post(url, body, seconds))
        except Exception as error:
            # The text of an error may have the URL in it.
            answer.set_result(f"can't be called: {type(error).__name__}")

    threading.Thread(target=call, daemon=True).start()
    return answer


def _outcome(answer: Future[str | None], deadline: float, seconds: float) -> str | None:
    try:
        return answer.result(max(deadline - time.monotonic(), 0))
    except TimeoutError:
        return f"did not answer within {seconds:g} s"


def _post(url: str | None, body: Mapping[str, Any], seconds: float) -> str | None:
    import httpx  # noqa: PLC0415 - slow to import, and most rollouts call no URL

    if url is None:
        return "can't be called: that variable is not set"
    try:
        headers = {"content-type": "application/json"}
        with httpx.stream("POST", url, content=_json(body), headers=headers, timeout=seconds) as response:
            if response.is_success:
                return None
            note = " (redirects are not followed)" if response.is_redirect else ""
            return f"answered {response.status_code}{note}{_answer(response, url)}"
    except httpx.TimeoutException:
        return f"did not answer within {seconds:g} s"
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        return "can't be called: that is no http:// or https:// URL"
    except httpx.ConnectError as error:
        return f"can't be reached{_cause(error)}"


def _answer(response: Any, url: str) -> str:
    """The first line of a refusal, unless it tells what is secret of the URL."""
    content = b""
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) >= _KEPT_BYTES:
            break
    lines = content[:_KEPT_BYTES].decode(errors="replace").strip().splitlines()
    parts = urlsplit(url)
    secrets = [*parts.path.split("/"), *(value for _, value in parse_qsl(parts.query)), parts.password, parts.username]
    if not lines or any(secret and secret in lines[0] for secret in secrets):
        return ""
    return f": {_printable(lines[0])}"


def _cause(error: BaseException) -> str:
    """The system's own words, which know no URL."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    known = isinstance(error, OSError) and error.errno is not None and error.errno > 0
    return f": {os.strerror(error.errno)}" if known else ""  # type: ignore[union-attr]


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, default=str).encode()


def _printable(line: str) -> str:
    """Without the control characters that could play with a terminal."""
    return "".join(character if character.isprintable() else " " for character in line)[:_SHOWN_CHARACTERS]
