"""Brings a model that is to be packaged into a folder: from MLflow, from Hugging Face's cache, or as it lies."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_packaging.errors import SourceRefused
from model_packaging.package import PACKAGE_FILE
from model_packaging.sources import huggingface, mlflow
from model_packaging.sources.findings import Findings


@contextmanager
def fetched(source: str, description: Path | None = None) -> Iterator[tuple[Path, Findings | None]]:
    """A folder to build from, for as long as the block runs, and what the place that it was fetched from says.

    Args:
        source: A folder that holds `package.yaml`; or `runs:/…`, `models:/…`, or a snapshot in Hugging Face's cache.
        description: The `package.yaml` for one of the latter, which seldom have one.

    Raises:
        SourceRefused: there is no such source, or it is no model; a folder has a description of its own, or what is
            fetched has none and none is given.
        FolderRefused: as `build_artifact`.
    """
    remote = mlflow.is_uri(source)
    folder = Path(source)
    if not remote and not folder.is_dir():
        raise SourceRefused(f"{source} is no folder, and neither runs:/… nor models:/… of MLflow")
    if not remote and not huggingface.is_cached(folder):
        if description is not None:
            raise SourceRefused(
                f"{source} is a folder: its description is {PACKAGE_FILE} in it; put {description} there"
            )
        yield folder, None
        return
    with tempfile.TemporaryDirectory(prefix="lepton-fetch-") as scratch:
        target = Path(scratch, "model")
        found = mlflow.fetch(source, target) if remote else huggingface.fetch(folder, target, link=True)
        if description is not None:
            # It may be a link to the cache's own file.
            (target / PACKAGE_FILE).unlink(missing_ok=True)
            shutil.copyfile(description, target / PACKAGE_FILE)
        elif not (target / PACKAGE_FILE).exists():
            raise SourceRefused(
                f"{source} has no {PACKAGE_FILE}; give one with --description FILE (what the model's files say "
                "themselves may be left out)"
            )
        yield target, found
