"""Opens a store by its location."""

from __future__ import annotations

from pathlib import Path

from model_packaging.errors import PackagingError
from model_packaging.stores.store import PLAIN_REGISTRY_SCHEME, REGISTRY_SCHEME, Claim, Store


def open_store(location: str | Path, claim: Claim | None = None) -> Store:
    """The store at a location: a folder's path, or `oci://HOST[:PORT]/PREFIX` for a registry
    (`oci+http://…` where it speaks plain HTTP).

    Raises:
        PackagingError: the location is neither.
    """
    if str(location).startswith((REGISTRY_SCHEME, PLAIN_REGISTRY_SCHEME)):
        from model_packaging.stores.registry import Registry  # noqa: PLC0415 - slow to import

        return Registry(str(location), claim=claim)
    if "://" in str(location):
        raise PackagingError(
            f"{location} is no store: one is a folder, or a registry oci://HOST[:PORT]/PREFIX "
            f"({PLAIN_REGISTRY_SCHEME}… without TLS)"
        )
    from model_packaging.stores.layout import Layout  # noqa: PLC0415

    # One folder is one store, however it is named: the catalogue tells stores apart by it.
    return Layout(Path(location).resolve(), claim=claim)
