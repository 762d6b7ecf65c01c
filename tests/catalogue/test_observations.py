"""What evaluations found and where versions run is kept, with what was so before."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from infra.settings import SettingsError
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.errors import NotInCatalogue, RecordRefused
from tests.catalogue.versions import register


def test_what_the_package_states_are_results_on_the_data_set_package(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, evaluation={"accuracy": 0.9, "loss": 0.1})
    results = catalogue.show(model, "1.0.0").results
    assert {(each.dataset, each.metric, each.value, each.who) for each in results} == {
        ("package", "accuracy", 0.9, "builder"),
        ("package", "loss", 0.1, "builder"),
    }


def test_a_new_evaluation_is_the_latest_as_a_whole_and_the_old_one_stays(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    moment = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    catalogue.record_evaluation(model, "1.0.0", {"f1": 0.5, "recall": 0.4}, dataset="holdout", who="ada", at=moment)
    catalogue.record_evaluation(model, "1.0.0", {"f1": 0.6}, dataset="holdout", who="bob")
    catalogue.record_evaluation(model, "1.0.0", {"f1": 0.7}, dataset="other", who="bob")
    record = catalogue.show(model, "1.0.0")
    assert [(each.dataset, each.metric, each.value, each.latest) for each in record.results] == [
        ("holdout", "f1", 0.5, False),
        ("holdout", "recall", 0.4, False),
        ("holdout", "f1", 0.6, True),
        ("other", "f1", 0.7, True),
    ]
    assert (record.results[0].who, record.results[0].at) == ("ada", moment)
    assert record.summary.metrics == {"holdout": {"f1": 0.6}, "other": {"f1": 0.7}}


def test_no_evaluation_is_taken_for_what_the_package_states(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, evaluation={"accuracy": 0.9})
    with pytest.raises(RecordRefused, match=r"data set 'package' stands for what package\.yaml states.*another name"):
        catalogue.record_evaluation(model, "1.0.0", {"accuracy": 1.0}, dataset="package", who="ada")
    assert catalogue.show(model, "1.0.0").summary.metrics == {"package": {"accuracy": 0.9}}


def test_values_come_back_to_the_last_bit(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    values = {"tiny": 5e-324, "third": 1 / 3, "large": 1.7976931348623157e308, "negative": -0.1}
    catalogue.record_evaluation(model, "1.0.0", values, dataset="holdout", who="ada")
    assert catalogue.show(model, "1.0.0").summary.metrics == {"holdout": values}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_no_number_is_refused_with_all_of_its_evaluation(
    catalogue: Catalogue, model: str, value: float
) -> None:
    register(catalogue, model)
    with pytest.raises(RecordRefused, match="metric 'loss' is"):
        catalogue.record_evaluation(model, "1.0.0", {"f1": 0.5, "loss": value}, dataset="holdout", who="ada")
    assert catalogue.show(model, "1.0.0").results == ()


def test_an_evaluation_needs_a_metric_and_a_version(catalogue: Catalogue, model: str) -> None:
    with pytest.raises(NotInCatalogue):
        catalogue.record_evaluation(model, "1.0.0", {"f1": 0.5}, dataset="holdout", who="ada")
    register(catalogue, model)
    with pytest.raises(RecordRefused, match="no metric"):
        catalogue.record_evaluation(model, "1.0.0", {}, dataset="holdout", who="ada")
    with pytest.raises(RecordRefused, match="dataset is empty"):
        catalogue.record_evaluation(model, "1.0.0", {"f1": 0.5}, dataset="", who="ada")


def test_a_deployment_is_noted_once_a_revision(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    stack = f"prod.{model}-1.0.0"
    assert catalogue.record_deployment(model, "1.0.0", environment="prod", stack=stack, revision=1, who="ops")
    assert not catalogue.record_deployment(model, "1.0.0", environment="prod", stack=stack, revision=1, who="ops")
    assert catalogue.record_deployment(
        model, "1.0.0", environment="prod", stack=stack, revision=2, removed=True, who="ops"
    )
    deployments = catalogue.show(model, "1.0.0").deployments
    assert [(each.revision, each.removed, each.latest) for each in deployments] == [(1, False, False), (2, True, True)]


def test_an_endpoints_revision_sets_the_weights_of_all_its_versions(catalogue: Catalogue, model: str) -> None:
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        register(catalogue, model, version)
    for revision, weights in ((1, {"1.0.0": 90, "1.1.0": 10}), (2, {"1.1.0": 10, "2.0.0": 0})):
        catalogue.record_weights(
            model, weights, environment="prod", stack=f"prod.{model}", revision=revision, who="ops"
        )
    last = {version: catalogue.show(model, version).deployments[-1] for version in ("1.0.0", "1.1.0", "2.0.0")}
    assert {version: (each.revision, each.weight, each.removed) for version, each in last.items()} == {
        "1.0.0": (2, None, True),
        "1.1.0": (2, 10, False),
        "2.0.0": (2, 0, False),
    }


def test_weights_with_a_version_that_is_not_there_are_not_noted_at_all(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model)
    with pytest.raises(NotInCatalogue):
        catalogue.record_weights(
            model, {"1.0.0": 90, "2.0.0": 10}, environment="prod", stack=f"prod.{model}", who="ops"
        )
    with pytest.raises(SettingsError, match=f"weight of {model} 1.0.0: given -1"):
        catalogue.record_weights(model, {"1.0.0": -1}, environment="prod", stack=f"prod.{model}", who="ops")
    assert catalogue.show(model, "1.0.0").deployments == ()
