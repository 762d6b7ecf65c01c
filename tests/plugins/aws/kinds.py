"""What a type of resource is to the stand-in: how it is made, changed, found and taken away."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import boto3
from botocore.exceptions import ClientError

Properties = dict[str, Any]


class Refused(Exception):
    """The stand-in can't do what it was asked for."""


@dataclass
class Account:
    """An account's region, as a provider is configured."""

    region: str
    default_tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._session = boto3.Session(region_name=self.region)
        # A client may be used by several threads, and a session may not.
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    def __getattr__(self, service: str) -> Any:
        """The client of a service, such as `ec2`."""
        if service.startswith("_"):
            raise AttributeError(service)
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._session.client(service)  # pyright: ignore[reportCallIssue, reportArgumentType]
            return self._clients[service]

    def tags(self, inputs: Properties) -> dict[str, str]:
        return {**self.default_tags, **inputs.get("tags", {})}


class Kind:
    """One type. A property changes in place if `update` knows it, and by another resource if `replaced_by` has it."""

    token: ClassVar[str]
    properties: ClassVar[frozenset[str]]
    """What a program may give, besides `region` and `tags`."""
    replaced_by: ClassVar[frozenset[str]]
    named_by: ClassVar[str | None] = None
    """The property that has a random name where none is given."""

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        """The resource's id, and outputs beyond its inputs."""
        raise NotImplementedError

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        """Outputs that are others than before. `old`: the state, `new`: the inputs."""
        raise Refused(f"the stand-in can't change {', '.join(sorted(changed))} of {self.token}")

    def find(self, account: Account, identity: str, state: Properties) -> object:
        """Something true while the resource is there; or raises ClientError with a code that says it isn't."""
        raise NotImplementedError

    def refreshed(self, account: Account, identity: str, inputs: Properties) -> Properties:
        """The inputs, with what others than the program change."""
        return inputs

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        raise NotImplementedError

    def unknown(self, inputs: Properties) -> list[str]:
        return sorted(set(inputs) - self.properties - {"region", "tags", "__defaults"})


def is_missing(error: ClientError) -> bool:
    code = error.response["Error"]["Code"]
    return code.endswith(("NotFound", "NotFoundException", "NoSuchEntity")) or code == "NoSuchEntityException"


def mapped(given: Properties, names: Mapping[str, str]) -> Properties:
    """With the names of AWS's API. Raises Refused for a key that `names` lacks."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise Refused(f"the stand-in does not know {', '.join(unknown)}; it knows {', '.join(names)}")
    return {names[key]: value for key, value in given.items()}


def as_tags(tags: Mapping[str, str], key: str = "Key", value: str = "Value") -> list[dict[str, str]]:
    return [{key: name, value: text} for name, text in tags.items()]


def some(**arguments: Any) -> Properties:
    """Those that are given."""
    return {key: value for key, value in arguments.items() if value not in (None, [], {})}


def one(items: Sequence[Any]) -> Any:
    (item,) = items
    return item
