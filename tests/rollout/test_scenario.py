"""Scenarios of a bad release, played on a system that is none of ours: a web server that splits by a file's word."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks import scenario
from benchmarks.processes import BenchmarkError
from infra.settings import SettingsError
from tests.deadline import until

ROOT = Path(__file__).parents[2]


class OtherSystem:
    """Stands in for a peer: file `share` is the canary's share of requests, `errors-of-VERSION` how many of them fail.

    When the canary has failed as many as it bears, it takes the canary back and says so by a file.
    """

    def __init__(self, folder: Path, bears: int) -> None:
        self.folder = folder
        self.answered: Counter[tuple[str, int]] = Counter()
        self.bears, self._chance, self._lock = bears, random.Random(7), threading.Lock()
        for name, share in (("share", 0), ("errors-of-new", 0.5), ("errors-of-old", 0)):
            self.say(name, share)
        system = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else a small answer's second part waits for the first one's acknowledgement.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                version, status = system.answer()
                body = json.dumps({"served": {"by": version}} if status == 200 else {}).encode()
                self.send_response(status)
                self.send_header("x-served-by", version)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/infer"

    def answer(self) -> tuple[str, int]:
        with self._lock:
            version = "new" if self._happens("share") else "old"
            status = 500 if self._happens(f"errors-of-{version}") else 200
            self.answered[version, status] += 1
            if (version, status) == ("new", 500) and self.answered["new", 500] == self.bears:
                (self.folder / "noticed").touch()
                self.say("share", 0)
            return version, status

    def _happens(self, name: str) -> bool:
        return self._chance.random() < float((self.folder / name).read_text())

    def say(self, name: str, share: float) -> None:
        unfinished = self.folder / "unfinished"
        unfinished.write_text(str(share))
        unfinished.replace(self.folder / name)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[OtherSystem]:
    running = OtherSystem(tmp_path, bears=5)
    yield running
    running.close()


def document(system: OtherSystem, **changes: Any) -> dict[str, Any]:
    return {
        "name": "other",
        "request": {"url": system.url},
        "version": {"header": "x-served-by"},
        "baseline": "old",
        "canary": "new",
        "rate": 200,
        "start": "echo 0.3 > 2; mv 2 share",
        "rollback": "automatic",
        "settled": "500ms",
        "deadlines": {"canary": "10s", "back": "10s"},
    } | changes


def written(system: OtherSystem, **changes: Any) -> Path:
    file = system.folder / "scenario.yaml"
    file.write_text(yaml.safe_dump(document(system, **changes)))
    return file


def played(system: OtherSystem, **changes: Any) -> scenario.Run:
    return scenario.play(scenario.read(written(system, **changes)), 1, system.folder)


def test_a_system_that_takes_the_canary_back_is_measured(system: OtherSystem) -> None:
    run = played(system, noticed="until test -e noticed; do sleep 0.01; done")
    of_canary = {status: count for (version, status), count in system.answered.items() if version == "new"}
    assert run.canary_failures == of_canary[500] == 5
    assert run.canary_requests_in_all == sum(of_canary.values())
    assert 5 <= run.canary_requests <= run.canary_requests_in_all
    assert run.requests == system.answered.total()
    assert run.lost == 0
    assert 0 < run.to_last_answer < 5
    assert run.to_notice is not None
    assert run.to_move is not None
    assert run.to_notice <= run.to_last_answer + 0.2
    assert 0 <= run.to_move <= 0.2


def test_a_system_that_is_told_to_take_back_is_told_at_the_first_failure(system: OtherSystem) -> None:
    system.bears = 10_000
    run = played(system, rollback="echo 0 > 3; mv 3 share")
    assert run.to_notice is None
    assert 1 <= run.canary_failures < 20
    assert run.to_last_answer < 1


def test_a_healthy_canary_is_made_to_fail_once_it_answers(system: OtherSystem) -> None:
    system.say("errors-of-new", 0)
    run = played(system, fail="echo 1 > 1; mv 1 errors-of-new")
    assert run.canary_failures == run.canary_requests == 5
    assert run.canary_requests_in_all > 5


def test_a_version_can_be_told_by_json_where_failures_tell_none(system: OtherSystem) -> None:
    run = played(system, version={"json": "served.by", "untold": "canary"})
    assert run.canary_failures == system.answered["new", 500] == 5
    assert run.lost == 0


def test_what_the_canary_did_not_fail_is_lost(system: OtherSystem) -> None:
    system.say("errors-of-old", 0.1)
    run = played(system)
    assert run.lost == system.answered["old", 500] > 0


def test_without_a_word_on_failures_they_are_lost_and_the_canary_never_fails(system: OtherSystem) -> None:
    with pytest.raises(BenchmarkError, match="a failed answer by new did not come within 1 s"):
        played(system, version={"json": "served.by"}, deadlines={"canary": "1s"})


def test_the_number_of_the_run_reaches_its_commands(system: OtherSystem) -> None:
    wanted = scenario.read(written(system, before="echo ${run} $$HOME > number"))
    scenario.play(wanted, 7, system.folder, {"HOME": "/home/of/nobody", "PATH": "/usr/bin:/bin"})
    assert (system.folder / "number").read_text() == "7 /home/of/nobody\n"


def test_a_start_that_fails_ends_the_run_with_its_words(system: OtherSystem) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)exit status 3.*no such release"):
        played(system, start="echo no such release; exit 3")


def test_commands_that_still_run_at_the_end_are_ended(system: OtherSystem) -> None:
    played(system, noticed="sleep 1000 & echo $$! > pid; wait")
    pid = int((system.folder / "pid").read_text())
    # Its new parent may take its time to bury it.
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"raet": 5}, r"scenario\.raet: given 5: unknown key; did you mean 'rate'\?"),
        ({"canary": 1.1}, r"scenario\.canary: given 1\.1: .*string"),
        ({"canary": "old"}, "baseline and canary are both 'old'"),
        ({"version": {}}, r"scenario\.version: .*give 'header' or 'json'"),
        ({"request": {"url": "diagnostics/tumour"}}, r"scenario\.request\.url: given 'diagnostics/tumour'"),
        ({"settled": 5}, r"scenario\.settled: given 5: a duration is"),
        ({"start": "deploy ${port}"}, "start: no variable 'port'; known here: run"),
        ({"start": "deploy $1"}, r"start: given 'deploy \$1': .* a dollar sign \$\$"),
        ({"variables": ["port"]}, r"variables: given \['port'\]: a mapping"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_with_what_would_be_right(
    system: OtherSystem, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        scenario.read(written(system, **changes))


def test_variables_have_defaults_and_only_those_can_be_given(system: OtherSystem) -> None:
    file = written(system, variables={"share": 10, "name": "x"}, start="shift ${name}=${share}")
    assert scenario.read(file).start == "shift x=10"
    assert scenario.read(file, {"share": "20"}).start == "shift x=20"
    with pytest.raises(SettingsError, match="there is no variable 'shares'; known here: name, share"):
        scenario.read(file, {"shares": "20"})


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/scenarios").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_published_scenario_can_be_read(file: Path) -> None:
    assert scenario.read(file).rate == 100


def test_the_command_prints_the_numbers_and_minds_the_bounds(system: OtherSystem) -> None:
    file, figures = written(system, bounds={"canary_requests": 1}), system.folder / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "scenario", str(file), "--runs", "1", "--output", str(figures)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        [*command, "--check"], cwd=system.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1, outcome.stderr
    assert "first failed canary answer to last canary answer" in outcome.stdout
    assert "goal missed: other, most: canary requests in that time" in outcome.stdout
    assert json.loads(figures.read_text())["rounds"]["runs"][0]["run"]["lost"] == 0
