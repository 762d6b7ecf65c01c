"""Versions are evaluated through servers that really run; what fails is that version's alone, and nothing is left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
from sklearn import metrics

from infra.settings.version import ServerSettings
from model_packaging.errors import DatasetRefused, EvaluationRefused
from model_packaging.evaluation import server
from model_packaging.evaluation.dataset import open_dataset
from model_packaging.evaluation.engines.local import LocalEngine
from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.plan import plan_all
from model_packaging.evaluation.results import Evaluation, EvaluationRun, Failure
from model_packaging.evaluation.run import evaluate
from model_packaging.evaluation.version import Outcome, Progress
from tests.deadline import until
from tests.evaluation.conftest import FEATURES, LABELS_AND_SCORES, VALUE, SameProcess, Version, package, write

TEXT = "score,other,label\n0.1,0,malignant\n0.9,0,benign\n0.8,0,malignant\n0.7,0,benign"


def run(*requests: EvaluationRequest, data: Path, **options: Any) -> EvaluationRun:
    given = {"target": "label", "latency_requests": 0, "ready_timeout": "20s", "request_timeout": "20s", **options}
    return evaluate(requests, data, Options(**given), SameProcess())


def only(found: EvaluationRun) -> Evaluation:
    assert found.failures == ()
    [evaluation] = found.evaluations
    return evaluation


def reason(found: EvaluationRun) -> str:
    assert found.evaluations == ()
    [failure] = found.failures
    return failure.reason


def requests_to(request: EvaluationRequest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (request.folder / "requests.jsonl").read_text().splitlines()]


def pid_of(request: EvaluationRequest, name: str = "server.pid") -> int:
    file = request.folder / name
    return int(until(lambda: file.exists() and file.read_text(), what=f"{name} in {request.folder}"))


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_metrics_are_those_of_the_answers(version: Version, table: Path, rows: np.ndarray) -> None:
    found = only(run(version(), data=table, batch_rows=7))
    truth, scores = rows[:, 2], rows[:, 0]
    assert found.metrics["accuracy"] == metrics.accuracy_score(truth, scores >= 0.5)
    assert found.metrics["f1"] == pytest.approx(metrics.f1_score(truth, scores >= 0.5))
    assert found.metrics["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found.metrics["log_loss"] == pytest.approx(metrics.log_loss(truth, scores))
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, scores >= 0.5))
    assert (found.classes, found.positive, found.rows) == ((0, 1), 1, 40)
    assert found.dataset.digest.startswith("sha256:")


def test_rows_are_sent_once_each_in_batches_of_the_size_asked(version: Version, table: Path, rows: np.ndarray) -> None:
    request = version()
    run(request, data=table, batch_rows=16)
    sent = [body["inputs"][0] for body in requests_to(request)]
    assert [tensor["shape"] for tensor in sent] == [[16, 2], [16, 2], [8, 2]]
    data = np.concatenate([np.reshape(tensor["data"], tensor["shape"]) for tensor in sent])
    assert np.array_equal(data, rows[:, :2])


def test_requests_in_flight_together_keep_the_order_of_the_rows(version: Version, table: Path) -> None:
    one, several = (
        run(version("1.0.0"), data=table),
        run(version("1.0.0", "right-again"), data=table, concurrency=8, batch_rows=3),
    )
    assert only(several).metrics == only(one).metrics


def test_requests_carry_the_parameters_of_the_package_s_sample(version: Version, table: Path) -> None:
    tensor = {"name": "features", "shape": [1, 2], "datatype": "FP64", "parameters": {"content_type": "np"}}
    request = version(sample={"inputs": [tensor | {"data": [0, 0]}], "parameters": {"content_type": "pd"}})
    run(request, data=table)
    [body] = requests_to(request)
    assert body["parameters"] == {"content_type": "pd"}
    assert body["inputs"][0]["parameters"] == {"content_type": "np"}
    assert body["outputs"] == [{"name": "predict"}, {"name": "predict_proba"}]


def test_latency_is_of_as_many_single_rows_as_asked(version: Version, table: Path) -> None:
    request = version()
    latency = only(run(request, data=table, latency_requests=50)).latency
    assert latency is not None
    assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms
    assert (latency.requests, latency.neighbours) == (50, 0)
    assert [body["inputs"][0]["shape"][0] for body in requests_to(request)] == [40] + [1] * 50


def test_a_regressor_is_judged_by_its_values(version: Version, table: Path, rows: np.ndarray) -> None:
    found = only(run(version(outputs=VALUE), data=table, target="other", features=["score", "label"]))
    assert found.task == "regression"
    assert found.metrics["mae"] == pytest.approx(metrics.mean_absolute_error(rows[:, 1], rows[:, 0]))
    assert found.metrics["r2"] == pytest.approx(metrics.r2_score(rows[:, 1], rows[:, 0]))


def test_labels_alone_are_judged_without_scores(version: Version, table: Path) -> None:
    found = only(run(version(outputs=LABELS_AND_SCORES[:1]), data=table))
    assert "accuracy" in found.metrics
    assert "roc_auc" not in found.metrics


def test_labels_of_text_are_compared_as_text(version: Version, tmp_path: Path) -> None:
    data = write(tmp_path / "text.csv", TEXT)
    outputs = [{"name": "predict", "shape": [-1], "datatype": "BYTES"}]
    found = only(run(version(behaviour="text", outputs=outputs), data=data))
    assert found.metrics["accuracy"] == 0.75
    assert found.classes == ("benign", "malignant")


def test_numbers_for_labels_of_text_are_positions_in_the_classes_stated(version: Version, tmp_path: Path) -> None:
    data = write(tmp_path / "text.csv", TEXT)
    assert only(run(version(), data=data, classes=["malignant", "benign"])).metrics["accuracy"] == 0.75
    assert "state the classes in the order of the numbers" in reason(run(version("2.0.0"), data=data))


def test_a_threshold_is_chosen_on_rows_that_no_metric_is_about(version: Version, table: Path, rows: np.ndarray) -> None:
    found = only(run(version(), data=table, objective="recall@precision=0.8", selection_share=0.5))
    threshold = found.threshold
    assert threshold is not None
    assert (found.rows, threshold.selection_rows, threshold.same_rows) == (20, 20, False)
    assert sum(map(sum, found.confusion)) == sum(map(sum, threshold.confusion)) == 20
    assert found.flat_metrics()["threshold"] == threshold.value
    assert found.flat_metrics()["recall_at_threshold"] == threshold.metrics["recall"]


def test_the_same_rows_can_choose_the_threshold_as_the_result_says(
    version: Version, table: Path, rows: np.ndarray
) -> None:
    found = only(run(version(), data=table, objective="f1", selection_share=0)).threshold
    assert found is not None
    assert found.same_rows
    assert found.metrics["f1"] == pytest.approx(metrics.f1_score(rows[:, 2], rows[:, 0] >= found.value))
    assert found.metrics["f1"] == pytest.approx(found.objective_value)


def test_an_objective_out_of_reach_leaves_the_metrics_and_says_so(version: Version, tmp_path: Path) -> None:
    data = write(tmp_path / "noise.csv", "\n".join(["score,other,label", *["0.7,0,0", "0.7,0,1"] * 10]))
    found = only(run(version(), data=data, objective="recall@precision=0.99"))
    assert found.threshold is None
    assert any("no threshold meets the objective recall@precision=0.99" in note for note in found.notes)


def test_scores_in_another_order_than_the_labels_are_pointed_out(version: Version, table: Path) -> None:
    found = only(run(version(behaviour="worse"), data=table))
    assert any("is not the class of the highest score in 25.0%" in note for note in found.notes)


def test_versions_are_compared_with_the_first_on_the_same_rows(version: Version, table: Path) -> None:
    found = run(version("1.0.0"), version("1.1.0", "worse"), data=table)
    [comparison] = found.comparisons
    first, second = found.evaluations
    assert (comparison.baseline, comparison.version) == ("tumour:1.0.0", "tumour:1.1.0")
    assert comparison.difference == pytest.approx(second.metrics["accuracy"] - first.metrics["accuracy"])


def test_results_are_json_and_back(version: Version, table: Path) -> None:
    found = run(version(), data=table, objective="f1", latency_requests=5)
    assert EvaluationRun.model_validate_json(found.model_dump_json()) == found


def test_progress_is_told_from_waiting_to_done(version: Version, table: Path) -> None:
    told: list[Progress] = []
    options = Options(target="label", batch_rows=20, latency_requests=1)
    evaluate([version()], table, options, LocalEngine(), told.append)
    assert [(one.stage, one.rows) for one in told] == [
        ("waiting", 0), ("starting", 0), ("predicting", 0), ("predicting", 20), ("predicting", 40), ("measuring", 40),
        ("done", 40),
    ]  # fmt: skip


# What is refused before any server starts


def test_bad_data_is_refused_before_a_server_starts(version: Version, tmp_path: Path) -> None:
    good, bad = version("1.0.0"), version("1.1.0", inputs=[{"name": "size", "shape": [-1, 3], "datatype": "FP64"}])
    data = write(tmp_path / "held-out.csv", "score,other,label\n0.1,0,0\n0.9,0,1")
    with pytest.raises(DatasetRefused, match=r"tumour:1\.1\.0: "):
        run(good, bad, data=data)
    assert list(good.folder.iterdir()) == []


def test_a_version_named_twice_is_refused(version: Version, table: Path) -> None:
    request = version()
    with pytest.raises(EvaluationRefused, match=r"tumour:1\.0\.0 is named twice"):
        run(request, request, data=table)


# What goes wrong with one version


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        ("fails", 'answered 500 to POST /v2/models/tumour/infer: {"error": "the weights are wrong"}'),
        ("short", "has shape [39] for 40 rows"),
        ("nan", "output 'predict_proba' holds NaN"),
        ("unknown", "the label 7 was answered, which is none of the classes 0, 1"),
        ("other-version", "by version '9.9.9', and 1.0.0 was asked"),
    ],
)
def test_a_wrong_answer_fails_its_version(version: Version, table: Path, behaviour: str, problem: str) -> None:
    assert problem in reason(run(version(behaviour=behaviour), data=table))


def test_a_server_that_dies_fails_its_version_with_its_last_words(version: Version, table: Path) -> None:
    said = reason(run(version(behaviour="dies"), data=table))
    assert "gave no answer" in said
    assert "ended with status 3" in said
    assert said.endswith("out of memory, says the server")


def test_a_server_that_hangs_fails_its_version_in_time(version: Version, table: Path) -> None:
    request = version(behaviour="hangs")
    assert "gave no answer to POST" in reason(run(request, data=table, request_timeout="500ms"))
    assert is_gone(pid_of(request))


def test_one_version_s_failure_leaves_the_others_results(version: Version, table: Path) -> None:
    requests = [version("1.0.0", "dies"), version("1.1.0", "other-version"), version("1.2.0")]
    found = evaluate(requests, table, Options(target="label", latency_requests=0), LocalEngine(2))
    assert [failure.version for failure in found.failures] == ["1.0.0", "1.1.0"]
    assert [evaluation.version for evaluation in found.evaluations] == ["1.2.0"]


def served_by(folder: Path, *command: str) -> EvaluationRequest:
    settings = ServerSettings(command=[command[0], "--http-port={http_port}", *command[1:]])
    return EvaluationRequest(model="tumour", version="1.0.0", folder=folder, package=package(FEATURES), server=settings)


def test_a_server_that_never_becomes_ready_fails_its_version(model_server: Path, tmp_path: Path, table: Path) -> None:
    request = served_by(tmp_path, str(model_server), "--never-ready")
    said = reason(run(request, data=table, ready_timeout="1s"))
    assert "was not ready within 1 s (GET /v2/health/ready)" in said
    assert "never becoming ready, as --never-ready asks" in said


def test_a_server_that_ends_too_early_fails_its_version(model_server: Path, tmp_path: Path, table: Path) -> None:
    request = served_by(tmp_path, str(model_server), "--never-ready", "--exit-after=100ms")
    said = reason(run(request, data=table))
    assert "did not become ready and ended with status 1" in said
    assert "exiting after 100ms" in said


def test_a_server_with_other_outputs_fails_its_version(model_server: Path, tmp_path: Path, table: Path) -> None:
    request = served_by(tmp_path, str(model_server), "--model={model}", "--version={version}")
    assert "has no output 'predict'; it has version" in reason(run(request, data=table))


def test_a_server_that_does_not_exist_fails_its_version(tmp_path: Path, table: Path) -> None:
    said = reason(run(served_by(tmp_path, "no-such-server"), data=table))
    assert "no-such-server: No such file or directory" in said


def test_an_error_of_ours_fails_its_version_alone(version: Version, table: Path) -> None:
    plans = plan_all([version("1.0.0"), version("1.1.0")], open_dataset(table), Options(target="label"))
    broken = dataclasses.replace(plans[0], roles=cast("Any", None))
    found = SameProcess().run([broken, plans[1]], lambda _: None)
    assert isinstance(found[0], Failure)
    assert "not yours to mend" in found[0].reason
    assert isinstance(found[1], Outcome)


# What is left


def test_a_stubborn_server_and_its_child_are_ended(
    version: Version, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STOP_SECONDS", 0.2)
    request = version(behaviour="stubborn")
    only(run(request, data=table))
    assert is_gone(pid_of(request))
    assert is_gone(pid_of(request, "child.pid"))


EVALUATE = """
import signal
import sys
from pathlib import Path
from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.run import evaluate
if __name__ == "__main__":
    # Processes of a shell's background, where these tests may run, are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = EvaluationRequest.model_validate_json(Path(sys.argv[1]).read_text())
    evaluate([request], Path(sys.argv[2]), Options(target="label"))
"""


@pytest.fixture
def evaluating(version: Version, table: Path, tmp_path: Path) -> Any:
    """An evaluation in a process of its own, waiting for an answer that never comes; and its version."""
    request = version(behaviour="hangs")
    script, document = (
        write(tmp_path / "script.py", EVALUATE),
        write(tmp_path / "request.json", request.model_dump_json()),
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, str(script), str(document), str(table)],
        env=os.environ | {"TMPDIR": str(scratch)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        until((request.folder / "requests.jsonl").exists, 60, what="the first request")
        yield process, request, scratch
        process.kill()


def test_ctrl_c_ends_server_and_processes_and_leaves_no_file(evaluating: Any) -> None:
    process, request, scratch = evaluating
    children = psutil.Process(process.pid).children(recursive=True)
    # As a terminal does it: to the whole process group.
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    until(lambda: is_gone(pid_of(request)) and all(is_gone(child.pid) for child in children), what="the end of all")
    assert list(scratch.iterdir()) == []


def test_kill_9_of_the_evaluation_ends_the_server_too(evaluating: Any) -> None:
    process, request, _ = evaluating
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    until(lambda: is_gone(pid_of(request)) and all(is_gone(child.pid) for child in children), what="the end of all")


def test_kill_9_of_a_worker_ends_its_server_and_fails_its_version_alone(version: Version, table: Path) -> None:
    hanging, good = version("1.0.0", "hangs"), version("1.1.0")

    def kill_worker(progress: Progress) -> None:
        if (progress.version, progress.stage) == (hanging.version, "predicting"):
            server = psutil.Process(pid_of(hanging))
            guard = server.parent()
            assert guard is not None
            worker = guard.parent()
            assert worker is not None
            worker.kill()

    found = evaluate([hanging, good], table, Options(target="label", latency_requests=0), LocalEngine(2), kill_worker)
    assert [evaluation.version for evaluation in found.evaluations] == ["1.1.0"]
    assert "ended with status -9" in found.failures[0].reason
    assert is_gone(pid_of(hanging))
