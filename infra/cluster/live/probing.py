"""Sees an endpoint's split as clients do: by requests of its own through the gateway."""

from __future__ import annotations

import json
import ssl
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx

from infra.contracts import ObservationError
from infra.names import VERSION_HEADER

_CONNECTIONS = 8
_FIRST = 16
"""Where none of so many answers says its version, no more are asked for: a fleet has hundreds of endpoints."""
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
    # By a cookie a sticky endpoint would send every request to the version that answered the first.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    with (
        # Whom this machine trusts, as other clients here do: httpx alone would bring a list of its own.
        httpx.Client(
            timeout=_SECONDS, headers=headers, cookies=no_cookies, verify=ssl.create_default_context()
        ) as client,
        ThreadPoolExecutor(max_workers=_CONNECTIONS) as pool,
    ):

        def ask(count: int) -> list[httpx.Response]:
            return list(pool.map(lambda _: client.get(address, extensions=extensions), range(count)))

        try:
            answers = ask(min(_FIRST, requests))
            if any(map(_version_of, answers)):
                answers += ask(requests - len(answers))
        except httpx.HTTPError as error:
            raise ObservationError(
                f"the gateway at {url} can't be reached from here: {error}. {_remedies(base.hostname)}"
            ) from None
    named = Counter(version for version in map(_version_of, answers) if version)
    if named:
        return dict(named)
    failed = [answer.status_code for answer in answers if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR]
    if failed:
        raise ObservationError(f"the gateway answers {failed[0]} to GET {address}")
    return None


def _remedies(host: str | None) -> str:
    return (
        f"Check this machine's DNS and network for {host}; SSL_CERT_FILE names the file of a private CA; "
        "lepton:platform.cluster.gateway.url names another address of the gateway; and where none can be reached from "
        "here, lepton:platform.cluster.gateway.probe: false has weights verified by the routes' status alone"
    )


def _version_of(answer: httpx.Response) -> str | None:
    named = answer.headers.get(VERSION_HEADER)
    if named:
        return named
    try:
        versions = answer.json()["versions"]
        return str(versions[0]) if len(versions) == 1 else None
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        return None
