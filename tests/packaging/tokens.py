"""A registry that lets in who has a token, and the server that gives the tokens (RFC 7519, signed with ES256)."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.certificates import make_certificates
from tests.packaging.registry_server import PASSWORD, USERNAME, Server, serving
from tests.packaging.scripted_server import Reply, Request, answering

_SERVICE, _ISSUER = "registry of the tests", "issuer of the tests"


@dataclass
class TokenServer:
    """Gives tokens to USERNAME with PASSWORD."""

    registry: Server
    keys: Path
    asked: list[str] = field(default_factory=list[str])
    """The scopes that tokens were asked for."""

    @classmethod
    @contextlib.contextmanager
    def serving(cls, folder: Path) -> Iterator[TokenServer]:
        keys = folder / "keys"
        keys.mkdir(parents=True)
        make_certificates(keys)
        login = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()

        def answer(request: Request) -> Reply:
            scopes = parse_qs(urlsplit(request.path).query).get("scope", [])
            tokens.asked.extend(scopes)
            if request.headers.get("Authorization") != f"Basic {login}":
                return Reply(401)
            return Reply(200, body=json.dumps({"token": tokens.token(scopes)}).encode())

        with answering(answer) as script:
            settings = "\n".join(
                [
                    "auth:",
                    "  token:",
                    f"    realm: http://{script.host}/token",
                    f"    service: {_SERVICE}",
                    f"    issuer: {_ISSUER}",
                    f"    rootcertbundle: {keys / 'ca.pem'}",
                ]
            )
            with serving(folder, settings=settings) as registry:
                login_of_user = {"LEPTON_REGISTRY_USERNAME": USERNAME, "LEPTON_REGISTRY_PASSWORD": PASSWORD}
                named = Server(registry.host, registry.folder, registry.scheme, registry.environ | login_of_user)
                tokens = cls(named, keys)
                yield tokens

    def expired(self, repository: str) -> str:
        return self.token([f"repository:{repository}:pull,push"], expires=time.time() - 3600)

    def token(self, scopes: list[str], expires: float | None = None) -> str:
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in scopes)
        ]
        now = time.time()
        claims = {
            "iss": _ISSUER,
            "sub": USERNAME,
            "aud": _SERVICE,
            "exp": int(expires or now + 300),
            "nbf": int(now - 7200),
            "iat": int(now - 7200),
            "jti": "1",
            "access": access,
        }
        certificate = ssl.PEM_cert_to_DER_cert((self.keys / "server.pem").read_text())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        content = f"{_encoded(header)}.{_encoded(claims)}"
        key = serialization.load_pem_private_key((self.keys / "server.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(content.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{content}.{_url_safe(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(document: Any) -> str:
    return _url_safe(json.dumps(document).encode())


def _url_safe(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
