"""The endpoints of an environment are verified side by side, and nobody's problem hides another's."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from infra.contracts import ObservationError
from model_packaging.build import build_artifact
from model_packaging.stores.layout import Layout
from rollout.fleet import verify
from rollout.project import Project, StackConfig
from rollout.release import NotVerifiedError, Releases

TEAM = "imaging"
_URL = "http://models.example.com"
MODELS = ("bone", "heart", "lung")
SAMPLE: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}


class StandInReleases(Releases):
    """`Releases` of stacks that are up, on a data plane that these tests make up."""

    def __init__(self, project: Project, store: Path) -> None:
        super().__init__(project)
        self._store = store
        self.problems: dict[str, Exception] = {}
        """By model: why its endpoint isn't verified."""
        self.meet: Barrier | None = None
        """Where endpoints wait for each other."""
        self.read = 0
        """How often the platform was read."""

    def verify(self, endpoint: StackConfig) -> Any:
        if self.meet:
            self.meet.wait()
        if endpoint.endpoint.model in self.problems:
            raise self.problems[endpoint.endpoint.model]

    def pulumi(self, stack: StackConfig) -> Any:
        return SimpleNamespace(outputs=lambda: self._exports(stack))

    def _exports(self, stack: StackConfig) -> dict[str, Any]:
        if stack.kind == "platform":
            self.read += 1
            return {"artifact_store": str(self._store), "endpoint_base_url": _URL}
        return {"url": f"{_URL}/{stack.team}/{stack.endpoint.model}"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "Pulumi.yaml").write_text("name: lepton\nruntime: python\n")
    write(tmp_path, "platform", "dev", "platform", environment="dev", mode="single-node")
    (tmp_path / "stacks" / TEAM).mkdir()
    (tmp_path / "stacks" / TEAM / "Pulumi.yaml").write_text(f"name: {TEAM}\nruntime: python\n")
    for model in MODELS:
        write(tmp_path, TEAM, f"dev.{model}-1.0.0", "version", environment="dev", model=model, version="1.0.0")
        variants = [{"version": "1.0.0", "weight": 1}]
        write(tmp_path, TEAM, f"dev.{model}", "endpoint", environment="dev", model=model, variants=variants)
    return Project(tmp_path)


@pytest.fixture
def endpoints(project: Project) -> list[StackConfig]:
    return [project.stack(f"{TEAM}/dev.{model}") for model in MODELS]


@pytest.fixture
def releases(project: Project) -> StandInReleases:
    store, model = project.root / "store", project.root / "model"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"weights")
    package = {"framework": {"name": "none", "version": "1"}, "training_data": "none", "licence": "none"}
    (model / "package.yaml").write_text(yaml.safe_dump(package | {"samples": [SAMPLE]}))
    for name in MODELS:
        build_artifact(model, name, "1.0.0", Layout(store))
    return StandInReleases(project, store)


def write(root: Path, folder: str, stack: str, kind: str, **document: Any) -> None:
    file = root / "stacks" / folder / f"Pulumi.{stack}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"config": {f"lepton:{kind}": document}}))


def test_each_endpoint_is_told_how_to_be_tried_in_their_order(
    project: Project, releases: StandInReleases, endpoints: list[StackConfig]
) -> None:
    asked = verify(project, releases, endpoints)
    base = "http://models.example.com/imaging"
    assert [each.url for each in asked] == [f"{base}/{model}/v2/models/{model}/infer" for model in MODELS]
    assert [each.samples for each in asked] == [[SAMPLE]] * len(MODELS)


def test_endpoints_are_verified_side_by_side(
    project: Project, releases: StandInReleases, endpoints: list[StackConfig]
) -> None:
    releases.meet = Barrier(len(endpoints), timeout=10)
    assert len(verify(project, releases, endpoints)) == len(endpoints)


def test_the_platform_is_read_once(project: Project, releases: StandInReleases, endpoints: list[StackConfig]) -> None:
    verify(project, releases, endpoints)
    assert releases.read == 1


def test_every_endpoint_that_is_not_verified_is_named(
    project: Project, releases: StandInReleases, endpoints: list[StackConfig]
) -> None:
    releases.problems = {
        "bone": NotVerifiedError(f"{TEAM}/dev.bone: asked for 1.0.0=1"),
        "lung": ObservationError(f"{TEAM}/dev.lung: the router does not answer"),
    }
    with pytest.raises(NotVerifiedError) as caught:
        verify(project, releases, endpoints)
    assert str(caught.value).splitlines() == [
        "imaging/dev.bone: asked for 1.0.0=1",
        "imaging/dev.lung: the router does not answer",
    ]


def test_an_error_that_nobody_expects_is_not_taken_for_a_user_s(
    project: Project, releases: StandInReleases, endpoints: list[StackConfig]
) -> None:
    releases.problems = {"heart": RuntimeError("a defect")}
    with pytest.raises(RuntimeError, match="a defect"):
        verify(project, releases, endpoints)


def test_an_environment_without_endpoints_has_nothing_to_verify(project: Project, releases: StandInReleases) -> None:
    assert verify(project, releases, []) == []
    assert releases.read == 0
