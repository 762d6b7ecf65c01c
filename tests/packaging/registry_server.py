"""A real registry server (the CNCF distribution project's) of the tests' own, and a way to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_packaging.stores.registry import Registry
from model_packaging.stores.transport import Patience
from tests.certificates import make_certificates
from tests.deadline import until

USERNAME, PASSWORD = "ada", "s3cret-of-the-tests"
_HTPASSWD = f"{USERNAME}:$2b$04$RPCzR4eJbVFXTO/wsuZBeOTLeWSPBkMY6nDm8NR9MqXfboJUkzLoG\n"
"""bcrypt of the password, the one scheme that the server takes; at its lowest cost."""

HASTY = Patience(attempts=3, first_delay_seconds=0.01, longest_delay_seconds=0.05)
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Server:
    """A registry server that runs."""

    host: str
    folder: Path
    """Where it keeps what it is given: `docker/registry/v2` below."""
    scheme: str
    environ: dict[str, str]
    """What the user of a registry there has in the environment: credentials, and folders of the test's own."""

    def location(self, prefix: str) -> str:
        return f"{self.scheme}{self.host}/{prefix}"

    def store(self, prefix: str, **more: Any) -> Registry:
        return Registry(self.location(prefix), **{"environ": self.environ, "patience": HASTY, **more})

    def through(self, proxy: Proxy) -> Server:
        return Server(f"127.0.0.1:{proxy.port}", self.folder, self.scheme, self.environ)

    def blob(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def tags(self, repository: str) -> Path:
        return self.folder / "docker/registry/v2/repositories" / repository / "_manifests/tags"


@contextlib.contextmanager
def serving(
    folder: Path, *, login: bool = False, tls: bool = False, settings: str = "", port: int = 0, storage: str = ""
) -> Iterator[Server]:
    """Runs a server in `folder`.

    Args:
        login: Ask for USERNAME and PASSWORD.
        tls: Speak TLS, with a certificate of an authority whose own is `ca.pem` in the folder.
        settings: More lines of the server's configuration.
        storage: More lines of its section `storage`.
    """
    program = shutil.which("registry")
    assert program, "there is no registry server: run `make tools`"
    folder.mkdir(parents=True, exist_ok=True)
    environ = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    lines = ["version: 0.1", "storage:", f"  filesystem: {{rootdirectory: {folder / 'data'}}}", *storage.splitlines()]
    if "delete:" not in storage:
        lines.append("  delete: {enabled: true}")
    lines += ["http:", f"  addr: 127.0.0.1:{port}", "  secret: of the tests"]
    if tls:
        made = make_certificates(folder)
        lines.append(f"  tls: {{certificate: {made.server}, key: {made.key}}}")
        environ["LEPTON_REGISTRY_CA"] = str(made.authority)
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        lines += ["auth:", f"  htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}"]
        environ |= {"LEPTON_REGISTRY_USERNAME": USERNAME, "LEPTON_REGISTRY_PASSWORD": PASSWORD}
    (folder / "config.yaml").write_text("\n".join([*lines, settings]))
    with running(program, folder) as (_, bound):
        yield Server(f"127.0.0.1:{bound}", folder / "data", "oci://" if tls else "oci+http://", environ)


@contextlib.contextmanager
def running(program: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server with the configuration in `folder`, and its port."""
    log = folder / "log"
    env = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", folder / "config.yaml"], stdout=output, stderr=output, env=env)

    def port() -> int | None:
        assert process.poll() is None, log.read_text()
        found = _LISTENING.search(log.read_text())
        return int(found[1]) if found else None

    try:
        yield process, until(port, what="the registry server") or 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Proxy:
    """A way to a server that counts what passes, and can be cut."""

    port: int
    sent: int = 0
    """Bytes to the server."""
    received: int = 0
    cut_after_sent: int | None = None
    """Every connection ends once so many bytes have gone to the server."""
    cut_after_received: int | None = None
    cuts: int = 0
    once: bool = True
    """The cut is followed by no other."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.sent = self.received = self.cuts = 0
        self.cut_after_sent = self.cut_after_received = None

    def allowed(self, count: int, *, to_server: bool) -> int:
        """How many of these bytes may pass; less than all of them is a cut."""
        with self._lock:
            limit = self.cut_after_sent if to_server else self.cut_after_received
            passed = self.sent if to_server else self.received
            allowed = count if limit is None else max(0, min(count, limit - passed))
            if to_server:
                self.sent += allowed
            else:
                self.received += allowed
            if allowed < count:
                self.cuts += 1
                if self.once:
                    self.cut_after_sent = self.cut_after_received = None
            return allowed


@contextlib.contextmanager
def proxy_to(server: Server) -> Iterator[Proxy]:
    target = int(server.host.rpartition(":")[2])

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target)) as upstream:
                _pass_on(self.request, upstream, proxy)

    class Listener(socketserver.ThreadingTCPServer):
        # Connections are kept open by clients, and end with the process.
        daemon_threads = True
        block_on_close = False

    with Listener(("127.0.0.1", 0), Handler) as listener:
        proxy = Proxy(listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()


def _pass_on(client: socket.socket, upstream: socket.socket, proxy: Proxy) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, upstream)
        selector.register(upstream, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select():
                source: Any = key.fileobj
                content = source.recv(1 << 16)
                allowed = proxy.allowed(len(content), to_server=source is client)
                key.data.sendall(content[:allowed])
                if not content or allowed < len(content):
                    return
