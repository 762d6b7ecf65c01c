"""How the catalogue's tables came about: Alembic migrations, run by `migration.py`."""
