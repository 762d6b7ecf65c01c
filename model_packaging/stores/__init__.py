"""Where artifacts are kept: an OCI image layout on disk, or an OCI registry."""

from model_packaging.stores.opening import open_store
from model_packaging.stores.store import Entry, Store

__all__ = ["Entry", "Store", "open_store"]
