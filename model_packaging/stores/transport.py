"""Requests to one registry: who we are proved by oras, tried again where that helps, and nothing of an answer believed.

Sources: OCI distribution specification 1.1; the token authentication of the CNCF distribution project.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from oras.auth.token import TokenAuth
from oras.auth.utils import get_basic_auth, parse_auth_header
from requests.adapters import HTTPAdapter

from model_packaging.digests import CHUNK_BYTES
from model_packaging.errors import PackagingError, StoreDamaged, StoreUnreachable
from model_packaging.stores.credentials import Credentials, find_credentials, how_to_log_in
from model_packaging.stores.verified import VerifiedStream

CA_FILE = "LEPTON_REGISTRY_CA"
"""Names a PEM file of certificate authorities to trust; without it REQUESTS_CA_BUNDLE, or the well-known ones."""

LARGEST_DOCUMENT = 16 << 20
"""Bytes. Registries need not take manifests of more than 4 MiB."""

_CONNECT_SECONDS = 10.0
_LARGEST_REFUSAL = 64 << 10
_LARGEST_TOKEN = 1 << 20
_MOST_HOPS = 8
_CONNECTIONS = 16
_TEMPORARY = {408, 429, 500, 502, 503, 504}
_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
"""What a token must let its bearer do for a request, as token servers name it; else `push`."""
_TOKEN = re.compile(r"[\x21-\x7e]+")

Body = bytes | VerifiedStream


@dataclass(frozen=True)
class Patience:
    """How often, and how long, a registry that doesn't answer is asked again."""

    attempts: int = 5
    first_delay_seconds: float = 0.5
    """Twice as long after each further attempt, and some of it by chance, lest all come back at once."""
    longest_delay_seconds: float = 30.0
    """Also of what a registry asks for by Retry-After."""
    answer_seconds: float = 60.0
    """Until an answer begins, and between two pieces of it; by then a registry must have stored a blob."""

    @property
    def timeout(self) -> tuple[float, float]:
        """For connecting and for reading, as requests takes it."""
        return _CONNECT_SECONDS, self.answer_seconds

    def delay(self, attempt: int, asked: str | None = None) -> float:
        """Seconds before attempt number `attempt`, where the first is 0."""
        delay = self.first_delay_seconds * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None and asked.isascii() and asked.isdigit():
            delay = max(delay, float(asked))
        return min(delay, self.longest_delay_seconds)


@dataclass(frozen=True)
class Answer:
    """A registry's answer, read to its end."""

    status: int
    url: str
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Raises StoreDamaged where it is no JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise StoreDamaged(f"{_place(self.url)} should answer with JSON: {error}") from None


class Transport:
    """Speaks to the registry at `host`, from as many threads as like.

    Credentials go to that registry, and to the token server that it names, over TLS (or where `plain`, as it says):
    not to hosts that it sends us on to, such as a cloud's blob storage.
    """

    def __init__(
        self,
        host: str,
        *,
        plain: bool = False,
        patience: Patience | None = None,
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.origin = f"{'http' if plain else 'https'}://{host}"
        self.patience = patience or Patience()
        self.sleep = sleep
        self._host = host
        self._plain = plain
        self._environ = environ
        self._authorizations: dict[tuple[str, str], str] = {}
        """By repository and what is let: threads that read must not take the token from those that write."""
        self._verify = _ca_file(environ)
        self._session = requests.Session()
        self._session.mount("https://", _Adapter())
        self._session.mount("http://", _Adapter())
        # What .netrc says of a host is no login at a registry, and would take the place of ours.
        self._session.auth = lambda request: request
        # As oras does: a registry that may set cookies takes us for a browser.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def ask(
        self,
        method: str,
        path: str,
        *,
        repository: str,
        expected: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        attempts: int | None = None,
    ) -> Answer:
        """Sends a request, and reads an answer of at most LARGEST_DOCUMENT bytes.

        Args:
            path: An absolute path, or a URL that the registry gave.
            repository: For whose sake; what may be done is asked for repository by repository.
            expected: The statuses that mean something to the caller.

        Raises:
            StoreUnreachable: no answer, or one with another status.
            StoreDamaged: an answer that no registry gives.
        """
        given = dict(headers or {})
        with self._send(method, path, repository, expected, given, body, attempts) as response:
            content = _read(response, LARGEST_DOCUMENT)
            return Answer(response.status_code, response.url, response.headers, content)

    def download(self, path: str, *, repository: str, what: str) -> BinaryIO | None:
        """The body of an answer as a stream, which is closed by who reads it; None where there is no such thing.

        Reading it raises StoreUnreachable when it is cut.
        """
        response = self._send("GET", path, repository, (200, 404), {}, b"", None)
        if response.status_code == 404:
            response.close()
            return None
        return io.BufferedReader(_Download(response, what), CHUNK_BYTES)

    def resolve(self, base: str, location: str | None) -> str:
        """The address that a registry sends us on to.

        Raises:
            StoreDamaged: there is none, or it would lead from TLS to plain HTTP.
        """
        url = urljoin(base, location or "")
        scheme = urlsplit(url).scheme
        if not location or scheme not in ("http", "https"):
            raise StoreDamaged(f"{_place(base)} should say where to go on, and says {location!r:.200}")
        if scheme == "http" and not self._plain:
            raise StoreDamaged(
                f"{_place(base)} sends on to {_place(url)}, without TLS; have its operator set the address that it "
                "gives to clients (its external URL, or X-Forwarded-Proto at the proxy before it)"
            )
        return url

    # Inside

    def _send(
        self,
        method: str,
        path: str,
        repository: str,
        expected: Collection[int],
        headers: dict[str, str],
        body: Body,
        attempts: int | None,
    ) -> requests.Response:
        """An answer of an expected status, its body unread. Raises as `ask`."""
        url = urljoin(self.origin, path)
        problem, asked = "", None
        attempts = attempts or self.patience.attempts
        for attempt in range(attempts):
            if attempt:
                self.sleep(self.patience.delay(attempt, asked))
            try:
                response = self._exchange(method, url, repository, headers, body)
            except requests.exceptions.SSLError as error:
                raise self._untrusted(error) from None
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = _reason(error)
                continue
            except requests.RequestException as error:
                raise StoreDamaged(f"{_place(url)} can't be asked to {method}: {_reason(error)}") from None
            if response.status_code in expected:
                return response
            if response.status_code not in _TEMPORARY:
                self._refuse(method, response)
            asked = response.headers.get("Retry-After")
            problem = _refusal(response)
        times = f", {attempts} times" if attempts > 1 else ""
        raise StoreUnreachable(
            f"{self.origin} can't be asked to {method} {_place(url)}: {problem}{times}; "
            "see that the address is right and the registry is up, then run the same command again"
        )

    def _exchange(
        self, method: str, url: str, repository: str, headers: dict[str, str], body: Body
    ) -> requests.Response:
        """One request, with what it takes to be let in and where it is sent on to."""
        challenged = False
        right = repository, _ACTIONS.get(method, "push")
        for _ in range(_MOST_HOPS):
            own = _origin(url) == _origin(self.origin)
            known = self._authorizations.get(right) if own else None
            response = self._session.request(
                method,
                url,
                data=body,
                headers={"Accept-Encoding": "identity", **headers, **({"Authorization": known} if known else {})},
                allow_redirects=False,
                stream=True,
                timeout=self.patience.timeout,
                verify=self._verify,
            )
            if response.status_code == 401 and own and not challenged and isinstance(body, bytes):
                challenged = True
                challenge = response.headers.get("WWW-Authenticate", "")
                response.close()
                self._authorizations[right] = self._authorize(challenge, repository)
            elif response.is_redirect and isinstance(body, bytes):
                response.close()
                url = self.resolve(url, response.headers["Location"])
            else:
                return response
        raise StoreDamaged(f"{_place(url)} sends from one address to the next, {_MOST_HOPS} times; ask its operator")

    def _authorize(self, challenge: str, repository: str) -> str:
        """The header that answers a challenge (RFC 9110, section 11.6.1)."""
        credentials = find_credentials(self._host, self._environ)
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "bearer":
            return f"Bearer {self._token(challenge, repository, credentials)}"
        if scheme != "basic":
            raise StoreUnreachable(f"{self.origin} asks for a login of a kind that is not known here: {scheme!r:.40}")
        if credentials is None:
            raise StoreUnreachable(f"{self.origin} asks for a login, and there is none; {how_to_log_in(self._host)}")
        return f"Basic {get_basic_auth(*credentials)}"

    def _token(self, challenge: str, repository: str, credentials: Credentials | None) -> str:
        asked = parse_auth_header(challenge)
        if not asked.realm:
            raise StoreDamaged(f"{self.origin} asks for a token, and does not say from where")
        realm = self.resolve(self.origin, asked.realm)
        auth = TokenAuth()
        auth.session = _TokenSession(self.patience.timeout)
        auth._tls_verify = cast("Any", self._verify)
        if credentials is not None:
            auth.set_basic_auth(*credentials)
        asked.realm = realm
        try:
            with auth.session:
                token: object = auth.request_token(asked)
        except requests.exceptions.SSLError as error:
            raise self._untrusted(error) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError, AttributeError) as error:
            raise StoreUnreachable(
                f"{_place(realm)}, where {self.origin} has its tokens from, gives none: {_reason(error)}"
            ) from None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            who = "without a login" if credentials is None else f"for {credentials[0]!r}"
            raise StoreUnreachable(
                f"{_place(realm)} gives no token {who} for {repository} at {self.origin}; {how_to_log_in(self._host)}"
            )
        return token

    def _refuse(self, method: str, response: requests.Response) -> NoReturn:
        place, problem = _place(response.url), _refusal(response)
        text = f"{place} refuses to {method}: {problem}"
        if response.status_code == 401:
            text = f"{place} refuses the login: {problem}; {how_to_log_in(self._host)}"
        if response.status_code == 403:
            text += f"; ask its operator for access, or {how_to_log_in(self._host)} as somebody who may"
        raise Refused(text, response.status_code)

    def _untrusted(self, error: Exception) -> StoreUnreachable:
        cause = _deepest(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = f"if its authority is your own, name the file of its certificate in {CA_FILE}"
        else:
            hint = "if it speaks plain HTTP, write oci+http:// instead of oci://"
        return StoreUnreachable(f"{self.origin} can't be trusted: {_reason(error)}; {hint}")


class Refused(StoreUnreachable):
    """A registry has understood, and won't."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Adapter(HTTPAdapter):
    """Sends bodies in large pieces; urllib3's own are of 16 KiB."""

    def __init__(self) -> None:
        super().__init__(pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, blocksize=CHUNK_BYTES)


class _TokenSession(requests.Session):
    """What oras asks token servers through: with time limits, and taking no more of an answer than a token needs."""

    def __init__(self, timeout: tuple[float, float]) -> None:
        super().__init__()
        self._timeout = timeout
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        bounds = {"timeout": self._timeout, "allow_redirects": False, "stream": True}
        response = super().request(*args, **{**kwargs, **bounds})
        with response:
            content = response.raw.read(_LARGEST_TOKEN, decode_content=True)
        response.raw = io.BytesIO(content)
        return response


class _Download(io.RawIOBase):
    """The body of an answer, as it comes."""

    def __init__(self, response: requests.Response, what: str) -> None:
        super().__init__()
        self._response = response
        self._what = what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            content: bytes = self._response.raw.read(len(view), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnreachable(
                f"{_place(self._response.url)} was cut while {self._what} was read: {_reason(error)}; "
                "run the same command again"
            ) from None
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._response.close()
        super().close()


def _read(response: requests.Response, at_most: int) -> bytes:
    try:
        content: bytes = response.raw.read(at_most + 1, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnreachable(f"{_place(response.url)} was cut in its answer: {_reason(error)}; try again") from None
    if len(content) > at_most:
        raise StoreDamaged(f"{_place(response.url)} answers with more than {at_most} bytes; no registry needs so many")
    return content


def _ca_file(environ: Mapping[str, str]) -> str | None:
    """Raises StoreUnreachable where the file is not there."""
    name = environ.get(CA_FILE)
    if name and not Path(name).is_file():
        raise StoreUnreachable(f"{CA_FILE} names {name}, which is no file; name a PEM file, or unset it")
    return name or None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _place(url: str) -> str:
    """A URL for people: its query may hold what lets the bearer in."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _refusal(response: requests.Response) -> str:
    """What a refusal says (OCI distribution specification, error codes), as far as it can be printed; closes it."""
    said = ""
    with response:
        try:
            error = json.loads(_read(response, _LARGEST_REFUSAL))["errors"][0]
            said = f" {error['code']}: {error.get('message', '')}"
        except (PackagingError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            # Not every gateway on the way speaks the registry's language.
            pass
    text = "".join(character for character in said if character.isprintable())
    return f"HTTP {response.status_code}{text:.300}"


def _deepest(error: BaseException) -> BaseException:
    """The error that others have been made of."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
    if inner is None and error.args and isinstance(error.args[0], BaseException):
        inner = error.args[0]
    return error if inner is None else _deepest(inner)


def _reason(error: BaseException) -> str:
    """What went wrong on the way, in the words of who noticed first: later ones repeat the address, query and all."""
    cause = _deepest(error)
    text = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or str(cause)
    return text or type(cause).__name__
