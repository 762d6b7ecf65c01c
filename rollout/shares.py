"""What endpoints give a model version, in every environment: whoever ends its life has to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_packaging.lifecycle import Share
from rollout.project import Project
from rollout.pulumi_stack import last_document, stacks_of


def shares(project: Project, model: str, version: str) -> list[Share]:
    """The weights that endpoints' configs give a version, or gave it when their stacks were last brought up.

    An endpoint whose config file is gone, and whose stack still has resources, counts too.

    Raises:
        SettingsError: an endpoint's config can't be used, so nobody can say.
        StackError: the backend can't be read.
    """
    found = list(_configured(project, model, version))
    for team in project.teams():
        for name, resources in stacks_of(project, team).items():
            document = last_document(project, team, name, "endpoint") if resources else None
            if document is not None:
                found += _given(document, f"{team}/{name}", model, version)
    return sorted(set(found))


def _configured(project: Project, model: str, version: str) -> Iterator[Share]:
    for stack in project.endpoints():
        yield from _given(stack.document(), stack.address, model, version)


def _given(document: dict[str, Any], address: str, model: str, version: str) -> Iterator[Share]:
    if document["model"] == model:
        for variant in document["variants"]:
            if variant["version"] == version:
                yield Share(document["environment"], address, variant["weight"])
