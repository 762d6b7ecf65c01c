"""What a real node's Pods need to find Services: a DNS server, and the address of the API server's own Service.

A cluster has CoreDNS and kube-proxy for it. Here a name leads to a Service's Pods, as that of a headless one does.
"""

from __future__ import annotations

import shutil
import socket
import struct
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from tests.cluster.control_plane import ControlPlane
from tests.cluster.real_node import RealNode
from tests.plugins.kubernetes.api import ApiError

_SUFFIX = ".svc.cluster.local"
_PORT = 53
_LOOK_SECONDS = 0.1
_HEADER = struct.Struct("!6H")
_ANSWER_FLAGS, _NO_SUCH_NAME = 0x8580, 0x8583
"""From who knows best, who asks further where asked to."""
_A_RECORD = 1
_SECONDS_TO_LIVE = 1


def lacking() -> str | None:
    """What this machine lacks for it, as a sentence."""
    return None if shutil.which("iptables") else "no iptables on PATH (on Debian: iptables)"


class NodeServices:
    """While it is open, Pods that start on the node find Services by their names.

    What it does to packets is done in the node's own network, and gone with it.
    """

    def __init__(self, control_plane: ControlPlane, node: RealNode) -> None:
        # A client of the thread's own.
        self._control_plane = ControlPlane(control_plane.folder)
        self._node = node
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer_all)

    def __enter__(self) -> NodeServices:
        self._forward_to_api_server()
        self._socket.bind((self._node.host, _PORT))
        self._socket.settimeout(_LOOK_SECONDS)
        self._thread.start()
        # The kubelet reads it for each Pod.
        (self._node.folder / "resolv.conf").write_text(
            f"nameserver {self._node.host}\nsearch {_SUFFIX[1:]} {_SUFFIX[5:]}\noptions ndots:5\n"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _forward_to_api_server(self) -> None:
        service = self._control_plane.get("v1", "Service", "kubernetes", "default")
        assert service, "the API server has no Service"
        whose = ["-d", service["spec"]["clusterIP"], "-p", "tcp", "--dport", str(service["spec"]["ports"][0]["port"])]
        target = urlsplit(self._control_plane.url).netloc
        nat = ["iptables", "--wait", "-t", "nat", "-A"]
        # Pods and this machine are neighbours: nobody may be told of the shorter way, nor take it back.
        for name in ("all", "cni0"):
            self._node.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv4/conf/{name}/send_redirects")
        self._node.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._node.run(*nat, "PREROUTING", *whose, "-j", "DNAT", "--to-destination", target)
        self._node.run(*nat, "POSTROUTING", "-m", "conntrack", "--ctstate", "DNAT", "-j", "MASQUERADE")

    def _answer_all(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                question, asker = self._socket.recvfrom(512)
                self._socket.sendto(self._answer(question), asker)

    def _answer(self, message: bytes) -> bytes:
        """https://www.rfc-editor.org/rfc/rfc1035#section-4"""
        number, *_ = _HEADER.unpack_from(message)
        name, end = _name(message, _HEADER.size)
        kind, _ = struct.unpack_from("!2H", message, end)
        found = self._addresses(name)
        told = found if kind == _A_RECORD else []
        header = _HEADER.pack(number, _ANSWER_FLAGS if found else _NO_SUCH_NAME, 1, len(told), 0, 0)
        # Each is of the name that the question begins with.
        of_question = struct.pack("!3HIH", 0xC000 | _HEADER.size, _A_RECORD, 1, _SECONDS_TO_LIVE, 4)
        answers = [of_question + socket.inet_aton(address) for address in told]
        return b"".join([header, message[_HEADER.size : end + 4], *answers])

    def _addresses(self, name: str) -> list[str]:
        """Of the Pods that are ready behind the Service of that name."""
        service, _, namespace = name.lower().removesuffix(_SUFFIX).partition(".")
        if not name.lower().endswith(_SUFFIX) or not namespace or "." in namespace:
            return []
        try:
            slices = self._control_plane.list(
                "discovery.k8s.io/v1", "EndpointSlice", namespace, labels=f"kubernetes.io/service-name={service}"
            )
        except ApiError:
            return []
        endpoints = [endpoint for found in slices for endpoint in found.get("endpoints") or []]
        return [address for one in endpoints if one["conditions"].get("ready") for address in one["addresses"]]


def _name(message: bytes, start: int) -> tuple[str, int]:
    """The name that begins there, and where it ends."""
    labels: list[str] = []
    while length := message[start]:
        labels.append(message[start + 1 : start + 1 + length].decode())
        start += 1 + length
    return ".".join(labels), start + 1
