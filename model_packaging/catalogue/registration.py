"""Takes versions into the catalogue, and out of it. The first to register a version has claimed its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, exists, insert, select, tuple_

from model_packaging.catalogue.search import in_parts
from model_packaging.catalogue.sorting import sort_text
from model_packaging.catalogue.tables import (
    MODEL_LENGTH,
    NAME_LENGTH,
    REFERENCE_LENGTH,
    VERSION_LENGTH,
    Base,
    DescriptionDocument,
    Label,
    Location,
    Parent,
    Result,
    StageChange,
    Version,
)
from model_packaging.errors import NotInCatalogue, RecordRefused
from model_packaging.lifecycle import Stage
from model_packaging.manifest import Description

PACKAGE_DATASET = "package"
"""The data set of the results that package.yaml states."""

_LATEST_SHOWN = 10
_LARGEST_SIZE = 2**63 - 1
_FIRST_MOMENT = datetime.fromtimestamp(0, UTC)

Name = tuple[str, str]
"""A model and a version of it."""


@dataclass(frozen=True)
class Registration:
    """A version that is to be in the catalogue, its rows made and found to fit."""

    name: Name
    digest: str
    store: str
    version: Mapping[str, Any]
    details: Mapping[type[Base], Sequence[Mapping[str, Any]]]
    """Rows of other tables, less the version that they are of."""

    @classmethod
    def of(
        cls,
        description: Description,
        digest: str,
        size_bytes: int,
        store: str,
        *,
        who: str,
        now: datetime,
        why: str = "registered",
        by_rebuild: bool = False,
    ) -> Registration:
        """Raises RecordRefused where something is too long or too large for the catalogue, or can't be in a text."""
        if not 0 <= size_bytes <= _LARGEST_SIZE:
            raise RecordRefused(f"size: given {size_bytes} bytes; it is from 0 to {_LARGEST_SIZE}")
        package, git = description.package, description.git
        version: dict[str, Any] = {
            "model": fitting("model", description.model, MODEL_LENGTH),
            "version": fitting("version", description.version, VERSION_LENGTH),
            "precedence": sort_text(description.version),
            "digest": digest,
            "size_bytes": size_bytes,
            "stage": Stage.DEVELOPMENT,
            "created": _moment(description.created),
            "registered": now,
            "registered_by": None if by_rebuild else fitting("who", who, NAME_LENGTH),
            "git_commit": git and git.commit,
            "git_branch": git and git.branch,
            "git_dirty": git and git.dirty,
            "framework": fitting("framework.name", package.framework.name),
            "framework_version": fitting("framework.version", package.framework.version),
            "licence": fitting("licence", package.licence),
            "author": package.author and fitting("author", package.author),
            "pickled": bool(description.pickles),
            "searched": _searched(description),
        }
        document = json.dumps(description.model_dump(mode="json", exclude_defaults=True))
        who_and_when = {"who": fitting("who", who, NAME_LENGTH), "at": now}
        return cls(
            (description.model, description.version),
            digest,
            fitting("store", store, REFERENCE_LENGTH),
            version,
            {
                DescriptionDocument: [{"document": document}],
                Location: [{"store": store, "claimed": now}],
                Label: [
                    {
                        "name": fitting("labels", name, NAME_LENGTH),
                        "value": fitting(f"labels.{name}", value, NAME_LENGTH),
                    }
                    for name, value in package.labels.items()
                ],
                Parent: [
                    {"position": position, "reference": fitting("parents", reference, REFERENCE_LENGTH)}
                    for position, reference in enumerate(package.parents)
                ],
                StageChange: [{"from_stage": None, "to_stage": Stage.DEVELOPMENT, "why": why, **who_and_when}],
                Result: [
                    {
                        "dataset": PACKAGE_DATASET,
                        "metric": fitting("evaluation", metric, NAME_LENGTH),
                        "value": value,
                        "latest": True,
                        **who_and_when,
                    }
                    for metric, value in package.evaluation.items()
                ],
            },
        )


class Registered(NamedTuple):
    """What came of registrations."""

    new: Collection[Name]
    """Those that the catalogue did not have."""
    taken: Mapping[Name, str]
    """Those that it has with another digest, and that digest: nothing was done about them."""


def register(connection: Connection, registrations: Sequence[Registration]) -> Registered:
    """Takes in the versions that the catalogue lacks; of those that it has, it notes the store.

    Where another process registers the same version at the same time, the database refuses the later of the two with an
    IntegrityError; run again, this finds the earlier.
    """
    there = _known(connection, [registration.name for registration in registrations])
    taken = {
        each.name: there[each.name][1]
        for each in registrations
        if each.name in there and there[each.name][1] != each.digest
    }
    new = [each for each in registrations if each.name not in there]
    if new:
        connection.execute(insert(Version), [each.version for each in new])
        ids = {name: identifier for name, (identifier, _) in _known(connection, [each.name for each in new]).items()}
        for table in new[0].details:
            rows = [{"version_id": ids[each.name], **row} for each in new for row in each.details[table]]
            if rows:
                connection.execute(insert(table), rows)
    _add_locations(
        connection,
        [
            {"version_id": there[each.name][0], **each.details[Location][0]}
            for each in registrations
            if each.name in there and each.name not in taken
        ],
    )
    return Registered([each.name for each in new], taken)


def note_store(connection: Connection, names: Sequence[Name], store: str, now: datetime) -> None:
    """Notes that a store has these versions; those that the catalogue doesn't know are left out."""
    ids = [identifier for identifier, _ in _known(connection, names).values()]
    _add_locations(connection, [{"version_id": identifier, "store": store, "claimed": now} for identifier in ids])


def forget(connection: Connection, model: str, version: str, store: str | None) -> bool:
    """Takes a version out of the catalogue, or only out of one store; whether it is gone.

    A version that no store has any more is gone.

    Raises:
        NotInCatalogue
    """
    identifier = locked(connection, model, version).id
    if store is not None:
        connection.execute(delete(Location).where(Location.version_id == identifier, Location.store == store))
        if connection.scalar(select(exists().where(Location.version_id == identifier))):
            return False
    connection.execute(delete(Version).where(Version.id == identifier))
    return True


def locked(connection: Connection, model: str, version: str) -> Any:
    """A version's row: id, stage, author, registered_by. Nobody else changes anything of it until the transaction ends.

    Raises:
        NotInCatalogue
    """
    row = connection.execute(
        select(Version.id, Version.stage, Version.author, Version.registered_by)
        .where(Version.model == model, Version.version == version)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise unknown(connection, model, version)
    return row


def unknown(connection: Connection, model: str, version: str) -> NotInCatalogue:
    """The error that says so, and what there is."""
    latest = connection.scalars(
        select(Version.version)
        .where(Version.model == model)
        .order_by(Version.model.desc(), Version.precedence.desc())
        .limit(_LATEST_SHOWN)
    )
    return NotInCatalogue(model, version, list(latest))


def fitting(what: str, text: str, length: int | None = None) -> str:
    """The text, if the catalogue can hold it.

    Raises:
        RecordRefused: it is empty, longer than `length` characters, or holds a character NUL.
    """
    if not text.strip():
        raise RecordRefused(f"{what} is empty; the catalogue needs it")
    if length is not None and len(text) > length:
        raise RecordRefused(f"{what}: {text[:40]!r}… has {len(text)} characters; the catalogue holds at most {length}")
    if "\0" in text:
        raise RecordRefused(f"{what}: {text[:40]!r} holds a character NUL, which no database's text can; leave it out")
    return text


def _known(connection: Connection, names: Sequence[Name]) -> dict[Name, tuple[int, str]]:
    """The id and digest of those that the catalogue has."""
    found: dict[Name, tuple[int, str]] = {}
    for part in in_parts(names):
        asked = select(Version.id, Version.model, Version.version, Version.digest).where(
            tuple_(Version.model, Version.version).in_(part)
        )
        found |= {(row.model, row.version): (row.id, row.digest) for row in connection.execute(asked)}
    return found


def _add_locations(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    for part in in_parts(rows):
        ids = [row["version_id"] for row in part]
        noted = select(Location.version_id, Location.store).where(Location.version_id.in_(ids))
        there = {(row.version_id, row.store) for row in connection.execute(noted)}
        missing = [row for row in part if (row["version_id"], row["store"]) not in there]
        if missing:
            connection.execute(insert(Location), missing)


def _searched(description: Description) -> str:
    package, git = description.package, description.git
    labels = chain.from_iterable(package.labels.items())
    texts = (
        description.model, description.version, package.framework.name, package.framework.version, package.licence,
        package.author, package.training_data, git and git.branch, *package.parents, *labels,
    )  # fmt: skip
    return "\n".join(text for text in texts if text).casefold().replace("\0", "")


def _moment(created: str | None) -> datetime | None:
    """RFC 3339, as the artifact has it; None for what is no time since 1970, whatever the artifact says."""
    try:
        moment = None if created is None else datetime.fromisoformat(created)
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None and moment >= _FIRST_MOMENT else None
