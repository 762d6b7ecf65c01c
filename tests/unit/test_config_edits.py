"""Edits of a config file: they say what they should, and the comments stay beside what they are about."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from rollout.config_edits import merge
from rollout.project import ROLLOUT_KEY, Project, StackConfig, write_config

KEY = "lepton:endpoint"
ADDRESS = "diagnostics/dev.scan"
OLD = """\
      # stable since May
      - version: 1.0.0 # do not drop
        weight: 100
"""
NEW = """\

      # the candidate
      - version: 1.1.0
        weight: 0 # for now
"""
ANOTHER = """\
      - version: 1.2.0
        weight: 0
"""
HEAD = """\
# Who to ask: ana
config:
  lepton:endpoint:
    environment: dev
    model: scan # of lungs
    variants: # the split
"""
TAIL = """\

    # as agreed with the ward
    timeouts:
      total: 30s
  # made by Pulumi
encryptionsalt: v1:salt
"""


@pytest.fixture
def endpoint(tmp_path: Path) -> StackConfig:
    team = tmp_path / "stacks" / "diagnostics"
    team.mkdir(parents=True)
    (team / "Pulumi.yaml").write_text("name: diagnostics\n")
    (team / "Pulumi.dev.scan.yaml").write_text(HEAD + OLD + NEW + TAIL)
    return Project(tmp_path).stack(ADDRESS)


def give(endpoint: StackConfig, weights: dict[str, int], **more: Any) -> str:
    """The file's text once its variants are these."""
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    write_config(endpoint, {KEY: endpoint.document() | {"variants": variants} | more})
    assert endpoint.document()["variants"] == variants
    return endpoint.file.read_text()


def test_a_variant_that_is_added_comes_before_the_comment_of_the_next_key(endpoint: StackConfig) -> None:
    assert give(endpoint, {"1.0.0": 100, "1.1.0": 0, "1.2.0": 0}) == HEAD + OLD + NEW + ANOTHER + TAIL


def test_one_that_was_added_and_goes_again_leaves_the_file_as_it_was(endpoint: StackConfig) -> None:
    give(endpoint, {"1.0.0": 100, "1.1.0": 0, "1.2.0": 0})
    assert give(endpoint, {"1.0.0": 100, "1.1.0": 0}) == HEAD + OLD + NEW + TAIL


def test_a_variant_that_goes_takes_its_own_comments_alone(endpoint: StackConfig) -> None:
    assert give(endpoint, {"1.1.0": 0}) == HEAD + "      # stable since May\n" + NEW + TAIL


def test_variants_are_told_apart_by_their_version(endpoint: StackConfig) -> None:
    between = ANOTHER.replace("weight: 0", "weight: 7")
    kept = NEW.replace("weight: 0", "weight: 3")
    assert give(endpoint, {"1.0.0": 100, "1.2.0": 7, "1.1.0": 3}) == HEAD + OLD + between + kept + TAIL


def test_variants_in_another_order_are_written_in_that_order(endpoint: StackConfig) -> None:
    assert "as agreed with the ward" in give(endpoint, {"1.1.0": 60, "1.0.0": 40})


def test_a_key_that_comes_and_goes_leaves_the_file_as_it_was(endpoint: StackConfig) -> None:
    document = endpoint.document()
    write_config(endpoint, {KEY: document | {"baseline": "1.0.0"}, ROLLOUT_KEY: {"id": "1", "steps": [{"step": 1}]}})
    during = endpoint.file.read_text()
    assert during.endswith("\n  # made by Pulumi\nencryptionsalt: v1:salt\n")

    write_config(endpoint, {KEY: document, ROLLOUT_KEY: None})

    assert endpoint.file.read_text() == HEAD + OLD + NEW + TAIL


def test_a_key_that_goes_leaves_the_comment_of_the_next(endpoint: StackConfig) -> None:
    text = endpoint.file.read_text()
    named = "    baseline: 1.0.0 # judged against\n    # who\n    variants:"
    endpoint.file.write_text(text.replace("    variants:", named))
    document = endpoint.document()
    del document["baseline"]
    write_config(endpoint, {KEY: document})
    assert endpoint.file.read_text() == text.replace("    variants:", "    # who\n    variants:")


_scalars = st.integers(0, 3) | st.sampled_from(["a", "on", "1.0.0", "", "# no"])
_documents = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["version", "weight", "x"]), inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"version": st.sampled_from("abc"), "weight": inner}), max_size=4)
    ),
    max_leaves=12,
)


def test_a_first_key_that_goes_leaves_the_comment_of_the_next() -> None:
    content: Any = YAML().load("config:\n  a: 1 # its own\n  # about b\n  b: 2\nsalt: 1\n")
    merge(content, "config", {"b": 2})
    assert dumped(content) == "config:\n  # about b\n  b: 2\nsalt: 1\n"


@given(_documents, _documents)
@example({"version": 0}, {"weight": 0})
def test_what_is_merged_is_what_is_read_back(before: object, after: object) -> None:
    written = yaml.safe_dump({"config": before}) + "# made by Pulumi\nsalt: 1\n"
    content: Any = YAML().load(written)
    merge(content, "config", after)
    merged = dumped(content)
    assert YAML(typ="safe").load(merged) == {"config": after, "salt": 1}
    # The library itself loses it after `- - {}`, which no config file has.
    if "# made by Pulumi" in dumped(YAML().load(written)):
        assert "# made by Pulumi" in merged


def dumped(content: Any) -> str:
    text = StringIO()
    YAML().dump(content, text)
    return text.getvalue()
