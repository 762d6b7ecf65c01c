"""Sees an endpoint's split as clients do: by requests of its own through the gateway."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from infra.contracts import ObservationError
from infra.names import VERSION_HEADER

_CONNECTIONS = 8
_SECONDS = 5.0
USER_AGENT = "lepton-probe"


def versions_seen(url: str, model: str, requests: int, *, at: str | None = None) -> dict[str, int] | None:
    """How many of so many requests each version answered, by what the answers say; None where none says it.

    They GET the model's metadata, `/v2/models/MODEL`: inference is asked for by POST, so metrics tell the two apart by
    the method, and no model computes anything. An answer names its version by the header `x-model-version`, or else
    by the metadata's `versions` where that has just one. A server that knows no such path answers 404 with the header.

    `url`: the endpoint's. `at`: the address of the gateway (`http://HOST:PORT`), where that is not the URL's own.

    Raises:
        ObservationError: when the gateway can't be reached, or gives an error of its own instead of an answer.
    """
    target = urlsplit(url)
    base = urlsplit(at) if at else target
    address = base._replace(path=f"{target.path}/v2/models/{model}").geturl()
    headers = {"host": target.netloc, "user-agent": USER_AGENT, "accept": "application/json"}
    # Its certificate is for the name, not for where it is.
    extensions = {"sni_hostname": target.hostname}
    with (
        httpx.Client(timeout=_SECONDS, headers=headers) as client,
        ThreadPoolExecutor(max_workers=_CONNECTIONS) as pool,
    ):
        try:
            answers = list(pool.map(lambda _: client.get(address, extensions=extensions), range(requests)))
        except httpx.HTTPError as error:
            raise ObservationError(f"the gateway at {url} can't be reached from here: {error}") from None
    named = Counter(version for version in map(_version_of, answers) if version)
    if named:
        return dict(named)
    failed = [answer.status_code for answer in answers if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR]
    if failed:
        raise ObservationError(f"the gateway answers {failed[0]} to GET {address}")
    return None


def _version_of(answer: httpx.Response) -> str | None:
    named = answer.headers.get(VERSION_HEADER)
    if named:
        return named
    try:
        versions = answer.json()["versions"]
        return str(versions[0]) if len(versions) == 1 else None
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        return None
