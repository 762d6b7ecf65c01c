"""Turns a config document into settings, or into one error that says where and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import UserError

S = TypeVar("S", bound=BaseModel)


class SettingsError(UserError):
    """A config that can't be used. Its text names file, key, what was given and what would be right."""


def parse_settings(kind: type[S], document: object, *, file: str, key: str) -> S:
    """Validates `document`, the value of config key `key` in `file`.

    Raises:
        SettingsError: with one line for each thing that is wrong.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = [_describe(detail, kind, file, key) for detail in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from None


def parse_value(kind: Any, value: object, what: str) -> Any:
    """Validates one value, of a kind such as `Name`, that does not stand in a config.

    Raises:
        SettingsError: naming `what` it was for.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise SettingsError(f"{what}: given {value!r}: {_problem(detail)}") from None


def _describe(detail: ErrorDetails, kind: type[BaseModel], file: str, key: str) -> str:
    location = key + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            problem = _unknown_key(str(detail["loc"][-1]), _known_keys(kind, detail["loc"][:-1]))
        case "missing":
            return f"{file}: {location} is required and not given"
        case _:
            problem = _problem(detail)
    return f"{file}: {location}: {_given(detail)}{problem}"


def _given(detail: ErrorDetails) -> str:
    """What was given, unless it may hold secrets: a whole document, or a value for a server's environment."""
    value = detail["input"]
    if isinstance(value, Mapping | BaseModel) or "env" in detail["loc"]:
        return ""
    given = repr(cast("object", value))
    return f"given {given[:200] + '…' if len(given) > 200 else given}: "


def _problem(detail: ErrorDetails) -> str:
    """What is wrong, in our own words where a validator of ours said it."""
    own = detail.get("ctx", {}).get("error")
    return str(own) if detail["type"] == "value_error" and own else detail["msg"]


def _unknown_key(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key; {hint}known here: {', '.join(known)}"


def _known_keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the settings that `location` leads to, following fields and list items."""
    current: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        found = _models_in(current.model_fields[part].annotation) if part in current.model_fields else []
        if not found:
            # A tag that pydantic adds to the location of a union's member.
            continue
        current = found[0]
    return list(cast("type[BaseModel]", current).model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
