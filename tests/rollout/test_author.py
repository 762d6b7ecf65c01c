"""Who acts, as the history tells it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rollout.author import acting_user, signed, unsigned


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository whose user is ana@example.org."""
    monkeypatch.delenv("LEPTON_USER", raising=False)
    for command in (["init", "--quiet"], ["config", "user.email", "ana@example.org"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_the_user_is_who_git_knows(checkout: Path) -> None:
    assert acting_user(checkout) == "ana@example.org"


def test_a_user_that_is_named_goes_before_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_USER", "ben")
    assert acting_user(checkout) == "ben"


def test_without_git_it_is_the_login_name(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    monkeypatch.setenv("LOGNAME", "chen")
    assert acting_user(checkout) == "chen"


def test_a_message_and_who_it_is_by_are_told_apart_again() -> None:
    message = "rollback to revision 3: guard\n\nBy: what is not a signature\nends so"
    assert unsigned(signed(message, "ana")) == (message, "ana")


def test_an_update_by_pulumi_alone_says_nobody() -> None:
    for message in ("up", "what is\n\nBy: no\nsignature"):
        assert unsigned(message) == (message, None)


def test_a_name_is_one_line_of_what_can_be_printed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_USER", " ben\nfrom \x1b[31m the\t\u2028night shift ")
    who = acting_user(checkout)
    assert who == "ben from [31m the night shift"
    assert unsigned(signed("traffic set", who)) == ("traffic set", who)


def test_a_name_of_nothing_is_none(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_USER", " \n")
    assert acting_user(checkout) == "ana@example.org"
