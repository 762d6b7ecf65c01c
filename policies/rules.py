"""The rules: each looks at one resource's type and inputs, and says what is wrong and what would be right.

They import no Pulumi, so that a test, a command or a pack of another team's can use them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Properties = Mapping[str, Any]
"""A resource's inputs, as the engine has them: after the provider's check, numbers as floats, without what is unset."""

Severity = Literal["low", "medium", "high", "critical"]

_DYNAMIC = "pulumi-python:dynamic/single-node:"
ROUTER = f"{_DYNAMIC}Router"
MODEL_SERVERS = f"{_DYNAMIC}ModelServers"
ENDPOINT_ROUTES = f"{_DYNAMIC}EndpointRoutes"

_BY_CONTENT = re.compile(r"(.+@)?sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Rule:
    name: str
    sentence: str
    """What it asks for."""
    severity: Severity
    """How bad it is to break it; whether that stops an update is the pack's config to say."""
    type: str
    """The type of the resources that it looks at."""
    find: Callable[[Properties], Iterator[str]]
    """Yields a message for each violation: key, what was given, why that is wrong and what would be right."""

    def violations(self, type_: str, properties: Properties) -> list[str]:
        """What is wrong with a resource; nothing where the rule is about another type."""
        return list(self.find(properties)) if type_ == self.type else []


def _beyond_loopback(properties: Properties) -> Iterator[str]:
    address = properties["address"]
    if not ipaddress.ip_address(address).is_loopback:
        yield (
            f"lepton:platform.node.address: given {address!r}: the router has neither TLS nor authentication, and "
            "whoever reaches that address reaches every model of the node; write '127.0.0.1', and put what "
            "authenticates clients in front of it"
        )


def _without_limits(properties: Properties) -> Iterator[str]:
    for key, name, example in (("cpu", "cpu", "cpu: 2"), ("memory_bytes", "memory", "memory: 2Gi")):
        if properties.get(key) is None:
            yield (
                f"lepton:version.resources.{name}: not given: a replica of {_version(properties)} may take all that "
                f"the node has from the versions beside it; write a limit, such as '{example}'"
            )


def _image_by_tag(properties: Properties) -> Iterator[str]:
    image = properties.get("image")
    # Where the runtime is another, the image is not used.
    if properties.get("runtime") == "docker" and image is not None and not _BY_CONTENT.fullmatch(image):
        yield (
            f"lepton:version.image: given {image!r}: a tag can be moved, and {_version(properties)} would come back "
            f"from a rollback as another program; name the image by its content: '{_without_tag(image)}@sha256:…', "
            "or its id 'sha256:…'"
        )


def _without_tag(image: str) -> str:
    repository, slash, name = image.rpartition("/")
    # A colon before the last slash is the registry's port.
    return f"{repository}{slash}{name.partition(':')[0]}"


def _from_no_commit(properties: Properties) -> Iterator[str]:
    commit = properties.get("git_commit")
    if commit is None:
        problem = "it comes from no Git commit"
    elif properties.get("git_dirty"):
        problem = f"it comes from commit {commit} with local changes"
    else:
        return
    yield (
        f"{_artifact(properties)}: {problem}, so nobody can see what it was made of or make it again; commit the "
        "changes and build a new version from there"
    )


def _with_pickles(properties: Properties) -> Iterator[str]:
    files = properties.get("pickles")
    if files:
        yield (
            f"{_artifact(properties)}: {', '.join(files)}: pickled objects run code of their maker's when they are "
            "loaded; save the weights as safetensors or ONNX and build a new version from those"
        )


def _unsigned(properties: Properties) -> Iterator[str]:
    trust = properties.get("trust")
    if trust is None:
        yield (
            f"{_artifact(properties)}: this environment trusts no key, so that nobody's signature counts; name the "
            "teams' public keys in lepton:platform.trust"
        )
    elif properties.get("signed_by") is None:
        trusted = ", ".join(key["name"] for key in trust["keys"]) or "none"
        yield (
            f"{_artifact(properties)}: no key that environment {trust['environment']} trusts for team "
            f"{trust['team']} has signed it (trusted: {trusted}); sign it: lepton package sign "
            f"{properties['model']}:{properties['version']} --key FILE --store {properties['store']}"
        )


def _without_failover(properties: Properties) -> Iterator[str]:
    endpoint = properties["endpoint"]
    others = len(endpoint["variants"]) - 1
    if others and not endpoint["failover"]:
        yield (
            f"lepton:endpoint.failover: given False: when every replica of a variant of {endpoint['model']} is dead, "
            "the clients that it is given get errors; write 'failover: true', or leave the key out, so that the "
            "baseline answers for it"
        )


def _version(properties: Properties) -> str:
    return f"{properties['model']} {properties['version']}"


def _artifact(properties: Properties) -> str:
    return f"{_version(properties)} ({properties['digest']})"


RULES = (
    Rule(
        name="router-listens-on-loopback",
        sentence="The router is reached from its own machine alone.",
        severity="high",
        type=ROUTER,
        find=_beyond_loopback,
    ),
    Rule(
        name="version-has-limits",
        sentence="A version says how much CPU and memory a replica may take.",
        severity="medium",
        type=MODEL_SERVERS,
        find=_without_limits,
    ),
    Rule(
        name="image-is-named-by-content",
        sentence="A version's container image is named by its digest.",
        severity="medium",
        type=MODEL_SERVERS,
        find=_image_by_tag,
    ),
    Rule(
        name="version-comes-from-a-commit",
        sentence="A version was built from a Git commit, without local changes.",
        severity="medium",
        type=MODEL_SERVERS,
        find=_from_no_commit,
    ),
    Rule(
        name="version-has-no-pickles",
        sentence="A version holds no pickled objects, which run code when they are loaded.",
        severity="high",
        type=MODEL_SERVERS,
        find=_with_pickles,
    ),
    Rule(
        name="version-is-signed",
        sentence="A version is signed by a key that the environment trusts.",
        severity="high",
        type=MODEL_SERVERS,
        find=_unsigned,
    ),
    Rule(
        name="endpoint-has-failover",
        sentence="A dead variant's share is answered by the baseline.",
        severity="medium",
        type=ENDPOINT_ROUTES,
        find=_without_failover,
    ),
)
