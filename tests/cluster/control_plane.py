"""A real Kubernetes control plane on this machine: etcd, API server, controller manager and scheduler, with
certificates of its own. It is ready in some seconds, and nothing of it outlives the tests.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient

from tests.certificates import Authority, write_certificate, write_key
from tests.cluster.daemon import Daemon, missing, stop_all
from tests.deadline import until
from tests.plugins.kubernetes.api import Api, ApiError, Connection

COMMANDS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
SERVICE_ADDRESSES = "10.96.0.0/16"
"""Where the ClusterIPs of Services are."""

_READY_SECONDS = 60
_ADMINISTRATORS = "system:masters"


class ControlPlane:
    """The control plane of one folder: `start` makes it, and any process that has the folder can use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self.etcd, self.api_server, self.controller_manager, self.scheduler = (
            Daemon(command, folder) for command in COMMANDS
        )
        self._api: Api | None = None

    @classmethod
    def in_new_folder(cls) -> ControlPlane:
        return cls(Path(tempfile.mkdtemp(prefix="lepton-cluster-")))

    # -- where it is

    @property
    def url(self) -> str:
        return self._facts["url"]

    @property
    def address(self) -> str:
        """An address of this machine that isn't loopback: the API server takes no other in an EndpointSlice."""
        return self._facts["address"]

    @property
    def certificate_authority(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def _facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "facts.json").read_text())

    # -- its life

    def start(self) -> None:
        """Raises `AssertionError` with a program's last words where one doesn't become ready."""
        if gone := missing(*COMMANDS):
            pytest.skip(f"no {', '.join(gone)} on PATH: `make tools` builds them")
        address = own_address()
        etcd_port, peer_port, api_port, manager_port, scheduler_port = free_ports(5)
        facts = {"url": f"https://{address}:{api_port}", "address": address}
        (self.folder / "facts.json").write_text(json.dumps(facts))
        _make_authority(self.folder)
        _issue(self.folder, "apiserver", "kubernetes", addresses=[address, "127.0.0.1", "10.96.0.1"])
        write_key(self.folder / "service-accounts.key", rsa.generate_private_key(65537, 2048))
        self.credentials("admin", [_ADMINISTRATORS])

        etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        self.etcd.start(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--log-level=warn",
            "--quota-backend-bytes=8589934592",
        )
        key = self.folder / "service-accounts.key"
        self.api_server.start(
            "kube-apiserver",
            f"--etcd-servers={etcd_url}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={api_port}",
            f"--cert-dir={self.folder / 'generated'}",
            f"--tls-cert-file={self.folder / 'apiserver.crt'}",
            f"--tls-private-key-file={self.folder / 'apiserver.key'}",
            f"--client-ca-file={self.certificate_authority}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            "--feature-gates=ImageVolume=true",
            # Thousands of objects at a time are what the scale tests are about, not fairness between clients.
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
            "--shutdown-delay-duration=0s",
            *self._reach_of_kubelets(),
        )
        self._wait_for_api_server()
        self.controller_manager.start(
            "kube-controller-manager",
            *self._client_flags(),
            f"--secure-port={manager_port}",
            f"--cert-dir={self.folder / 'generated-manager'}",
            f"--root-ca-file={self.certificate_authority}",
            f"--service-account-private-key-file={key}",
            "--use-service-account-credentials",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--concurrent-deployment-syncs=20",
            "--concurrent-namespace-syncs=20",
            "--concurrent-replicaset-syncs=20",
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--node-monitor-grace-period=20s",
        )
        self.scheduler.start(
            "kube-scheduler",
            *self._client_flags(),
            f"--secure-port={scheduler_port}",
            f"--cert-dir={self.folder / 'generated-scheduler'}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        )
        # The account that every Pod of a Namespace runs as is made by the controller manager.
        self._wait(
            lambda: self.get("v1", "ServiceAccount", "default", "default"),
            self.controller_manager,
            "service accounts",
        )

    def stop(self) -> None:
        """Ends it, with whatever else runs in its folder, and throws the folder away."""
        stop_all(self.folder)
        shutil.rmtree(self.folder)

    def stop_api_server(self) -> None:
        """The API server is gone from one moment to the next; what it served stays in etcd."""
        self.api_server.stop()

    def start_api_server(self) -> None:
        self.api_server.start_again()
        self._wait_for_api_server()

    @property
    def running(self) -> bool:
        return self.api_server.running and self.etcd.running

    # -- how to use it

    def credentials(self, user: str, groups: list[str], namespace: str | None = None) -> Path:
        """The path of a kubeconfig with a client certificate of that user's own, valid for a day."""
        name = user.replace(":", "-").replace("/", "-")
        certificate, key = _issue(self.folder, name, user, groups)
        path = self.folder / f"{name}.kubeconfig"
        context = {"cluster": "lepton-tests", "user": user} | ({"namespace": namespace} if namespace else {})
        cluster = {"server": self.url, "certificate-authority": str(self.certificate_authority)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lepton-tests", "cluster": cluster}],
            "users": [{"name": user, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": name, "context": context}],
            "current-context": name,
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def client(self) -> client.ApiClient:
        """For the classes of `kubernetes.client`: `CoreV1Api(control_plane.client())`."""
        return config.new_client_from_config(str(self.kubeconfig))

    def dynamic(self) -> DynamicClient:
        return DynamicClient(self.client())

    @property
    def api(self) -> Api:
        """A thin client for manifests as they are; `get` and `apply` below use it."""
        if self._api is None:
            self._api = Api(Connection.of(self.kubeconfig.read_text(), context=None))
        return self._api

    def apply(self, manifest: dict[str, Any], *, force: bool = True, dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply with strict field validation; returns the live object, raises `ApiError`."""
        return self.api.apply(manifest, manager="tests", force=force, dry_run=dry_run)

    def apply_all(self, *manifests: dict[str, Any]) -> None:
        for manifest in manifests:
            self.apply(manifest)

    def define(self, definitions: Sequence[dict[str, Any]]) -> None:
        """Applies CustomResourceDefinitions; once it returns, the API server serves what they define."""
        for definition in definitions:
            self.apply(definition)
        for definition in definitions:
            group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
            for version in (each["name"] for each in definition["spec"]["versions"] if each["served"]):
                served = partial(self._serves, f"{group}/{version}", kind)
                until(served, _READY_SECONDS, what=f"{kind} of {group}/{version} being served")

    def _serves(self, api_version: str, kind: str) -> bool:
        # Established is said before the API server's discovery knows of it.
        with suppress(ApiError):
            self.list(api_version, kind)
            return True
        return False

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        return self.api.get(api_version, kind, name, namespace)

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = ""
    ) -> list[dict[str, Any]]:
        """Objects of a kind, in one Namespace or in all, with labels as a selector of the API's (`a=b,c`)."""
        return self.api.list(api_version, kind, namespace, labels=labels)

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> None:
        """Asks for the deletion; an object that isn't there is fine."""
        self.api.delete(api_version, kind, name, namespace)

    def namespace(self, name: str, **labels: str) -> str:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        return name

    # -- private

    def _client_flags(self) -> list[str]:
        flags = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        return [*(f"--{flag}={self.kubeconfig}" for flag in flags), "--bind-address=127.0.0.1", "--leader-elect=false"]

    def _reach_of_kubelets(self) -> list[str]:
        certificate, key = _issue(self.folder, "apiserver-kubelet-client", "kube-apiserver", [_ADMINISTRATORS])
        return [
            f"--kubelet-client-certificate={certificate}",
            f"--kubelet-client-key={key}",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
        ]

    def _wait_for_api_server(self) -> None:
        self._wait(self.api.ready, self.api_server, "the API server")

    def _wait(self, condition: Callable[[], object], daemon: Daemon, what: str) -> None:
        def holds() -> bool:
            assert daemon.running, f"{daemon.name} ended:\n{daemon.last_words()}"
            try:
                return bool(condition())
            except ApiError:
                return False

        until(holds, _READY_SECONDS, what=what)


def own_address() -> str:
    """This machine's address towards others. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address = probe.getsockname()[0]
    assert not ipaddress.ip_address(address).is_loopback, "this machine has no network address but loopback"
    return address


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now: the kernel gives out others for some time."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _make_authority(folder: Path) -> None:
    authority = Authority.make("lepton-tests")
    write_certificate(folder / "ca.crt", authority.certificate)
    write_key(folder / "ca.key", authority.key)


def _issue(
    folder: Path, file: str, user: str, groups: list[str] | None = None, *, addresses: list[str] | None = None
) -> tuple[Path, Path]:
    """A certificate and its key, for a client or (with addresses) for a server."""
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups or []]
    subject = x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
    extensions: list[x509.ExtensionType] = [x509.ExtendedKeyUsage([purpose])]
    if addresses:
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        extensions.append(x509.SubjectAlternativeName([x509.DNSName("localhost"), *names]))
    certificate, key = Authority.read(folder / "ca.crt", folder / "ca.key").issue(subject, *extensions)
    write_certificate(folder / f"{file}.crt", certificate)
    write_key(folder / f"{file}.key", key)
    return folder / f"{file}.crt", folder / f"{file}.key"
