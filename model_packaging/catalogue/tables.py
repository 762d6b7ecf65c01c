"""The catalogue's tables. They and the migrations that make them agree on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from model_packaging.lifecycle import Stage

REVISION = "0001"
"""The latest migration: what a database must be at for this code."""
REVISION_TABLE = "catalogue_revision"

MODEL_LENGTH = 63
VERSION_LENGTH = 128
"""An OCI tag's, which a version must fit."""
NAME_LENGTH = 255
"""Of what is indexed: the keys of InnoDB hold 3072 bytes."""
REFERENCE_LENGTH = 512

TABLE_OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    # Names that differ in case are different names: that is not these servers' default.
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}

ROW_ID = BigInteger().with_variant(Integer, "sqlite")
LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
STAGE = Enum(Stage, native_enum=False, length=16, values_callable=lambda stages: [str(stage) for stage in stages])


def sorted_text(length: int) -> String:
    """Text whose order is that of its bytes, on PostgreSQL too."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Moment(TypeDecorator[datetime]):
    """A time, given and returned in UTC, to the microsecond."""

    impl = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _options(*items: Any) -> tuple[Any, ...]:
    return (*items, TABLE_OPTIONS)


def _of_version(*, primary_key: bool = False) -> Mapped[int]:
    return mapped_column(ROW_ID, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=primary_key)


class Version(Base):
    """A model version: what listings show and filter by."""

    __tablename__ = "versions"
    __table_args__ = _options(
        UniqueConstraint("model", "version"),
        Index(None, "model", "precedence"),
        Index(None, "stage", "model", "precedence"),
        Index(None, "git_commit"),
        Index(None, "registered"),
        Index(None, "size_bytes"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    model: Mapped[str] = mapped_column(sorted_text(MODEL_LENGTH))
    version: Mapped[str] = mapped_column(sorted_text(VERSION_LENGTH))
    precedence: Mapped[str] = mapped_column(sorted_text(NAME_LENGTH * 2))
    """The version as text that sorts by precedence."""
    digest: Mapped[str] = mapped_column(String(71))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    stage: Mapped[Stage] = mapped_column(STAGE)
    created: Mapped[datetime | None] = mapped_column(Moment)
    registered: Mapped[datetime] = mapped_column(Moment)
    registered_by: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """None where a rebuild found it in a store."""
    git_commit: Mapped[str | None] = mapped_column(sorted_text(64))
    git_branch: Mapped[str | None] = mapped_column(LONG_TEXT)
    git_dirty: Mapped[bool | None]
    framework: Mapped[str] = mapped_column(LONG_TEXT)
    framework_version: Mapped[str] = mapped_column(LONG_TEXT)
    licence: Mapped[str] = mapped_column(LONG_TEXT)
    author: Mapped[str | None] = mapped_column(LONG_TEXT)
    pickled: Mapped[bool]
    """Whether the build found pickled objects, which run code when they are loaded, in its files."""
    searched: Mapped[str] = mapped_column(LONG_TEXT)
    """What a search for text looks through, case-folded."""


class DescriptionDocument(Base):
    """All that a version's artifact says about itself. Apart from the versions, which are read row by row."""

    __tablename__ = "descriptions"
    __table_args__ = _options()

    version_id: Mapped[int] = _of_version(primary_key=True)
    document: Mapped[str] = mapped_column(LONG_TEXT)
    """JSON."""


class Location(Base):
    """A store that has a version."""

    __tablename__ = "locations"
    __table_args__ = _options(Index(None, "store", "version_id"))

    version_id: Mapped[int] = _of_version(primary_key=True)
    store: Mapped[str] = mapped_column(String(REFERENCE_LENGTH), primary_key=True)
    claimed: Mapped[datetime] = mapped_column(Moment)
    """When the version was registered as one of that store."""


class Label(Base):
    """A label of a version."""

    __tablename__ = "labels"
    __table_args__ = _options(Index(None, "name", "value", "version_id"))

    version_id: Mapped[int] = _of_version(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    value: Mapped[str] = mapped_column(String(NAME_LENGTH))


class Parent(Base):
    """What a version was made from, in the order of the package."""

    __tablename__ = "parents"
    __table_args__ = _options(Index(None, "reference", "version_id"))

    version_id: Mapped[int] = _of_version(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reference: Mapped[str] = mapped_column(String(REFERENCE_LENGTH))


class StageChange(Base):
    """A step in a version's life."""

    __tablename__ = "stage_changes"
    __table_args__ = _options(Index(None, "version_id"))

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    version_id: Mapped[int] = _of_version()
    from_stage: Mapped[Stage | None] = mapped_column(STAGE)
    """None where the version was registered."""
    to_stage: Mapped[Stage] = mapped_column(STAGE)
    who: Mapped[str] = mapped_column(String(NAME_LENGTH))
    at: Mapped[datetime] = mapped_column(Moment)
    why: Mapped[str] = mapped_column(LONG_TEXT)


class Approval(Base):
    """Somebody's word that a version may be released."""

    __tablename__ = "approvals"
    __table_args__ = _options(Index(None, "version_id"))

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    version_id: Mapped[int] = _of_version()
    who: Mapped[str] = mapped_column(String(NAME_LENGTH))
    at: Mapped[datetime] = mapped_column(Moment)
    why: Mapped[str] = mapped_column(LONG_TEXT)
    counts: Mapped[bool]
    """False once the version went back to development."""


class Result(Base):
    """A metric's value, as an evaluation found it."""

    __tablename__ = "results"
    __table_args__ = _options(
        Index(None, "version_id", "dataset", "metric"),
        Index(None, "metric", "latest", "value", "version_id"),
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    version_id: Mapped[int] = _of_version()
    dataset: Mapped[str] = mapped_column(String(NAME_LENGTH))
    metric: Mapped[str] = mapped_column(String(NAME_LENGTH))
    value: Mapped[float] = mapped_column(Double)
    who: Mapped[str] = mapped_column(String(NAME_LENGTH))
    at: Mapped[datetime] = mapped_column(Moment)
    latest: Mapped[bool]
    """Whether it is of the last evaluation on this data set."""


class Deployment(Base):
    """A version in an environment's stack, from one revision of the stack on."""

    __tablename__ = "deployments"
    __table_args__ = _options(
        Index(None, "version_id", "environment", "stack"), Index(None, "environment", "latest", "version_id")
    )

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    version_id: Mapped[int] = _of_version()
    environment: Mapped[str] = mapped_column(String(NAME_LENGTH))
    stack: Mapped[str] = mapped_column(String(NAME_LENGTH))
    revision: Mapped[int | None]
    weight: Mapped[int | None]
    """None in a version stack, which splits no traffic."""
    removed: Mapped[bool]
    who: Mapped[str] = mapped_column(String(NAME_LENGTH))
    at: Mapped[datetime] = mapped_column(Moment)
    latest: Mapped[bool]
    """Of this version in this stack."""
