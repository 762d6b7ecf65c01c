"""Turns errors that are a user's to mend into lines on stderr and exit status 1."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from cli import output
from infra.errors import UserError


class ErrorsAsText(TyperGroup):
    """A group of commands whose expected errors are lines, not tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read the output has had enough.
            raise
        except (UserError, OSError) as error:
            output.error(str(error))
            ctx.exit(1)
