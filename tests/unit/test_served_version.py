"""What a version's stack fills in from the artifact, where its config leaves it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.settings.version import mlserver
from infra.single_node.version import ModelServers
from model_packaging.build import build_artifact
from model_packaging.stores.layout import Layout

PACKAGE = {
    "framework": {"name": "none", "version": "1"},
    "training_data": "none",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}
OWN = {"command": ["serve", "{model_dir}"], "protocol": "openai", "ready_path": "/health"}


def checked(folder: Path, package: dict[str, Any], **config: Any) -> dict[str, Any]:
    """The inputs of a version's servers, as the engine has them after the check."""
    (folder / "model").mkdir()
    (folder / "model" / "package.yaml").write_text(json.dumps(PACKAGE | package))
    (folder / "model" / "weights.bin").write_text("weights")
    build_artifact(folder / "model", "tumour", "1.0.0", Layout(folder / "store"))
    node = {"directory": str(folder / "node"), "runtime": "process"}
    props = {"store": str(folder / "store"), "model": "tumour", "version": "1.0.0", "team": "vision", "node": node}
    props |= config
    ModelServers.driver.check({}, props)
    return props


def test_the_artifact_says_what_serves_it(tmp_path: Path) -> None:
    server = checked(tmp_path, {"server": OWN})["server"]
    assert {key: server[key] for key in OWN} == OWN


def test_the_config_says_it_before_the_artifact(tmp_path: Path) -> None:
    given = OWN | {"command": ["another"]}
    assert checked(tmp_path, {"server": OWN}, server=given)["server"] == given


@pytest.mark.parametrize("package", [{}, {"server": "mlserver"}])
def test_where_neither_says_it_mlserver_does(tmp_path: Path, package: dict[str, Any]) -> None:
    assert checked(tmp_path, package)["server"] == mlserver().model_dump(mode="json")
