"""Makes the catalogue say of a store what the store says itself. What only the catalogue knows is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import NamedTuple

from sqlalchemy import Connection, and_, select

from model_packaging.artifact import Artifact
from model_packaging.catalogue.database import Database
from model_packaging.catalogue.registration import Name, Registered, Registration, forget, note_store, register
from model_packaging.catalogue.tables import Location, Version
from model_packaging.errors import NotInCatalogue, PackagingError
from model_packaging.stores.layout import Layout
from model_packaging.stores.store import Entry, Store

CLAIM_PERIOD = timedelta(hours=1)
"""How long a version may be registered and not yet be in its store, as while it is pushed."""

_VERSIONS_AT_ONCE = 500
"""In one transaction: others can change the catalogue in between."""

Progress = Callable[[int, int], None]
"""Is told how many of how many versions are done."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did. Versions are named MODEL:VERSION."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    """Had the same digest: stage, history, approvals, results and deployments are what they were."""
    replaced: tuple[str, ...]
    """Had another digest than the store's: what was known of the old one is gone."""
    removed: tuple[str, ...]
    """Were in no store any more."""
    pending: tuple[str, ...]
    """Were not in the store, and may be on their way there."""
    faults: tuple[str, ...]
    """What is wrong in the store, or with the catalogue's claim; each names its version and what to do."""


class _Known(NamedTuple):
    digest: str
    claimed: datetime | None
    """When it became one of the store; None where it is only another's."""


def rebuild(
    database: Database,
    store: Store,
    *,
    who: str,
    now: datetime,
    models: Sequence[str] = (),
    claim_period: timedelta = CLAIM_PERIOD,
    progress: Progress | None = None,
) -> Rebuilt:
    """Brings the catalogue in line with a store, or with its versions of `models`. Interrupted, it can be run again.

    Raises:
        StoreDamaged, StoreUnreachable: the store can't be listed, or is not there though the catalogue has versions of
            it; nothing is changed then.
        CatalogueFailed
    """
    known = database.read(lambda connection: _known(connection, store.location))
    if models:
        known = {name: version for name, version in known.items() if name[0] in models}
    entries = list(_entries(store, models))
    # After the listing, as the store may go away during it.
    if isinstance(store, Layout) and any(version.claimed is not None for version in known.values()):
        store.require_there()
    work = _Rebuild(database, store, who, now)
    done = 0
    for start in range(0, len(entries), _VERSIONS_AT_ONCE):
        part = entries[start : start + _VERSIONS_AT_ONCE]
        work.take(part, known)
        done += len(part)
        if progress is not None:
            progress(done, len(entries))
    work.let_go(known, {(entry.model, entry.version) for entry in entries}, now - claim_period)
    return work.result()


class _Rebuild:
    def __init__(self, database: Database, store: Store, who: str, now: datetime) -> None:
        self._database, self._store, self._who, self._now = database, store, who, now
        self._added: list[Name] = []
        self._kept: list[Name] = []
        self._replaced: list[Name] = []
        self._removed: list[Name] = []
        self._pending: list[Name] = []
        self._faults: list[str] = []

    def take(self, entries: Sequence[Entry], known: dict[Name, _Known]) -> None:
        """Has the catalogue know these versions of the store."""
        unread: list[Entry] = []
        found: list[Name] = []
        for entry in entries:
            name = (entry.model, entry.version)
            there = known.get(name)
            if there is None or there.digest != entry.digest:
                unread.append(entry)
            else:
                self._kept.append(name)
                if there.claimed is None:
                    found.append(name)
        if found:
            self._database.write(lambda connection: note_store(connection, found, self._store.location, self._now))
        registrations = list(self._registrations(unread))
        if not registrations:
            return
        outdated = {each.name for each in registrations if each.name in known}
        new, taken = self._database.write(lambda connection: self._register(connection, registrations, outdated))
        for each in registrations:
            if each.name in taken:
                self._conflict(each.name, each.digest, taken[each.name])
            elif each.name in outdated:
                self._replaced.append(each.name)
            else:
                (self._added if each.name in new else self._kept).append(each.name)

    def let_go(self, known: dict[Name, _Known], there: set[Name], before: datetime) -> None:
        """Has the catalogue forget what the store has no more, unless it was claimed lately."""
        gone: list[Name] = []
        for name, version in known.items():
            if name not in there and version.claimed is not None:
                (self._pending if version.claimed > before else gone).append(name)
        for start in range(0, len(gone), _VERSIONS_AT_ONCE):
            part = gone[start : start + _VERSIONS_AT_ONCE]
            self._removed += self._database.write(
                lambda connection, part=part: [name for name in part if self._forget(connection, name)]
            )

    def result(self) -> Rebuilt:
        return Rebuilt(
            added=_written(self._added),
            kept=_written(self._kept),
            replaced=_written(self._replaced),
            removed=_written(self._removed),
            pending=_written(self._pending),
            faults=tuple(self._faults),
        )

    def _register(
        self, connection: Connection, registrations: Sequence[Registration], outdated: set[Name]
    ) -> Registered:
        for name in outdated:
            self._forget(connection, name)
        return register(connection, registrations)

    def _forget(self, connection: Connection, name: Name) -> bool:
        try:
            return forget(connection, *name, self._store.location)
        except NotInCatalogue:
            # Another did meanwhile.
            return True

    def _registrations(self, entries: Sequence[Entry]) -> Iterator[Registration]:
        for entry in entries:
            try:
                artifact = Artifact.at(self._store, entry.model, entry.digest)
                said = (artifact.description.model, artifact.description.version)
                if said != (entry.model, entry.version):
                    self._fault(entry, f"that artifact says that it is {' '.join(said)}; restore the version's name")
                    continue
                yield Registration.of(
                    artifact.description,
                    entry.digest,
                    artifact.size,
                    self._store.location,
                    who=self._who,
                    now=self._now,
                    why=f"found in {self._store.location}",
                    by_rebuild=True,
                )
            except PackagingError as fault:
                self._fault(entry, str(fault))

    def _conflict(self, name: Name, here: str, elsewhere: str) -> None:
        self._faults.append(
            f"{':'.join(name)}: {self._store.location} has {here}, and the catalogue has it from another store as "
            f"{elsewhere}; a version has one content: delete the wrong one from its store"
        )

    def _fault(self, entry: Entry, text: str) -> None:
        self._faults.append(f"{entry.model}:{entry.version}: {text}")


def _entries(store: Store, models: Sequence[str]) -> Iterator[Entry]:
    if not models:
        return store.entries()
    return chain.from_iterable(map(store.entries, dict.fromkeys(models)))


def _written(names: Sequence[Name]) -> tuple[str, ...]:
    return tuple(f"{model}:{version}" for model, version in names)


def _known(connection: Connection, store: str) -> dict[Name, _Known]:
    here = and_(Location.version_id == Version.id, Location.store == store)
    rows = connection.execute(
        select(Version.model, Version.version, Version.digest, Location.claimed).outerjoin(Location, here)
    )
    return {(row.model, row.version): _Known(row.digest, row.claimed) for row in rows}
