"""A version's text for databases sorts as semantic versions do."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from model_packaging.catalogue.sorting import sort_text
from model_packaging.catalogue.tables import NAME_LENGTH, VERSION_LENGTH
from model_packaging.semver import precedence

numbers = st.integers(0, 10**20) | st.integers(0, 12)
words = st.from_regex(r"\A[0-9]*[A-Za-z-][0-9A-Za-z-]{0,5}\Z")
identifiers = st.lists(numbers.map(str) | words | st.sampled_from(["a", "a-", "aa", "a0", "A"]), max_size=4)


@st.composite
def versions(draw: st.DrawFn) -> str:
    core = ".".join(str(draw(numbers)) for _ in range(3))
    pre = ".".join(draw(identifiers))
    return f"{core}-{pre}" if pre else core


@given(versions(), versions())
@example("1.0.0-a.a", "1.0.0-a-")
@example("1.0.0-a.1", "1.0.0-a0")
def test_texts_compare_as_versions_do(one: str, other: str) -> None:
    assert (sort_text(one) < sort_text(other)) == (precedence(one) < precedence(other))
    assert (sort_text(one) == sort_text(other)) == (one == other)


def test_the_example_of_the_specification_is_in_order() -> None:
    # https://semver.org, item 11
    names = ["alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    ordered = [*(f"1.0.0-{name}" for name in names), "1.0.0", "1.9.0", "1.10.0"]
    texts = [sort_text(version) for version in ordered]
    assert sorted(set(texts)) == texts


@given(st.lists(st.just("1"), min_size=1, max_size=(VERSION_LENGTH - 6 + 1) // 2))
def test_the_longest_text_fits_its_column(ones: list[str]) -> None:
    version = f"1.1.1-{'.'.join(ones)}"
    assert len(version) <= VERSION_LENGTH
    assert len(sort_text(version)) <= NAME_LENGTH * 2
