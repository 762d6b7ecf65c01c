"""Reads and patches the live cluster through its API server: what Pulumi's state can't say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra.contracts import ObservationError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from infra.cluster.internals import Connection
    from infra.cluster.manifests import Manifest

_SECONDS = 10
"""For a call, so that a cluster that has gone is noticed."""
_LONGEST_MESSAGE = 500
_KUBE_SYSTEM = "/api/v1/namespaces/kube-system"


class NotFoundError(ObservationError):
    """The API server has no such object."""


class OtherClusterError(ObservationError):
    """The connection leads to another cluster than the one that it was recorded for."""


class ConflictError(ObservationError):
    """The object isn't what the change was made for: somebody else has changed it."""


_ERRORS: dict[int, type[ObservationError]] = {
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    # A JSON patch whose `test` fails.
    HTTPStatus.UNPROCESSABLE_ENTITY: ConflictError,
}


class Api:
    """The API server of one cluster. Methods raise ObservationError when it can't be reached, or refuses.

    Where the connection says which cluster it is for, they raise OtherClusterError in any other, before the first call.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_the_one = "identity" not in connection

    @property
    def way(self) -> str:
        """How it is reached, in words."""
        given = self._connection
        if given["document"]:
            return "the kubeconfig in the platform's outputs"
        context = f"context {given['context']!r}" if given["context"] else "the current context"
        return f"{context} of {kubeconfig_path(given) or 'your kubeconfig'}"

    def identity(self) -> str:
        """The cluster's own, whatever way it is reached by: the UID of its `kube-system`."""
        return self._call("GET", _KUBE_SYSTEM)["metadata"]["uid"]

    def refuse_other_cluster(self) -> None:
        """Raises OtherClusterError where the connection leads to another cluster than it is for."""
        if self._is_the_one:
            return
        status, content = self._sent("GET", _KUBE_SYSTEM)
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(status, "GET", _KUBE_SYSTEM, content)
        found, expected = json.loads(content)["metadata"]["uid"], self._connection.get("identity")
        if found != expected:
            raise OtherClusterError(
                f"{self.way} leads to another cluster than the platform is in: the UID of its "
                f"kube-system is {found}, and the platform's is {expected}; have it lead to the platform's cluster, "
                "and say lepton:platform.cluster.existing.context, as a current context is soon another; where that "
                "cluster was built anew, bring the platform up anew first"
            )
        self._is_the_one = True

    def get(self, path: str, **query: str) -> Any:
        """The JSON at a path such as `/apis/apps/v1/namespaces/N/deployments/D`. Raises NotFoundError."""
        return self._call("GET", path, query=query)

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """All objects of a list, whatever pages it comes in."""
        found: list[dict[str, Any]] = []
        query = {"limit": "500", **query}
        while True:
            page = self._call("GET", path, query=query)
            found += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return found
            query["continue"] = token

    def patch(self, path: str, changes: Any, kind: str = "application/merge-patch+json") -> Any:
        """Patches an object, by a JSON merge patch unless told otherwise. Raises NotFoundError, ConflictError."""
        return self._call("PATCH", path, body=changes, headers={"Content-Type": kind})

    def apply(self, path: str, manifest: Manifest, manager: str, *, force: bool = False) -> Any:
        """Applies an object, or a part of one, server-side as this field manager; by force, over what others own.

        Raises ConflictError. https://kubernetes.io/docs/reference/using-api/server-side-apply/
        """
        query = {"fieldManager": manager, **({"force": "true"} if force else {})}
        # As text: the client knows no other way to send this type.
        body, headers = json.dumps(manifest), {"Content-Type": "application/apply-patch+yaml"}
        return self._call("PATCH", path, query=query, body=body, headers=headers)

    def service(self, namespace: str, service: str, port: str, path: str, **query: str) -> tuple[int, bytes]:
        """GETs a path of a Service's, through the API server: the status and the body, whatever the status.

        Raises NotFoundError, and ObservationError where the Service can't be reached.
        """
        proxied = f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy{path}"
        self.refuse_other_cluster()
        status, content = self._sent("GET", proxied, query=query)
        if status >= HTTPStatus.BAD_REQUEST and _is_its_own(content):
            raise _refusal(status, "GET", proxied, content)
        return status, content

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        self.refuse_other_cluster()
        status, content = self._sent(method, path, query=query, body=body, headers=headers)
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(status, method, path, content)
        return json.loads(content)

    def _sent(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        from kubernetes.client import ApiException  # noqa: PLC0415 - slow to import
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        accepted = {"Accept": "application/json", **(headers or {})}
        try:
            request = self._client.param_serialize(
                method, path, query_params=list((query or {}).items()), header_params=accepted, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            response = self._client.call_api(*request, _request_timeout=_SECONDS)
            return response.status, response.read()
        except (ApiException, HTTPError, OSError) as error:
            raise ObservationError(f"the cluster's API server can't be reached: {error}") from None

    @cached_property
    def _client(self) -> ApiClient:
        from kubernetes import config  # noqa: PLC0415 - slow to import
        from kubernetes.config import ConfigException  # noqa: PLC0415

        try:
            if self._connection["document"]:
                return config.new_client_from_config_dict(
                    yaml.safe_load(self._connection["document"]), context=self._connection["context"]
                )
            return config.new_client_from_config(kubeconfig_path(self._connection), context=self._connection["context"])
        except (ConfigException, OSError) as error:
            raise ObservationError(f"the cluster's kubeconfig can't be used: {error}") from None


def kubeconfig_path(connection: Connection) -> str | None:
    """The kubeconfig's file on this machine; None: as kubectl finds it, by KUBECONFIG or in the user's home."""
    if connection["kubeconfig"]:
        return str(Path(connection["kubeconfig"]).expanduser())
    return os.environ.get("KUBECONFIG") or None


def _refusal(status: int, method: str, path: str, content: bytes) -> ObservationError:
    kind = _ERRORS.get(status, ObservationError)
    return kind(f"the API server answers {status} to {method} {path}: {_message(content)}")


def _is_its_own(content: bytes) -> bool:
    """Whether an error is the API server's, and not of a Service behind it."""
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("kind") == "Status"


def _message(content: bytes) -> str:
    try:
        return json.loads(content)["message"]
    except (ValueError, TypeError, KeyError):
        return content.decode(errors="replace")[:_LONGEST_MESSAGE]
