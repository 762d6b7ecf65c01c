"""What most tests of packaging start from: a store, and a model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import FILES, make_folder


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", FILES)
