"""What a semantic version is, and which comes first: the specification's own examples."""

from __future__ import annotations

import random

import pytest

from model_packaging.semver import is_semantic, precedence

ORDERED = [
    *("0.9.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"),
    *("1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0", "2.0.0"),
]


def test_versions_come_in_the_order_that_the_specification_gives() -> None:
    shuffled = random.Random(1).sample(ORDERED, len(ORDERED))
    assert sorted(shuffled, key=precedence) == ORDERED


def test_what_is_no_version_comes_first() -> None:
    assert sorted(["1.0.0-a", "latest", "0.0.0"], key=precedence) == ["latest", "0.0.0", "1.0.0-a"]


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3-x-y.7", "10.20.30", "1.0.0--", "1.0.0-0a"])
def test_these_are_semantic(version: str) -> None:
    assert is_semantic(version)


@pytest.mark.parametrize(
    "version",
    [
        *("", "1", "1.0", "1.0.0.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0-a..b", "1.0.0-ä", " 1.0.0"),
        *("1.0.0\n", "1.0.0+build", "-1.0.0", "٣.0.0", "1_0.0.0", "1.0.0-" + "a" * 200, "9" * 5_000 + ".0.0"),
    ],
)
def test_these_are_not(version: str) -> None:
    assert not is_semantic(version)
    assert precedence(version)[0] == -1
