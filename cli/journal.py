"""Notes in the catalogue which versions a command has deployed or taken away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cli import output
from cli.package.shared import open_catalogue, who
from infra.errors import UserError
from model_packaging.artifact import Artifact
from model_packaging.errors import NotInCatalogue
from model_packaging.stores import open_store
from rollout.fleet import Done
from rollout.project import Project, StackConfig
from rollout.release import Releases

if TYPE_CHECKING:
    from model_packaging.catalogue.catalogue import Catalogue


def note(project: Project, done: Iterable[Done], *, removed: bool = False) -> None:
    """Notes the version stacks among those that an update changed.

    What keeps the catalogue from it is only said: the stacks are what they are.
    """
    versions = [item.stack for item in done if item.stack.kind == "version" and item.changes.any]
    if not versions:
        return
    releases = Releases(project)
    try:
        with open_catalogue(None) as catalogue:
            for stack in versions:
                _note(catalogue, releases, stack, removed=removed)
    except UserError as error:
        output.say(f"the catalogue does not know of this: {error}")


def _note(catalogue: Catalogue, releases: Releases, stack: StackConfig, *, removed: bool) -> None:
    settings, person = stack.version, who(None)
    revisions = releases.revisions(stack)

    def record() -> None:
        catalogue.record_deployment(
            settings.model,
            settings.version,
            environment=settings.environment,
            stack=stack.address,
            revision=revisions[-1].number if revisions else None,
            removed=removed,
            who=person,
        )

    try:
        record()
    except NotInCatalogue:
        if removed:
            return
        # Built elsewhere, or before there was a catalogue.
        store = open_store(releases.platform(settings.environment)["artifact_store"])
        artifact = Artifact.find(store, settings.model, settings.version)
        catalogue.register(artifact.description, artifact.digest, artifact.size, store.location, who=person)
        record()
