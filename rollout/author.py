"""Who acts, as the history is to tell it."""

from __future__ import annotations

import getpass
import os
import subprocess
from functools import cache
from pathlib import Path

_TRAILER = "\n\nBy: "
"""Before a name at a message's end, as Git's trailers are."""


@cache
def acting_user(folder: Path) -> str:
    """LEPTON_USER, or else Git's user.email as it is in `folder`, or else the login name."""
    return _on_one_line(os.environ.get("LEPTON_USER", "")) or _on_one_line(_git_email(folder)) or _on_one_line(_login())


def signed(message: str, who: str) -> str:
    """An update's message with who it is by."""
    return f"{message}{_TRAILER}{who}"


def unsigned(message: str) -> tuple[str, str | None]:
    """A message without its signature, and whose that is; None where there is none, as after a bare `pulumi up`."""
    said, found, who = message.rpartition(_TRAILER)
    return (said, who) if found and "\n" not in who else (message, None)


def _git_email(folder: Path) -> str:
    try:
        asked = subprocess.run(["git", "config", "user.email"], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return asked.stdout


def _on_one_line(name: str) -> str:
    """A signature is one line, and what a terminal would not print has no place in a name."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have
        return f"user {os.getuid()}"
