"""What endpoints give a model version, in every environment: whoever ends its life has to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from infra.settings import EndpointSettings
from model_packaging.lifecycle import Share
from rollout.project import Project
from rollout.pulumi_stack import endpoints_in_force, stacks_of


def shares(project: Project, model: str, version: str, recorded: Iterable[Share]) -> list[Share]:
    """The weights that endpoints give a version.

    They are those of the config files; those that stacks were last brought up with, or that an update which failed
    may have left; and, of endpoints that this project doesn't have, those of `recorded`.

    Raises:
        SettingsError: an endpoint's config can't be used, so nobody can say.
        StackError: the backend can't be read.
    """
    found: set[Share] = set()
    known: set[str] = set()
    for address, settings in _endpoints(project):
        known.add(address)
        if settings.model == model and version in settings.weights:
            found.add(Share(settings.environment, address, settings.weights[version]))
    return sorted(found | {share for share in recorded if share.endpoint not in known})


def _endpoints(project: Project) -> Iterator[tuple[str, EndpointSettings]]:
    for stack in project.endpoints():
        yield stack.address, stack.endpoint
    for team in project.teams():
        for name, resources in stacks_of(project, team).items():
            if resources:
                for settings in endpoints_in_force(project, team, name):
                    yield f"{team}/{name}", settings
