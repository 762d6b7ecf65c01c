"""A headless Chromium for tests that open a page, spoken to over a pipe: https://chromedevtools.github.io/."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

_SECONDS = 60.0


class NoBrowserError(Exception):
    """There is no Chromium on this machine."""


class Browser:
    """One browser with one page."""

    def __init__(self, profile: Path) -> None:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if found is None:
            raise NoBrowserError("no chromium on PATH")
        self._numbers = itertools.count(1)
        self._held: list[dict[str, Any]] = []
        self._received = b""
        to_browser, self._writing = os.pipe()
        self._reading, from_browser = os.pipe()
        # The protocol is on descriptors 3 and 4, whatever ours are called.
        start = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._log = (profile / "log").open("wb")
        self._process = subprocess.Popen(
            ["bash", "-c", start, "chromium", found, "--headless=new", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        target = self._command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        os.close(self._writing)
        os.close(self._reading)

    def open(self, file: Path) -> list[str]:
        """Shows a file, and returns what was wrong with it: messages of the console, and requests beside its own."""
        self._held.clear()
        url = file.resolve().as_uri()
        self.command("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")
        # An answer comes after every event before it.
        self.evaluate("document.fonts.ready.then(() => true)")
        return [problem for event in self._held if (problem := _problem(event, url))]

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript in the page; of a promise, what it comes to."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 1000) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def emulate(self, media: str = "screen", scheme: str = "light") -> None:
        """`media`: screen or print. `scheme`: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, file: Path) -> None:
        """The whole page, as PNG."""
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._command(method, self._session, **parameters)

    def _command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._held.append(answer)
        raise AssertionError("unreachable")

    def _wait_for(self, event: str) -> None:
        if any(message.get("method") == event for message in self._held):
            return
        for message in self._messages():
            self._held.append(message)
            if message.get("method") == event:
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + _SECONDS
        while True:
            while b"\0" in self._received:
                text, self._received = self._received.split(b"\0", 1)
                yield json.loads(text)
            ready, _, _ = select.select([self._reading], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"the browser did not answer within {_SECONDS:g} s"
            content = os.read(self._reading, 1 << 20)
            assert content, "the browser has ended"
            self._received += content


def _problem(event: dict[str, Any], url: str) -> str | None:
    match event.get("method"), event.get("params"):
        case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded", found:
            return json.dumps(found)
        case "Network.requestWillBeSent", {"request": {"url": asked}} if asked != url and not asked.startswith("data:"):
            return f"request for {asked}"
        case _:
            return None


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser with a profile of its own. Raises NoBrowserError."""
    # Its last processes may still write as it is taken away.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(Path(profile)) as browser:
        yield browser
