"""Model versions to put into a catalogue."""

from __future__ import annotations

import hashlib
from typing import Any

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.manifest import Description

STORE = "/srv/store"
COMMIT = "ab12" * 10

SIGNATURE = {
    "inputs": [{"name": "x", "shape": [-1, 4], "datatype": "FP32"}],
    "outputs": [{"name": "y", "shape": [-1], "datatype": "INT64"}],
}


def describe(model: str, version: str = "1.0.0", *, git: dict[str, Any] | None = None, **package: Any) -> Description:
    """A version with what every package says, and whatever else this one is to say."""
    said = {
        "framework": {"name": "scikit-learn", "version": "1.9.1"},
        "training_data": "s3://bucket/train-2026",
        "licence": "Apache-2.0",
        "samples": [{"prompt": "hello"}],
    }
    return Description.model_validate({"model": model, "version": version, "git": git, "package": said | package})


def digest(content: object) -> str:
    return f"sha256:{hashlib.sha256(str(content).encode()).hexdigest()}"


def register(catalogue: Catalogue, model: str, version: str = "1.0.0", *, who: str = "builder", **package: Any) -> str:
    """Registers a version, and returns its digest."""
    content = digest((model, version))
    catalogue.register(describe(model, version, **package), content, 1000, STORE, who=who)
    return content
