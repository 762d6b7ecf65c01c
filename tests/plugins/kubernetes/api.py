"""The Kubernetes API over HTTP: objects by apiVersion, kind, Namespace and name, as the manifests that they are.

It imports little, as the plugin is started once for each provider of each `pulumi` command.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import yaml
from urllib3.util.ssl_ import create_urllib3_context

Object = dict[str, Any]

_CONNECT_SECONDS = 5
_REQUEST_SECONDS = 60


class ApiError(Exception):
    """The API server refused, or there is none (`code` 0)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class NoSuchKind(ApiError):
    """The API server serves no such kind: a CustomResourceDefinition is missing, or not ready yet."""

    def __init__(self, api_version: str, kind: str) -> None:
        super().__init__(404, "NoMatch", f'no matches for kind "{kind}" in version "{api_version}"')


@dataclass(frozen=True)
class Connection:
    """How to reach the API server, as a kubeconfig says it."""

    server: str
    namespace: str
    certificate_authority: str | None
    """PEM."""
    verify: bool
    token: str | None
    certificate: tuple[str, str] | None
    """The client's certificate and key, PEM."""

    @classmethod
    def of(cls, kubeconfig: str, context: str | None, folder: Path = Path()) -> Connection:
        """From a kubeconfig's text, whose relative paths are below `folder`. Raises ValueError where it lacks one."""
        document = yaml.load(kubeconfig, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        chosen = context or document.get("current-context")
        found = _named(document, "contexts", chosen, "context")
        cluster = _named(document, "clusters", found["cluster"], "cluster")
        user = _named(document, "users", found["user"], "user") if found.get("user") else {}
        if "exec" in user:
            user = user | _run(user["exec"], cluster)
        certificate, key = _pem(user, "client-certificate", folder), _pem(user, "client-key", folder)
        token = user.get("token")
        if not token and user.get("tokenFile"):
            token = (folder / user["tokenFile"]).read_text().strip()
        return cls(
            server=cluster["server"].rstrip("/"),
            namespace=found.get("namespace") or "default",
            certificate_authority=_pem(cluster, "certificate-authority", folder),
            verify=not cluster.get("insecure-skip-tls-verify"),
            token=token,
            certificate=(certificate, key) if certificate and key else None,
        )


@dataclass(frozen=True)
class Resource:
    """A kind as the API server's discovery describes it."""

    path: str
    plural: str
    namespaced: bool


@dataclass
class Api:
    connection: Connection
    _kinds: dict[str, dict[str, Resource]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._pool = _pool(self.connection)

    def ready(self) -> bool:
        """Raises `ApiError` where nobody answers."""
        try:
            self._request("GET", "/readyz")
        except ApiError as error:
            if error.code == 0:
                raise
            return False
        return True

    def version(self) -> Object:
        return self._request("GET", "/version")

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """None where there is no such object, or no such kind."""
        try:
            return self._request("GET", self._path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        query = {"labelSelector": labels, "fieldSelector": fields}
        answer = self._request("GET", self._path(api_version, kind, namespace, None, everywhere=True), query=query)
        return [{"apiVersion": api_version, "kind": kind} | item for item in answer["items"]]

    def apply(self, manifest: Object, *, manager: str, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply with strict field validation."""
        metadata = manifest["metadata"]
        path = self._path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace"), metadata["name"])
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        query |= {"force": "true"} if force else {}
        query |= {"dryRun": "All"} if dry_run else {}
        return self._request("PATCH", path, query, manifest, "application/apply-patch+yaml")

    def create(self, manifest: Object) -> Object:
        path = self._path(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace"), None)
        return self._request("POST", path, {"fieldValidation": "Strict"}, manifest)

    def patch(
        self,
        api_version: str,
        kind: str,
        name: str,
        namespace: str | None,
        patch: Object,
        *,
        subresource: str = "",
        manager: str = "edit",
    ) -> Object:
        """A merge patch, as `kubectl edit` sends it."""
        path = self._path(api_version, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return self._request("PATCH", path, {"fieldManager": manager}, patch, "application/merge-patch+json")

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, propagation: str = "Background"
    ) -> None:
        """Asks for the deletion; that there is no such object, or no such kind, is fine."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        try:
            self._request("DELETE", self._path(api_version, kind, namespace, name), body=options)
        except ApiError as error:
            if error.code != 404:
                raise

    def resource(self, api_version: str, kind: str) -> Resource:
        """Raises `NoSuchKind`."""
        known = self._kinds.get(api_version, {})
        if kind not in known:
            with self._lock:
                known = self._kinds[api_version] = self._discover(api_version)
        if kind not in known:
            raise NoSuchKind(api_version, kind)
        return known[kind]

    # -- private

    def _discover(self, api_version: str) -> dict[str, Resource]:
        prefix = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            answer = self._request("GET", prefix)
        except ApiError as error:
            if error.code == 404:
                return {}
            raise
        return {
            entry["kind"]: Resource(prefix, entry["name"], entry["namespaced"])
            for entry in answer["resources"]
            if "/" not in entry["name"]
        }

    def _path(
        self, api_version: str, kind: str, namespace: str | None, name: str | None, *, everywhere: bool = False
    ) -> str:
        resource = self.resource(api_version, kind)
        if not resource.namespaced or (everywhere and namespace is None):
            parts = [resource.plural]
        else:
            parts = ["namespaces", namespace or self.connection.namespace, resource.plural]
        return "/".join([resource.path, *(quote(part, safe="") for part in [*parts, *([name] if name else [])])])

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        headers = {"Accept": "application/json"}
        if self.connection.token:
            headers["Authorization"] = f"Bearer {self.connection.token}"
        if body is not None:
            headers["Content-Type"] = content_type
        given = {key: value for key, value in (query or {}).items() if value}
        url = self.connection.server + path + (f"?{urlencode(given)}" if given else "")
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(method, url, body=content, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{self.connection.server}: {error}") from error
        document = answer.data.decode(errors="replace")
        if answer.status >= 400:
            raise _refusal(answer.status, document)
        return json.loads(document) if document.startswith(("{", "[")) else document


def _refusal(code: int, text: str) -> ApiError:
    try:
        status = json.loads(text)
        return ApiError(code, status.get("reason", ""), status["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ApiError(code, "", text or f"HTTP status {code}")


def _pool(connection: Connection) -> urllib3.PoolManager:
    context = create_urllib3_context()
    if connection.verify:
        if connection.certificate_authority:
            context.load_verify_locations(cadata=connection.certificate_authority)
        else:
            context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if connection.certificate:
        # The standard library reads these from files alone.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
            pem.write("\n".join(connection.certificate))
            pem.flush()
            context.load_cert_chain(pem.name)
    return urllib3.PoolManager(
        maxsize=64,
        retries=urllib3.Retry(total=0, redirect=0),
        timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_REQUEST_SECONDS),
        ssl_context=context,
    )


def _named(document: Mapping[str, Any], key: str, name: str | None, singular: str) -> dict[str, Any]:
    for entry in document.get(key) or []:
        if entry["name"] == name:
            return entry.get(singular) or {}
    raise ValueError(f"the kubeconfig has no {singular} {name!r}")


def _pem(holder: Mapping[str, Any], key: str, folder: Path) -> str | None:
    if data := holder.get(f"{key}-data"):
        return base64.b64decode(data).decode()
    return (folder / holder[key]).read_text() if holder.get(key) else None


def _run(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """What a credential plugin prints: https://kubernetes.io/docs/reference/config-api/client-authentication.v1/."""
    info = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    if plugin.get("provideClusterInfo"):
        info["spec"]["cluster"] = {"server": cluster["server"]}
    own = {entry["name"]: entry["value"] for entry in plugin.get("env") or []}
    answer = subprocess.run(
        [plugin["command"], *(plugin.get("args") or [])],
        env=dict(os.environ) | own | {"KUBERNETES_EXEC_INFO": json.dumps(info)},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise ValueError(f"{plugin['command']} exited with {answer.returncode}: {answer.stderr.strip()}")
    status = json.loads(answer.stdout)["status"]
    found = {"token": status.get("token")}
    for key, given in (("client-certificate", "clientCertificateData"), ("client-key", "clientKeyData")):
        if status.get(given):
            found[f"{key}-data"] = base64.b64encode(status[given].encode()).decode()
    return found
