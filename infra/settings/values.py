"""The kinds of value a stack config holds: names, semantic versions, durations, sizes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from infra.names import RESERVED_TEAMS

_DNS_1123_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

# https://semver.org, items 2, 9 and 10, without build metadata.
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?",
    re.ASCII,
)
_LONGEST_VERSION = 128  # What an OCI tag can hold.

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti)")
_BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Settings(BaseModel):
    """Base of everything a config says: immutable, and refusing keys it does not know."""

    # Schemas are built when first used (so defaults that are models are made by factories): a program reads one
    # kind of config, and starts often.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _DNS_1123_LABEL.fullmatch(value):
        raise ValueError(
            "a name is a DNS-1123 label: at most 63 lower-case letters, digits and hyphens, "
            "starting and ending with a letter or digit"
        )
    return value


def _team(value: object) -> str:
    if value in RESERVED_TEAMS:
        raise ValueError(f"{' and '.join(RESERVED_TEAMS)} are the platform's; choose another name")
    return _name(value)


def _semantic_version(value: object) -> str:
    if isinstance(value, str) and "+" in value:
        raise ValueError(
            f"build metadata is not accepted, as OCI tags and stack names can't hold a '+'; "
            f"write {value.split('+')[0]!r}, or put the build into a pre-release such as '1.2.0-build.7'"
        )
    if not isinstance(value, str) or not _SEMVER.fullmatch(value):
        raise ValueError("a version is a semantic version such as '1.2.0' or '2.0.0-rc.1', in quotes")
    if len(value) > _LONGEST_VERSION:
        raise ValueError(f"a version has at most {_LONGEST_VERSION} characters, as an OCI tag; shorten the pre-release")
    return value


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0
    if seconds == 0:
        raise ValueError("a duration is a number above 0 and a unit: '500ms', '90s', '5m', '2h' or '1d'")
    return seconds


def _write_duration(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _size(value: object) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size is a number and a binary unit: '512Mi' or '2Gi'")
    return int(float(match[1]) * _BYTES[match[2]])


def _write_size(size: int) -> str:
    unit = next((unit for unit in reversed(_BYTES) if size % _BYTES[unit] == 0), "Ki")
    return f"{size / _BYTES[unit]:.10f}".rstrip("0").rstrip(".") + unit


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("a digest is 'sha256:' and 64 lower-case hexadecimal digits")
    return value


def _weight(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ValueError(
            "a weight is an integer from 0 to 1000000, relative to the others'; "
            "use 0 to keep a variant reachable by header without a share of the traffic"
        )
    return value


Name = Annotated[str, BeforeValidator(_name)]
TeamName = Annotated[str, BeforeValidator(_team)]
SemanticVersion = Annotated[str, BeforeValidator(_semantic_version)]
Seconds = Annotated[float, BeforeValidator(_duration), PlainSerializer(_write_duration, when_used="json")]
"""Written as `90s`, `5m`; held in seconds."""
Bytes = Annotated[int, BeforeValidator(_size), PlainSerializer(_write_size, when_used="json")]
"""Written as `512Mi`, `2Gi`; held in bytes."""
Digest = Annotated[str, BeforeValidator(_digest)]
Weight = Annotated[int, BeforeValidator(_weight)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
