"""Notes in the catalogue which versions are in which stacks, once a command has changed them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cli import output
from cli.package.shared import open_catalogue, who
from infra.errors import UserError
from model_packaging.artifact import Artifact
from model_packaging.catalogue.query import Query
from model_packaging.errors import NotInCatalogue
from model_packaging.stores import open_store
from rollout.project import Project, StackConfig
from rollout.release import Releases

if TYPE_CHECKING:
    from model_packaging.catalogue.catalogue import Catalogue

_Shares = Mapping[str, int | None]
"""What a stack gives versions of its model: a weight, or None in a version stack, which splits no traffic."""


def note(project: Project, stacks: Iterable[StackConfig], *, removed: bool = False) -> None:
    """Has the catalogue know what version and endpoint stacks hold now, or that they are gone.

    What keeps the catalogue from it is only said: the stacks are what they are.
    """
    chosen = [stack for stack in stacks if stack.kind != "platform"]
    if not chosen:
        return
    releases = Releases(project)

    def revision(stack: StackConfig) -> int | None:
        found = releases.revisions(stack)
        return found[-1].number if found else None

    try:
        with open_catalogue(None) as catalogue, ThreadPoolExecutor(os.cpu_count()) as pool:
            news = [stack for stack in chosen if _is_news(catalogue, releases, stack, removed=removed)]
            for stack, number in zip(news, pool.map(revision, news), strict=True):
                _record(catalogue, stack, number, removed=removed)
    except UserError as error:
        output.say(f"the catalogue does not know of this: {error}")


def _is_news(catalogue: Catalogue, releases: Releases, stack: StackConfig, *, removed: bool) -> bool:
    """Whether the catalogue has the stack otherwise. A version that it doesn't know is taken in."""
    model = stack.endpoint.model if stack.kind == "endpoint" else stack.version.model
    shares = {} if removed else _shares(stack)
    known: dict[str, int | None] = {}
    # A variant that was dropped is no longer in the config, and the catalogue may still have it here.
    there = catalogue.find(Query(model=model, environment=stack.settings.environment))
    for version in dict.fromkeys([*_shares(stack), *(each.version for each in there)]):
        try:
            deployed = catalogue.show(model, version).deployed
        except NotInCatalogue:
            if removed:
                return False
            _register(catalogue, releases, stack.settings.environment, model, version)
        else:
            known.update((version, each.weight) for each in deployed if each.stack == stack.address)
    return known != shares


def _record(catalogue: Catalogue, stack: StackConfig, revision: int | None, *, removed: bool) -> None:
    where = {
        "environment": stack.settings.environment,
        "stack": stack.address,
        "revision": revision,
        "who": who(None),
    }
    if stack.kind == "endpoint":
        catalogue.record_weights(stack.endpoint.model, {} if removed else stack.endpoint.weights, **where)
    else:
        catalogue.record_deployment(stack.version.model, stack.version.version, removed=removed, **where)


def _shares(stack: StackConfig) -> _Shares:
    return stack.endpoint.weights if stack.kind == "endpoint" else {stack.version.version: None}


def _register(catalogue: Catalogue, releases: Releases, environment: str, model: str, version: str) -> None:
    """Takes in a version that was built there, or before there was a catalogue."""
    store = open_store(releases.platform(environment)["artifact_store"])
    artifact = Artifact.find(store, model, version)
    catalogue.register(artifact.description, artifact.digest, artifact.size, store.location, who=who(None))
