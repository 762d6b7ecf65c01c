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

_SECONDS = 10
"""For a call, so that a cluster that has gone is noticed."""
_LONGEST_MESSAGE = 500


class NotFoundError(ObservationError):
    """The API server has no such object."""


class Api:
    """The API server of one cluster. Methods raise ObservationError when it can't be reached, or refuses."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

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
        """Patches an object, by a JSON merge patch unless told otherwise. Raises NotFoundError."""
        return self._call("PATCH", path, body=changes, headers={"Content-Type": kind})

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - slow to import

        accepted = {"Accept": "application/json", **(headers or {})}
        try:
            request = self._client.param_serialize(
                method, path, query_params=list((query or {}).items()), header_params=accepted, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            response = self._client.call_api(*request, _request_timeout=_SECONDS)
            content = response.read()
        except (HTTPError, OSError) as error:
            raise ObservationError(f"the cluster's API server can't be reached: {error}") from None
        if response.status >= HTTPStatus.BAD_REQUEST:
            kind = NotFoundError if response.status == HTTPStatus.NOT_FOUND else ObservationError
            raise kind(f"the API server answers {response.status} to {method} {path}: {_message(content)}")
        return json.loads(content)

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


def _message(content: bytes) -> str:
    try:
        return json.loads(content)["message"]
    except (ValueError, TypeError, KeyError):
        return content.decode(errors="replace")[:_LONGEST_MESSAGE]
