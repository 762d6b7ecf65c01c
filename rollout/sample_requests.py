"""What a version is asked to try it: the samples of its own package, and where behind its endpoint they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.addresses import reached_at
from infra.settings.version import Protocol
from model_packaging.artifact import Artifact
from model_packaging.stores import open_store
from rollout.project import Project, StackConfig
from rollout.release import NotDeployedError, Releases


@dataclass(frozen=True)
class SampleRequests:
    """Bodies that a version says it answers, each a POST to `endpoint_url + path`."""

    endpoint_url: str
    path: str
    samples: Sequence[Mapping[str, Any]]
    """At least one."""
    at: str | None = None
    """Where the URL's host is reached (`infra.addresses.reached_at`)."""

    @property
    def url(self) -> str:
        return self.endpoint_url + self.path


def sample_requests(releases: Releases, project: Project, endpoint: StackConfig, version: str) -> SampleRequests:
    """Those of a version behind an endpoint.

    Raises:
        NotDeployedError, UnknownStackError: where there is no such endpoint, or no such version.
        PackagingError: when the environment's store doesn't have the version.
    """
    model, deployed = endpoint.endpoint.model, project.version_of(endpoint, version).version
    outputs = releases.pulumi(endpoint).outputs()
    if not outputs:
        raise NotDeployedError(f"{endpoint.address} is not up; run `lepton up {deployed.environment}`")
    platform = releases.platform(deployed.environment)
    store = open_store(platform["artifact_store"])
    package = Artifact.find(store, model, version).description.package
    path = request_path(package.serving(deployed.server).protocol, model)
    at = reached_at(outputs["url"], platform["endpoint_base_url"])
    return SampleRequests(outputs["url"], path, [dict(sample) for sample in package.samples], at)


def request_path(protocol: Protocol, model: str) -> str:
    """Where an inference goes, below the endpoint's URL."""
    return f"/v2/models/{model}/infer" if protocol == "oip-v2" else "/v1/chat/completions"
