"""Whose signatures on artifacts count: read from the platform's settings, exported to the versions' stacks, and asked
for where a version is deployed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from infra.contracts import PlatformExports, PublicKeyExport, TrustExports
from infra.settings.platform import TrustSettings
from model_packaging.artifact import Artifact
from model_packaging.errors import Untrusted


class Trust(TypedDict):
    """Whose signatures count for the versions that one team deploys in one environment."""

    environment: str
    team: str
    required: bool
    keys: list[PublicKeyExport]


def read_trust(settings: TrustSettings | None, root: Path) -> TrustExports | None:
    """Reads the keys that the settings name; relative paths start at `root`.

    Raises:
        KeyRefused: a file can't be read, or holds something else than one public Ed25519 key.
    """
    if settings is None:
        return None
    return {
        "required": settings.required,
        "keys": _read_keys(settings.keys, root, "lepton:platform.trust.keys"),
        "teams": {
            team: _read_keys(keys, root, f"lepton:platform.trust.teams.{team}") for team, keys in settings.teams.items()
        },
    }


def _read_keys(keys: Iterable[str], root: Path, place: str) -> list[PublicKeyExport]:
    from model_packaging.keys import PublicKey  # noqa: PLC0415 - most environments need no cryptography

    found: list[PublicKeyExport] = []
    for number, given in enumerate(keys):
        what = f"{place}[{number}]"
        if "-----BEGIN" in given:
            found.append({"name": what, "pem": PublicKey.parse(given, what).pem})
        else:
            found.append({"name": given, "pem": PublicKey.read(root / given, what).pem})
    return found


def trust_of(platform: PlatformExports, team: str) -> Trust | None:
    """What counts for a team's versions; None where signatures don't matter."""
    # A platform that was brought up before there were signatures exports nothing about them.
    trust = platform.get("trust")
    if trust is None:
        return None
    keys = [*trust["teams"].get(team, []), *trust["keys"]]
    return {"environment": platform["environment"], "team": team, "required": trust["required"], "keys": keys}


def signed_by(artifact: Artifact, trust: Trust | None) -> str | None:
    """Fingerprint of the trusted key that has signed the artifact; None where none has and none needs to.

    Raises:
        Untrusted: the environment asks for a signature, and there is none by a trusted key.
    """
    if trust is None:
        return None
    from model_packaging.keys import PublicKey  # noqa: PLC0415 - most environments need no cryptography
    from model_packaging.signing import TrustedKey, verify_signature  # noqa: PLC0415

    if trust["required"] and not trust["keys"]:
        raise Untrusted(
            f"environment {trust['environment']} serves signed versions only, and trusts no key for team "
            f"{trust['team']}; name its public key in lepton:platform.trust.teams.{trust['team']}"
        )
    trusted = [TrustedKey(key["name"], PublicKey.parse(key["pem"], key["name"])) for key in trust["keys"]]
    try:
        return verify_signature(artifact, trusted).key.fingerprint
    except Untrusted as error:
        if not trust["required"]:
            return None
        raise Untrusted(
            f"environment {trust['environment']} serves versions of team {trust['team']} only if a key that it trusts "
            f"for them has signed them (lepton:platform.trust): {error}"
        ) from error
