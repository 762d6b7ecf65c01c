"""The catalogue of model versions: registered, found again, moved through their lifecycle, with what became of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from model_packaging.catalogue import details, observations, rebuilding, registration, search, stages
from model_packaging.catalogue.database import Database
from model_packaging.catalogue.migration import bring_up_to_date
from model_packaging.catalogue.query import Query
from model_packaging.catalogue.rebuilding import CLAIM_PERIOD, Progress, Rebuilt
from model_packaging.catalogue.records import StageChangeRecord, VersionRecord, VersionSummary
from model_packaging.catalogue.registration import Registration
from model_packaging.comparison import Comparison, compare
from model_packaging.errors import VersionExists
from model_packaging.lifecycle import Share, Stage
from model_packaging.manifest import Description
from model_packaging.stores.store import Store


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Catalogue:
    """Model versions in a database. Close it, or use it as a context manager.

    Each method is one transaction: all that it changes is there when it returns, and nothing where it raises. `who`
    names the person or the pipeline that does it. Besides its own errors, each raises CatalogueFailed where the
    database can't be reached, read or changed.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = _utc_now) -> None:
        """Opens a catalogue, and makes or migrates its tables where they are behind this code.

        `url` is `sqlite:///FILE`, `postgresql+psycopg://…` or `mysql+pymysql://…` (MariaDB too).

        Raises:
            CatalogueFailed: the URL is not understood, its driver is not installed, the database can't be reached, or a
                newer version of this code has changed its tables.
        """
        self._database = Database(url)
        self._clock = clock
        try:
            bring_up_to_date(self._database)
        except BaseException:
            self._database.close()
            raise

    def __repr__(self) -> str:
        return f"Catalogue({self.location!r})"

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def location(self) -> str:
        """The database, as it can be shown: without a password."""
        return self._database.location

    def close(self) -> None:
        self._database.close()

    # Versions

    def register(self, description: Description, digest: str, size_bytes: int, store: str, *, who: str) -> bool:
        """Takes in a version, in development, with the results that its package states; False where it is known.

        This claims the version's name: of two that register it with other bytes, at whatever time, the first has it. So
        who pushes to a store that can't refuse the second push registers before. A version that is known, with the same
        digest, is noted to be in this store too.

        Raises:
            VersionExists: the catalogue has the version with another digest.
            RecordRefused: something is too long or too large for the catalogue.
        """
        wanted = Registration.of(description, digest, size_bytes, store, who=who, now=self._clock())
        new, taken = self._database.write(lambda connection: registration.register(connection, [wanted]))
        if wanted.name in taken:
            raise VersionExists(f"the catalogue {self.location}", *wanted.name, taken[wanted.name], digest)
        return wanted.name in new

    def forget(self, model: str, version: str, store: str | None = None) -> bool:
        """Takes out a deleted version with all that is known of it; False where another store than `store` has it.

        Raises:
            NotInCatalogue
        """
        return self._database.write(lambda connection: registration.forget(connection, model, version, store))

    def rebuild(
        self,
        store: Store,
        *,
        who: str,
        models: Sequence[str] = (),
        claim_period: timedelta = CLAIM_PERIOD,
        progress: Progress | None = None,
    ) -> Rebuilt:
        """Brings the catalogue in line with a store, which is the truth; other stores' versions are left alone.

        With `models`, it asks for these only, as many registries don't say which they have, and leaves other models'
        versions alone. A version that is registered and not in its store is kept for `claim_period`: it may be on its
        way. Runs in many transactions; interrupted, it can be run again. `progress` is told how many of how many
        versions are done.

        Raises:
            StoreDamaged, StoreUnreachable: the store can't be listed, or is not there though the catalogue has versions
                of it; nothing is changed then.
        """
        return rebuilding.rebuild(
            self._database,
            store,
            who=who,
            now=self._clock(),
            models=models,
            claim_period=claim_period,
            progress=progress,
        )

    # Questions

    def find(self, query: Query | None = None) -> list[VersionSummary]:
        """The versions that a query asks for, in its order; all of them without one."""
        return self._database.read(lambda connection: search.find(connection, query or Query()))

    def count(self, query: Query | None = None) -> int:
        """How many versions a query asks for, whatever its limit and offset."""
        return self._database.read(lambda connection: search.count(connection, query or Query()))

    def show(self, model: str, version: str) -> VersionRecord:
        """All that is known of a version.

        Raises:
            NotInCatalogue
        """
        return self._database.read(lambda connection: details.show(connection, model, version))

    def compare(self, a: tuple[str, str], b: tuple[str, str]) -> Comparison:
        """Two versions, each a model and a version of it, side by side.

        Raises:
            NotInCatalogue
        """
        return compare(self.show(*a).subject(), self.show(*b).subject())

    # Lifecycle

    def transition(
        self,
        model: str,
        version: str,
        stage: Stage,
        *,
        who: str,
        why: str = "",
        approvals: int = 0,
        shares: Collection[Share] | None = None,
    ) -> StageChangeRecord:
        """Moves a version to a stage.

        Args:
            approvals: how many other people must have approved a version before it is released.
            shares: what the version has of endpoints' traffic, in every environment, as it is now; None: as the
                recorded deployments say.

        Raises:
            NotInCatalogue
            TransitionRefused: with every condition that isn't met.
        """
        now = self._clock()
        return self._database.write(
            lambda connection: stages.change_stage(
                connection, model, version, stage, who=who, why=why, now=now, approvals=approvals, shares=shares
            )
        )

    def promote(self, model: str, version: str, *, who: str, why: str = "", approvals: int = 0) -> StageChangeRecord:
        """Moves a version one step on: from development to testing, from testing to released.

        Raises:
            NotInCatalogue
            TransitionRefused: with every condition that isn't met.
        """
        now = self._clock()
        return self._database.write(
            lambda connection: stages.change_stage(
                connection, model, version, None, who=who, why=why, now=now, approvals=approvals, shares=()
            )
        )

    def approve(self, model: str, version: str, *, who: str, why: str = "") -> bool:
        """Notes that somebody approves of a version's release; False where they had already.

        Approvals count until the version goes back to development.

        Raises:
            NotInCatalogue
            ApprovalRefused: they made or registered the version, or it is retired.
        """
        now = self._clock()
        return self._database.write(
            lambda connection: stages.approve(connection, model, version, who=who, why=why, now=now)
        )

    # What became of it

    def record_evaluation(
        self,
        model: str,
        version: str,
        metrics: Mapping[str, float],
        *,
        dataset: str,
        who: str,
        at: datetime | None = None,
    ) -> None:
        """Notes what an evaluation on a data set found; what was found before stays as history.

        Raises:
            NotInCatalogue
            RecordRefused: there is no metric, or one is not finite, or the data set is called `package`, which stands
                for what packages state.
        """
        when = at or self._clock()
        self._database.write(
            lambda connection: observations.record_evaluation(
                connection, model, version, metrics, dataset=dataset, who=who, at=when
            )
        )

    def record_deployment(
        self,
        model: str,
        version: str,
        *,
        environment: str,
        stack: str,
        who: str,
        revision: int | None = None,
        weight: int | None = None,
        removed: bool = False,
    ) -> bool:
        """Notes what a version is in a stack, from a revision on; False where that is known already.

        Raises:
            NotInCatalogue
            SettingsError: the weight is none.
        """
        now = self._clock()
        return self._database.write(
            lambda connection: observations.record_deployment(
                connection,
                model,
                version,
                environment=environment,
                stack=stack,
                revision=revision,
                weight=weight,
                removed=removed,
                who=who,
                at=now,
            )
        )

    def record_weights(
        self,
        model: str,
        weights: Mapping[str, int],
        *,
        environment: str,
        stack: str,
        who: str,
        revision: int | None = None,
    ) -> None:
        """Notes a revision of an endpoint stack: version -> weight. What it had before and has no more is removed.

        Raises:
            NotInCatalogue: of one of the versions; nothing is noted then.
            SettingsError: a weight is none.
        """
        now = self._clock()
        self._database.write(
            lambda connection: observations.record_weights(
                connection, model, weights, environment=environment, stack=stack, revision=revision, who=who, at=now
            )
        )
