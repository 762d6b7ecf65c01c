"""Has stores ask the catalogue before a version is there: wherever it is put, a name has one digest."""

from __future__ import annotations

from model_packaging.artifact import Artifact
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.stores.store import Claim, Store


def claim_for(catalogue: Catalogue, who: str) -> Claim:
    """What registers each version that a store takes, before it has it; for `stores.open_store`.

    The claim raises VersionExists where the catalogue has the version with another digest, and as `Catalogue.register`.
    """

    def claim(store: Store, model: str, version: str, manifest: bytes) -> None:
        artifact = Artifact.of(store, model, manifest)
        catalogue.register(artifact.description, artifact.digest, artifact.size, store.location, who=who)

    return claim
