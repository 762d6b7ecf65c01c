"""Records of rollouts: what they keep, through kills and full disks, and what they say in the end."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import Judge, Verdict
from rollout.analysis.samples import Counts, Look
from rollout.records import record as records
from rollout.records.record import Record, read_summary
from tests.deadline import until
from tests.processes import FORK
from tests.rollout.record_samples import BASELINE, CANDIDATE, START, Simulation, canary, state, succeeded, taken_back

_FOLDER = "radiology.dev.tumour/20261121-154220-3f2a"


def _look(number: int, **given: Any) -> Look:
    counts = {BASELINE: Counts(90, 1, {5.0: 40, 2.5: 10, float("inf"): 90}, 0.25), CANDIDATE: Counts()}
    return Look(
        START.timestamp() + number, 1.0, **{"counts": counts, "weights": {BASELINE: 90, CANDIDATE: 10}, **given}
    )


_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_COUNTS = st.builds(
    Counts,
    requests=st.integers(0, 10**9),
    errors=st.integers(0, 10**9),
    latency_ms=st.dictionaries(st.floats(0.001, 1e9) | st.just(float("inf")), st.integers(0, 10**9), max_size=4),
    cpu_seconds=st.floats(0, 1e9),
)
_LOOKS = st.builds(
    Look,
    at=st.floats(0, 1e10),
    seconds=st.floats(0, 1e5),
    counts=st.dictionaries(st.text(max_size=8), _COUNTS, max_size=3),
    values=st.dictionaries(st.text(max_size=8), st.dictionaries(st.text(max_size=8), _NUMBERS, max_size=2), max_size=2),
    weights=st.dictionaries(st.text(max_size=8), st.integers(0, 100), max_size=3),
    shadow=st.dictionaries(st.text(max_size=8), st.floats(0, 100), max_size=1),
    problem=st.text(max_size=20),
    problems=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2),
)


@given(looks=st.lists(st.tuples(st.integers(0, 9), _LOOKS), max_size=4))
def test_looks_are_read_as_they_were_written(looks: list[tuple[int, Look]], tmp_path_factory: Any) -> None:
    record = Record(tmp_path_factory.mktemp("record") / "r", pytest.fail)
    for step, look in looks:
        record.look(step, look)
    assert list(record.looks()) == looks


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", pytest.fail)
    record.event("baking", START, step=1, weights={BASELINE: 1}, reason='é\n"\u2028')
    record.event("paused", START + timedelta(seconds=1.5), settings=RolloutSettings(), none=None)
    first, second = record.events()
    assert (first.kind, first.at) == ("baking", START.timestamp())
    assert first.facts == {"step": 1, "weights": {BASELINE: 1}, "reason": 'é\n"\u2028'}
    assert second.at == START.timestamp() + 1.5
    assert second.facts["settings"]["bake"] == "60s"


def test_a_secret_of_a_url_is_not_kept(tmp_path: Path) -> None:
    url = "https://me:s3cret@hooks.example.org/services/s3cret?token=s3cret"
    settings = RolloutSettings.model_validate(
        {"notify": [{"url": url}], "hooks": {"before": [{"url": url}, {"url_variable": "GATE_URL"}]}}
    )
    simulated = Simulation(tmp_path / _FOLDER, state(canary(100), settings=settings), {})
    simulated.record.event("driver", START, settings=settings)
    simulated.end("aborted", reason="no more")
    assert simulated.problems == []
    for file in simulated.record.folder.iterdir():
        assert "s3cret" not in file.read_text(), file
    assert "https://hooks.example.org" in (simulated.record.folder / "record.json").read_text()
    assert "GATE_URL" in (simulated.record.folder / "record.json").read_text()


def test_a_judge_comes_to_the_same_verdicts_from_the_record(tmp_path: Path) -> None:
    simulated = taken_back(tmp_path / _FOLDER)
    rollout = simulated.state
    again = Judge(rollout.settings, rollout.baseline, rollout.candidates)
    for step, look in Record(simulated.record.folder).looks():
        again.begin_step(step)
        again.see(look)
    last = [seen.verdicts for seen in simulated.record.seen() if seen.verdicts][-1]
    assert tuple(again.verdicts()) == last
    assert any(verdict.word == "fail" for verdict in last)


@pytest.mark.parametrize("kind", ["event", "look"])
def test_a_line_torn_anywhere_is_left_out_and_the_next_is_whole(kind: str, tmp_path: Path) -> None:
    record = Record(tmp_path / "r", pytest.fail)
    write: Callable[[int], None] = (
        (lambda number: record.event("baking", START, number=number))
        if kind == "event"
        else (lambda number: record.look(number, _look(number)))
    )
    read = (lambda: [event.facts["number"] for event in record.events()]) if kind == "event" else (
        lambda: [step for step, _ in record.looks()]
    )  # fmt: skip
    write(0)
    file = tmp_path / "r" / f"{kind}s.jsonl"
    whole = file.stat().st_size
    write(1)
    content = file.read_bytes()
    # Without its line feed alone, a line is whole.
    for length in range(whole, len(content) - 1):
        file.write_bytes(content[:length])
        assert read() == [0]
        write(2)
        assert read() == [0, 2]


def test_what_isnt_a_line_of_a_record_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", pytest.fail)
    record.look(0, _look(0))
    with (tmp_path / "r" / "looks.jsonl").open("ab") as file:
        file.write(b'{"schema": 2}\n[1]\n\xff\xfe\n{"schema": 1}\n')
        file.write(b'{"schema": 1, "step": 1, "at": 0, "seconds": 0, "counts": 3}\n')
    record.look(1, _look(1))
    assert [step for step, _ in record.looks()] == [0, 1]
    with (tmp_path / "r" / "events.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "kind": "baking", "at": "yesterday"}\n')
    assert record.events() == []


def _look_for_ever(folder: Path) -> None:
    record = Record(folder)
    for number in itertools.count():
        record.look(number, _look(number))


def test_looks_survive_a_kill(tmp_path: Path) -> None:
    writer = FORK.Process(target=_look_for_ever, args=(tmp_path / "r",), daemon=True)
    writer.start()
    record = Record(tmp_path / "r", pytest.fail)
    try:
        until(lambda: len(list(record.looks())) > 200, what="some looks")
    finally:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        writer.close()
    steps = [step for step, _ in record.looks()]
    assert steps == list(range(len(steps)))
    record.look(len(steps), _look(0))
    assert [step for step, _ in record.looks()] == [*steps, len(steps)]


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path / "disk")]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        folder = tmp_path / "disk" / _FOLDER
        simulated = Simulation(folder, state(canary(100)), {})
        for number in range(200):
            simulated.record.look(0, _look(number))
        simulated.end("succeeded")
        assert simulated.problems == [f"the record of the rollout is not complete: {folder}: No space left on device"]
        steps = [look.at - START.timestamp() for _, look in simulated.record.looks()]
        assert 10 < len(steps) < 200
        assert steps == list(range(len(steps)))
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_disk_that_fills_in_mid_line_loses_that_line_alone(tmp_path: Path) -> None:
    problems: list[str] = []
    record = Record(tmp_path / "r", problems.append)
    record.look(0, _look(0))
    size = (tmp_path / "r" / "looks.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
    try:
        record.look(1, _look(1))
        record.look(2, _look(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "r" / "looks.jsonl").stat().st_size == size + 40
    record.look(3, _look(3))
    assert len(problems) == 1
    assert [step for step, _ in record.looks()] == [0, 3]


def test_a_folder_that_is_a_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "radiology.dev.tumour").write_text("")
    simulated = Simulation(tmp_path / _FOLDER, state(canary(100)), {})
    simulated.record.look(0, _look(0))
    simulated.end("succeeded")
    assert len(simulated.problems) == 1
    assert list(simulated.record.looks()) == []


def test_a_week_of_looks_stays_small_and_loses_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_LOOKS", 100)
    record = Record(tmp_path / "r", pytest.fail)
    for number in range(900):
        record.look(number // 450, _look(number))
    found = list(record.looks())
    assert len(found) < 250
    assert max(look.seconds for _, look in found) <= 10
    for step in (0, 1):
        of_step = [look for index, look in found if index == step]
        assert sum(look.counts[BASELINE].requests for look in of_step) == 450 * 90
        assert sum(look.counts[BASELINE].latency_ms[5.0] for look in of_step) == 450 * 40
        assert sum(look.seconds for look in of_step) == 450
    assert [look.at for _, look in found] == sorted(look.at for _, look in found)
    # Another driver goes on with the same file.
    Record(tmp_path / "r", pytest.fail).look(1, _look(900))
    assert len(list(record.looks())) <= len(found) + 1


def test_looks_that_gates_tell_apart_are_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_LOOKS", 5)
    record = Record(tmp_path / "r", pytest.fail)
    looks = [
        (0, _look(0)),
        (1, _look(1)),
        (1, _look(2, weights={BASELINE: 50, CANDIDATE: 50})),
        (1, replace(_look(3, problem="no data"), counts={})),
        (1, _look(4, values={"accuracy": {BASELINE: 0.9}})),
        (1, _look(5)),
    ]
    for step, look in looks:
        record.look(step, look)
    assert list(record.looks()) == looks


def test_verdicts_are_kept_when_they_change_and_now_and_then(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", pytest.fail)
    words = ["inconclusive"] * 2000 + ["pass"] * 1000
    for number, word in enumerate(words):
        record.look(0, _look(number), [Verdict("errors", CANDIDATE, word, "", evidence=float("inf"))])  # type: ignore[arg-type]
    kept = [(seen.look.at - START.timestamp(), seen.verdicts[0]) for seen in record.seen() if seen.verdicts]
    assert kept[0][0] == 0
    assert next(at for at, verdict in kept if verdict.word == "pass") == 2000
    assert len(kept) < 550
    assert all(verdict.evidence > 1e300 for _, verdict in kept)


def test_the_record_says_what_became_of_the_rollout(tmp_path: Path) -> None:
    simulated = taken_back(tmp_path / _FOLDER)
    summary = read_summary(simulated.record)
    assert summary is not None
    assert simulated.problems == []
    assert summary["endpoint"] == "radiology/dev.tumour"
    assert (summary["id"], summary["by"], summary["strategy"]) == ("20261121-154220-3f2a", "ada@example.org", "canary")
    assert summary["outcome"] == "taken back"
    assert summary["revision_before"] == 7
    assert summary["started"] == START.isoformat()
    assert summary["ended"] == simulated.now.isoformat()
    assert summary["seconds"] == pytest.approx((simulated.now - START).total_seconds())
    assert [step["weights"] for step in summary["steps"]] == [dict(weights) for weights in canary(5, 25, 50, 100)[1:]]
    first, second, third, _ = summary["steps"]
    assert first["seconds"] == pytest.approx(20.2)
    assert datetime.fromisoformat(first["began"]) == START + timedelta(seconds=3.7)
    assert third["began"] is None
    assert [verdict["word"] for verdict in second["verdicts"] if verdict["gate"] == "error-ratio"] == ["fail"]
    assert summary["rollback"]["reason"].startswith("1.1.0 failed gate error-ratio: ")
    assert summary["rollback"]["seconds"] == pytest.approx(1.4)
    totals = {
        version: sum(look.counts[version].errors for _, look in simulated.record.looks())
        for version in (BASELINE, CANDIDATE)
    }
    assert {version: counts["errors"] for version, counts in summary["requests"].items()} == totals
    assert summary["lost"] == {"by_candidates": totals[CANDIDATE], "by_others": totals[BASELINE]}
    assert simulated.record.page.is_file()


def test_a_record_in_a_repository_names_its_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, content in {"HEAD": f"{commit}\n", "config": "[core]\n\trepositoryformatversion = 0\n"}.items():
        (tmp_path / ".git" / name).write_text(content)
    for name in ("objects", "refs"):
        (tmp_path / ".git" / name).mkdir()
    simulated = Simulation(tmp_path / _FOLDER, state(canary(100)), {})
    simulated.end("succeeded")
    summary = read_summary(simulated.record)
    assert summary is not None
    assert summary["git_commit"] == commit


def test_a_rollout_that_is_under_way_has_an_outline_and_no_record(tmp_path: Path) -> None:
    simulated = Simulation(tmp_path / _FOLDER, state(canary(100)), {})
    simulated.enter("waiting")
    simulated.enter("held", 3.0, "no data")
    simulated.record.draw(simulated.state, simulated.now)
    assert simulated.problems == []
    assert read_summary(simulated.record) is None
    outline = simulated.record.outline()
    assert (outline["id"], outline["outcome"], outline["reason"]) == ("20261121-154220-3f2a", "held", "no data")
    assert outline["started"] == START.isoformat()
    assert "held" in simulated.record.page.read_text()


def test_an_empty_record_has_an_outline(tmp_path: Path) -> None:
    assert Record(tmp_path / "r").outline()["outcome"] is None


def test_clocks_that_jump_leave_a_record(tmp_path: Path) -> None:
    simulated = Simulation(tmp_path / _FOLDER, state(canary(10, 100)), {})
    simulated.enter("waiting")
    for hours in (1, -3, 2):
        simulated.enter("baking", hours * 3600)
        simulated.record.look(0, replace(_look(0), at=simulated.now.timestamp()))
    simulated.now = START.astimezone(UTC) - timedelta(days=1)
    simulated.end("succeeded")
    assert simulated.problems == []
    assert simulated.record.page.is_file()


def test_a_rollout_that_succeeded_has_no_rollback(tmp_path: Path) -> None:
    summary = read_summary(succeeded(tmp_path / _FOLDER, percents=(10, 100), seconds=5).record)
    assert summary is not None
    assert summary["rollback"] is None
    assert all(step["seconds"] == pytest.approx(5, abs=0.5) for step in summary["steps"])


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    simulated = Simulation(tmp_path / _FOLDER, state(canary(100)), {})
    simulated.end("succeeded")
    assert stat.S_IMODE(simulated.record.page.stat().st_mode) == 0o644
