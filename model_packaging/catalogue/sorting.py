"""Semantic versions as text that a database sorts by precedence."""

from __future__ import annotations

from model_packaging.semver import precedence


def sort_text(version: str) -> str:
    """Text in ASCII whose byte order is the precedence of semantic versions (https://semver.org, item 11).

    A number carries its length in front, so that 10 comes after 9; a word ends in `!`, which comes before all that a
    word can hold, so that a shorter one comes first; a release ends in `~`, which comes after every pre-release.
    """
    major, minor, patch, is_release, identifiers = precedence(version)
    core = "".join(map(_number, (major, minor, patch)))
    if is_release:
        return f"{core}~"
    return core + "".join(f"1{word}!" if is_word else f"0{_number(number)}" for is_word, number, word in identifiers)


def _number(number: int) -> str:
    digits = str(number)
    # Three digits of length are enough for anything that fits an OCI tag.
    return f"{len(digits):03}{digits}"
