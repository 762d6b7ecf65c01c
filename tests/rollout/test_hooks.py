"""Hooks and notifications, with commands that run and a server that answers."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.settings.rollout import Hook, Notification
from rollout.driving.hooks import HookError, run_hooks, tell
from tests.deadline import until

_FACTS = {"endpoint": "radiology/dev.tumour", "step": 2, "weights": {"1.0.0": 90, "1.1.0": 10}, "reason": "é\0 <!here>"}


class Webhook(ThreadingHTTPServer):
    """Answers with `status`, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, status: int = 200, answer: str = "", location: str | None = None, silent: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.answer, self.location = status, answer, location
        self.silent = silent
        self.ending = threading.Event()
        self.received: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0SECRET/x?token=s3cret"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook  # type: ignore[assignment]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/json"
        self.server.received.append(json.loads(content))
        if self.server.silent:
            self.server.ending.wait(30)
            return
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("location", self.server.location)
        self.end_headers()
        self.wfile.write(self.server.answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _serving(**kinds: Any) -> Iterator[Webhook]:
    with Webhook(**kinds) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()


def _python(code: str, *, timeout: str = "20s") -> Hook:
    return Hook.model_validate({"command": [sys.executable, "-c", code], "timeout": timeout})


def test_a_command_gets_the_facts_in_the_project_folder(tmp_path: Path) -> None:
    run_hooks(
        [_python("import json, os, sys; json.dump([json.load(sys.stdin), dict(os.environ)], open('got', 'w'))")],
        _FACTS,
        tmp_path,
        {"PATH": os.environ["PATH"], "KEPT": "1"},
    )
    facts, environment = json.loads((tmp_path / "got").read_text())
    assert facts == _FACTS
    assert environment["LEPTON_ENDPOINT"] == "radiology/dev.tumour"
    assert environment["LEPTON_STEP"] == "2"
    assert environment["LEPTON_WEIGHTS"] == "1.0.0=90 1.1.0=10"
    assert environment["LEPTON_REASON"] == "é <!here>"
    assert environment["KEPT"] == "1"


def test_a_command_that_fails_is_told_of_with_its_last_lines(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(50): print('line', n)\nprint('no \\x1b[31mquota', file=sys.stderr); sys.exit(3)"
    with pytest.raises(HookError) as raised:
        run_hooks([_python("pass"), _python(code)], _FACTS, tmp_path)
    assert f"hook 2 ({sys.executable} …) ended with exit status 3\n" in str(raised.value)
    assert str(raised.value).endswith("\n  line 48\n  line 49\n  no  [31mquota")
    assert "line 20" not in str(raised.value)


def test_hooks_after_one_that_fails_are_not_called(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        run_hooks([_python("raise SystemExit(1)"), _python("open('called', 'w')")], _FACTS, tmp_path)
    assert not (tmp_path / "called").exists()


def test_a_command_that_does_not_exist_fails(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"hook 1 \(checks/absent\) can't be run: .*No such file"):
        run_hooks([Hook.model_validate({"command": ["checks/absent"]})], _FACTS, tmp_path)


def test_a_command_out_of_time_ends_with_all_that_it_started(tmp_path: Path) -> None:
    started = (
        "import os, subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
        "print('waiting for', child.pid, flush=True)\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(HookError, match=r"did not end within 1 s\n  waiting for \d+$"):
        run_hooks([_python(started, timeout="1s")], _FACTS, tmp_path)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(_runs(pid) for pid in pids), what="the end of the command and its child")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_need_not_read_and_may_write_without_end(tmp_path: Path) -> None:
    facts = {**_FACTS, "long": "x" * 1_000_000}
    run_hooks([_python("import sys\nfor _ in range(300): sys.stdout.write('y' * 65536)")], facts, tmp_path)


def test_a_command_may_leave_something_running(tmp_path: Path) -> None:
    leaving = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    code = f"import sys; sys.stdout = open('pid', 'w'); {leaving}"
    begun = time.monotonic()
    run_hooks([_python(code)], _FACTS, tmp_path)
    assert time.monotonic() - begun < 15
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    assert child.is_running()
    child.kill()


def test_a_url_gets_the_facts(tmp_path: Path) -> None:
    with _serving(status=204) as server:
        run_hooks([Hook(url_variable="GATE_URL")], {"step": 1}, tmp_path, {"GATE_URL": server.url})
    assert server.received == [{"step": 1}]


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_other_than_2xx_fails_without_the_secret(status: int, tmp_path: Path) -> None:
    with (
        _serving() as elsewhere,
        _serving(status=status, answer="freeze until Monday", location=elsewhere.url) as server,
    ):
        with pytest.raises(HookError) as raised:
            run_hooks([Hook(url=server.url)], {"step": 1}, tmp_path)
        with pytest.raises(HookError) as raised_of_variable:
            run_hooks([Hook(url_variable="GATE_URL")], {"step": 1}, tmp_path, {"GATE_URL": server.url})
    note = " (redirects are not followed)" if status == 302 else ""
    assert str(raised.value) == (
        f"hook 1 (http://127.0.0.1:{server.server_port}) answered {status}{note}: freeze until Monday"
    )
    assert str(raised_of_variable.value) == (
        f"hook 1 (the URL in GATE_URL) answered {status}{note}: freeze until Monday"
    )
    assert elsewhere.received == []


def test_an_answer_that_repeats_the_url_is_not_shown(tmp_path: Path) -> None:
    with _serving(status=404, answer="nothing at /services/T0SECRET/x") as server, pytest.raises(HookError) as raised:
        run_hooks([Hook(url_variable="GATE_URL")], {}, tmp_path, {"GATE_URL": server.url})
    assert str(raised.value) == "hook 1 (the URL in GATE_URL) answered 404"


def test_a_url_that_nobody_serves_fails_without_the_secret(tmp_path: Path) -> None:
    with _serving() as server:
        url = server.url
    with pytest.raises(HookError) as raised:
        run_hooks([Hook(url_variable="GATE_URL")], {}, tmp_path, {"GATE_URL": url})
    assert str(raised.value) == "hook 1 (the URL in GATE_URL) can't be reached: Connection refused"


@pytest.mark.parametrize("url", ["ftp://host/s3cret", "s3cret", "http://[s3cret", "http://host:s3cret/"])
def test_what_is_no_url_fails_without_the_secret(url: str, tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"can't be (called|reached)") as raised:
        run_hooks([Hook(url_variable="GATE_URL")], {}, tmp_path, {"GATE_URL": url})
    assert "s3cret" not in str(raised.value)


def test_a_url_that_does_not_answer_is_out_of_time(tmp_path: Path) -> None:
    hook = Hook.model_validate({"url_variable": "GATE_URL", "timeout": "200ms"})
    late = r"the URL in GATE_URL\) did not answer within 0\.2 s"
    with _serving(silent=True) as server, pytest.raises(HookError, match=late):
        run_hooks([hook], {}, tmp_path, {"GATE_URL": server.url})


def test_a_missing_variable_fails(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"the URL in GATE_URL\) can't be called: that variable is not set"):
        run_hooks([Hook(url_variable="GATE_URL")], {}, tmp_path, {})


def test_a_notification_is_slacks_text_with_the_facts_beside_it() -> None:
    with _serving() as server:
        problems = tell([Notification(url=server.url)], "start", "by <!here> & co", {"step": 1}, {})
    assert problems == []
    assert server.received == [{"text": "by &lt;!here&gt; &amp; co", "step": 1}]


def test_a_notification_goes_to_those_that_want_it() -> None:
    with _serving() as wanting, _serving() as other:
        notifications = [Notification(url=wanting.url, on=("hold",)), Notification(url=other.url, on=("start",))]
        assert tell(notifications, "hold", "waits", {}, {}) == []
    assert len(wanting.received) == 1
    assert other.received == []


def test_webhooks_that_fail_are_told_of_together_and_in_time() -> None:
    with _serving(silent=True) as slow, _serving(status=500) as broken, _serving() as good:
        notifications = [
            *(Notification(url=slow.url) for _ in range(4)),
            Notification(url=broken.url),
            Notification(url_variable="ABSENT"),
            Notification(url=good.url),
        ]
        begun = time.monotonic()
        problems = tell(notifications, "start", "begins", {"at": object()}, {})
        assert time.monotonic() - begun < 6
    host = "notification to http://127.0.0.1"
    assert problems == [
        *[f"{host}:{slow.server_port} did not answer within 3 s"] * 4,
        f"{host}:{broken.server_port} answered 500",
        "notification to the URL in ABSENT can't be called: that variable is not set",
    ]
    assert good.received[0]["text"] == "begins"


def test_telling_never_raises() -> None:
    circular: dict[str, Any] = {}
    circular["itself"] = circular
    with _serving() as server:
        problems = tell([Notification(url=server.url)], "start", "begins", circular, {})
    assert problems == [f"notification to http://127.0.0.1:{server.server_port} can't be called: ValueError"]
