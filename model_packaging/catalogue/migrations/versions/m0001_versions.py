"""Versions, with all that is known of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_MOMENT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_STAGE = sa.String(16)
_NAME = sa.String(255)
_REFERENCE = sa.String(512)


def upgrade() -> None:
    _create_table(
        "versions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("model", _sorted_text(63), nullable=False),
        sa.Column("version", _sorted_text(128), nullable=False),
        sa.Column("precedence", _sorted_text(510), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("stage", _STAGE, nullable=False),
        sa.Column("created", _MOMENT),
        sa.Column("registered", _MOMENT, nullable=False),
        sa.Column("registered_by", _NAME),
        sa.Column("git_commit", _sorted_text(64)),
        sa.Column("git_branch", _TEXT),
        sa.Column("git_dirty", sa.Boolean),
        sa.Column("framework", _TEXT, nullable=False),
        sa.Column("framework_version", _TEXT, nullable=False),
        sa.Column("licence", _TEXT, nullable=False),
        sa.Column("author", _TEXT),
        sa.Column("pickled", sa.Boolean, nullable=False),
        sa.Column("searched", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("model", "version", name="uq_versions_model_version"),
        indexes=[
            ["model", "precedence"],
            ["stage", "model", "precedence"],
            ["git_commit"],
            ["registered"],
            ["size_bytes"],
        ],
    )
    _create_table(
        "descriptions",
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("document", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("version_id", name="pk_descriptions"),
        _of_version("descriptions"),
    )
    _create_table(
        "locations",
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("store", _REFERENCE, nullable=False),
        sa.Column("claimed", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("version_id", "store", name="pk_locations"),
        _of_version("locations"),
        indexes=[["store", "version_id"]],
    )
    _create_table(
        "labels",
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("value", _NAME, nullable=False),
        sa.PrimaryKeyConstraint("version_id", "name", name="pk_labels"),
        _of_version("labels"),
        indexes=[["name", "value", "version_id"]],
    )
    _create_table(
        "parents",
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("reference", _REFERENCE, nullable=False),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_parents"),
        _of_version("parents"),
        indexes=[["reference", "version_id"]],
    )
    _create_table(
        "stage_changes",
        sa.Column("id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("from_stage", _STAGE),
        sa.Column("to_stage", _STAGE, nullable=False),
        sa.Column("who", _NAME, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("why", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stage_changes"),
        _of_version("stage_changes"),
        indexes=[["version_id"]],
    )
    _create_table(
        "approvals",
        sa.Column("id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("who", _NAME, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("why", _TEXT, nullable=False),
        sa.Column("counts", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
        _of_version("approvals"),
        indexes=[["version_id"]],
    )
    _create_table(
        "results",
        sa.Column("id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("dataset", _NAME, nullable=False),
        sa.Column("metric", _NAME, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("who", _NAME, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("latest", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        _of_version("results"),
        indexes=[["version_id", "dataset", "metric"], ["metric", "latest", "value", "version_id"]],
    )
    _create_table(
        "deployments",
        sa.Column("id", _ID, nullable=False),
        sa.Column("version_id", _ID, nullable=False),
        sa.Column("environment", _NAME, nullable=False),
        sa.Column("stack", _NAME, nullable=False),
        sa.Column("revision", sa.Integer),
        sa.Column("weight", sa.Integer),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("who", _NAME, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("latest", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deployments"),
        _of_version("deployments"),
        indexes=[["version_id", "environment", "stack"], ["environment", "latest", "version_id"]],
    )


def _create_table(name: str, *items: Any, indexes: list[list[str]] | None = None) -> None:
    # MySQL keeps what a migration made before it was interrupted: what is there stays.
    op.create_table(name, *items, if_not_exists=True, **_OPTIONS)
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(name)}
    for columns in indexes or ():
        index = f"ix_{name}_{'_'.join(columns)}"
        if index not in there:
            op.create_index(index, name, columns)


def _of_version(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=f"fk_{table}_version_id", ondelete="CASCADE")


def _sorted_text(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
