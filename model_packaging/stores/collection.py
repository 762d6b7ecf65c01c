"""Garbage collection: what no version of a store needs any more, and how it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

_NAMED_ONCE = ("config", "subject")
_NAMED_AS_LIST = ("layers", "manifests", "blobs")
_DOCUMENTS = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}


@dataclass(frozen=True)
class Collected:
    """What a collection freed, or with `dry_run` would free."""

    blobs: int = 0
    """Those that no version, and nothing attached to one, is made of."""
    uploads: int = 0
    """Files that processes left which ended on the way."""
    freed_bytes: int = 0
    kept: int = 0
    """Blobs that no version is made of yet, and that someone who writes just now may count on."""
    note: str | None = None
    """Why there is more than this, that was left."""


def reachable(roots: Iterable[Any], read: Callable[[str], bytes]) -> set[str]:
    """The digests of all blobs that descriptors lead to.

    Args:
        roots: OCI descriptors, such as an index holds.
        read: Gives the document of a digest.
    """
    found, due = set[str](), list(_descriptors(roots))
    while due:
        kind, digest = due.pop()
        if digest in found:
            continue
        found.add(digest)
        if kind in _DOCUMENTS:
            due.extend(_named_in(json.loads(read(digest))))
    return found


def _named_in(document: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(document, dict):
        return
    members = cast("dict[str, Any]", document)
    yield from _descriptors(members.get(key) for key in _NAMED_ONCE)
    for key in _NAMED_AS_LIST:
        listed = members.get(key)
        yield from _descriptors(cast("list[Any]", listed) if isinstance(listed, list) else ())


def _descriptors(given: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Media type and digest of what are descriptors."""
    for descriptor in given:
        if isinstance(descriptor, dict):
            members = cast("dict[str, Any]", descriptor)
            yield str(members.get("mediaType")), str(members.get("digest"))
