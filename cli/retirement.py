"""Asks the catalogue whether a version may serve again."""

from __future__ import annotations

from cli.package.shared import open_catalogue
from infra.errors import UserError
from model_packaging.lifecycle import Stage


def retirement(model: str, version: str) -> str | None:
    """Why a version may not be brought back: it is retired. A catalogue that can't be asked keeps none from it."""
    try:
        with open_catalogue(None) as catalogue:
            stage = catalogue.show(model, version).summary.stage
    except UserError:
        return None
    return f"the catalogue has {model} {version} as retired, which is final" if stage is Stage.RETIRED else None
