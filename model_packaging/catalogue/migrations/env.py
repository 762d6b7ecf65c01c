"""Runs the migrations on the connection that `model_packaging.catalogue.migration` gives."""

from alembic import context

from model_packaging.catalogue.tables import REVISION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=REVISION_TABLE,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
