"""The logins at registries that a version's namespace gets: the platform's pull secrets, in one."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from infra.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.cluster.live.api import Api

_KEY = ".dockerconfigjson"


class LoginRefused(UserError):
    """A pull secret is missing, or holds something else."""


def read_logins(api: Api, namespace: str, names: Iterable[str], ecr: str | None = None) -> dict[str, str]:
    """Data of a Secret of type kubernetes.io/dockerconfigjson with all the logins of those in `namespace`.

    One, as what pulls models reads one file. Of two logins at the same registry the first counts. At the registry
    `ecr`, which is Amazon's, who pulls logs in by `docker-credential-ecr-login`, as the role that it has.

    Raises:
        LoginRefused
        ObservationError: the API server can't be reached, or refuses.
    """
    from infra.cluster.live.api import NotFoundError  # noqa: PLC0415 - slow to import

    merged: dict[str, Any] = {}
    for name in names:
        try:
            found = api.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except NotFoundError:
            raise LoginRefused(
                f"namespace {namespace} has no Secret {name}, which lepton:platform.cluster.images.pull_secrets names; "
                f"make it: kubectl create secret docker-registry {name} --namespace {namespace} …"
            ) from None
        merged = _auths(name, found.get("data", {})) | merged
    helpers = {"credHelpers": {ecr: "ecr-login"}} if ecr else {}
    return {_KEY: base64.b64encode(json.dumps({"auths": merged} | helpers, sort_keys=True).encode()).decode()}


def _auths(name: str, data: dict[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(base64.b64decode(data[_KEY], validate=True))["auths"])
    except (KeyError, ValueError, TypeError, binascii.Error):
        # The content is not to be shown.
        raise LoginRefused(
            f"Secret {name} holds no logins under {_KEY}; make it anew: kubectl create secret docker-registry {name} …"
        ) from None
