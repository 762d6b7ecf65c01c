"""A bad release as a file says it: constant load, a canary that fails, and how long until nobody meets it any more.

It knows the system under test by its URL and by commands alone, so that one file's numbers can be set beside another's:
`python -m benchmarks scenario FILE`, and docs/benchmarks.md for the file's keys.
"""

from __future__ import annotations

import os
import signal
import string
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from benchmarks.open_loop import BODY, CONTENT_TYPE, Answer, OpenLoop, Request, VersionIn, header, json_field
from benchmarks.processes import BenchmarkError
from benchmarks.results import Cell, Goal, Spread, Table
from infra.settings import SettingsError, parse_settings
from infra.settings.values import Seconds, Settings

_POLL_SECONDS = 0.01
_RUN = "${run}"
_WORDS = 2000
"""Characters of a failed command's words that its error repeats."""


# -- what a file says


class VersionTold(Settings):
    """Where an answer says which version gave it."""

    header: str | None = None
    json_field: str | None = Field(default=None, alias="json")
    """Names joined with dots, list items by number: `outputs.0.data.0`."""
    untold: Literal["lost", "canary"] = "lost"
    """Whose an answer is that failed and tells no version: nobody's, or the canary's, as the baseline is healthy."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> VersionTold:
        if (self.header is None) == (self.json_field is None):
            raise ValueError("an answer tells its version by a header or in its JSON: give 'header' or 'json'")
        return self

    def version_in(self) -> VersionIn:
        return header(self.header) if self.header is not None else json_field(self.json_field or "")


class Asked(Settings):
    """The request that the load repeats."""

    url: str = Field(pattern=r"^https?://[^/]+")
    method: str = "POST"
    headers: dict[str, str] = Field(default_factory=lambda: dict(CONTENT_TYPE))
    body: str = BODY


class Deadlines(Settings):
    """How long each part of a run may take before it counts as failed."""

    before: Seconds = 300.0
    """The command `before`."""
    canary: Seconds = 120.0
    """From the command `start` to the first canary answer that failed."""
    back: Seconds = 300.0
    """From then to the last canary answer."""
    end: Seconds = 120.0
    """From then to the end of the command `start`."""


class Bounds(Settings):
    """What a run should not exceed, where that is said."""

    seconds: float | None = Field(default=None, gt=0)
    """From the first failed canary answer to the last canary answer."""
    canary_requests: int | None = Field(default=None, gt=0)
    """In that time."""
    lost: int | None = Field(default=0, ge=0)
    """Requests that failed and that the canary did not answer."""


class Scenario(Settings):
    """A bad release of one system. Commands are lines for `sh`, run where `python -m benchmarks` is."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    about: str = ""
    request: Asked
    version: VersionTold
    baseline: str
    canary: str
    """The two versions, as answers say them."""
    rate: float = Field(default=100.0, gt=0, le=2000)
    """Requests a second."""
    before: str | None = None
    """Brings the system to where the canary has no traffic; run before the load of each run."""
    start: str
    """Gives the canary traffic. It may last as long as the release does."""
    fail: str | None = None
    """Makes the canary fail; run once it has answered. Left out: it fails from its start."""
    rollback: str
    """`automatic`, or what takes the canary back, run at the first failed canary answer: as by one who sees at once."""
    noticed: str | None = None
    """Ends with status 0 once the system has noticed by itself; run from the first canary answer on."""
    settled: Seconds = 5.0
    """No canary answer for so long: there is no more to come."""
    deadlines: Deadlines = Field(default_factory=Deadlines)
    bounds: Bounds = Field(default_factory=Bounds)

    @model_validator(mode="after")
    def _compares_two(self) -> Scenario:
        if self.baseline == self.canary:
            raise ValueError(f"baseline and canary are both {self.canary!r}; answers have to tell them apart")
        return self


def read(file: Path, given: Mapping[str, str] | None = None) -> Scenario:
    """The scenario in a file, with `${NAME}` filled in from its `variables` and from those that are `given`.

    `${run}` stays: it is each run's number. A dollar sign is written `$$`.

    Raises:
        SettingsError: when the file can't be read or used, with all that is wrong in it.
    """
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{file}: a scenario is a mapping with 'request', 'start', …; see docs/benchmarks.md")
    defaults = document.pop("variables", None) or {}
    if not isinstance(defaults, dict) or not all(isinstance(value, str | int) for value in defaults.values()):
        raise SettingsError(f"{file}: variables: given {defaults!r}: a mapping of names to text or numbers")
    variables = {str(name): str(value) for name, value in defaults.items()}
    for name in (given or {}).keys() - variables.keys():
        raise SettingsError(
            f"{file}: there is no variable {name!r}; known here: {', '.join(sorted(variables)) or 'none'}"
        )
    variables |= given or {}
    return parse_settings(Scenario, _filled(document, variables, str(file)), file=str(file), key="scenario")


def _filled(value: Any, variables: Mapping[str, str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, variables, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return string.Template(value).substitute({"run": _RUN, **variables})
    except KeyError as error:
        known = ", ".join(sorted([*variables, "run"]))
        raise SettingsError(f"{where}: no variable {error.args[0]!r}; known here: {known}") from None
    except ValueError:
        raise SettingsError(f"{where}: given {value!r}: a variable is ${{NAME}}, a dollar sign $$") from None


# -- a run


@dataclass(frozen=True)
class Run:
    """What one run of a scenario came to. Times are in seconds."""

    to_last_answer: float
    """From the first failed canary answer to the last canary answer."""
    to_notice: float | None
    """From there to when the system had noticed."""
    to_move: float | None
    """From then to the last canary answer; 0 where none came after."""
    noticed_at: float | None
    """On the monotonic clock."""
    canary_requests: int
    """Answered by the canary from its first failed answer to its last."""
    canary_failures: int
    """How many of these failed."""
    canary_requests_in_all: int
    lost: int
    """Failed requests that the canary did not answer, of the whole run."""
    requests: int

    def figures(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if value is not None and name != "noticed_at"}


def play(scenario: Scenario, number: int, folder: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Makes one run. Its commands run in `folder`, with `environment`, or this process's own.

    Raises:
        BenchmarkError: when a command fails, or a part of the run misses its deadline.
    """
    asked = scenario.request
    request = Request(asked.url, asked.body, asked.method, asked.headers, scenario.version.version_in())
    with _Shell(folder, dict(os.environ if environment is None else environment), number) as shell:
        if scenario.before is not None:
            shell.must(scenario.before, scenario.deadlines.before)
        with OpenLoop(request, scenario.rate) as load:
            first_failed, noticed = _release(scenario, load, shell)
    mine = [answer for answer in load.answers if _is_canary(answer, scenario)]
    met = [answer for answer in mine if answer.ended >= first_failed]
    last = max(answer.ended for answer in met)
    return Run(
        to_last_answer=last - first_failed,
        to_notice=None if noticed is None else noticed - first_failed,
        to_move=None if noticed is None else max(0.0, last - noticed),
        noticed_at=noticed,
        canary_requests=len(met),
        canary_failures=sum(bool(answer.failure) for answer in met),
        canary_requests_in_all=len(mine),
        lost=sum(bool(answer.failure) and not _is_canary(answer, scenario) for answer in load.answers),
        requests=len(load.answers),
    )


def _is_canary(answer: Answer, scenario: Scenario) -> bool:
    untold = scenario.version.untold == "canary" and answer.version is None and answer.status is not None
    return answer.version == scenario.canary or (untold and bool(answer.failure))


def _release(scenario: Scenario, load: OpenLoop, shell: _Shell) -> tuple[float, float | None]:
    """Makes the canary's way there and back; when its first answer failed, and when the system noticed, if it tells."""

    def canary() -> list[Answer]:
        return [answer for answer in list(load.answers) if _is_canary(answer, scenario)]

    def failed() -> list[float]:
        return [answer.ended for answer in canary() if answer.failure]

    def is_back() -> bool:
        return time.monotonic() - max(answer.ended for answer in canary()) >= scenario.settled

    deadlines = scenario.deadlines
    _wait(lambda: bool(load.answers), deadlines.canary, f"an answer of {scenario.request.url}")
    started = shell.start(scenario.start)
    _wait(lambda: bool(canary()), deadlines.canary, f"an answer by {scenario.canary}", started)
    noticing = None if scenario.noticed is None else shell.start(scenario.noticed)
    if scenario.fail is not None:
        shell.must(scenario.fail, deadlines.canary)
    _wait(lambda: bool(failed()), deadlines.canary, f"a failed answer by {scenario.canary}", started)
    if scenario.rollback != "automatic":
        shell.must(scenario.rollback, deadlines.back)
    _wait(is_back, deadlines.back, f"{scenario.settled:g} s without an answer by {scenario.canary}")
    _wait(lambda: started.ended is not None, deadlines.end, f"the end of `{scenario.start}`")
    noticed = noticing.ended if noticing is not None and noticing.status == 0 else None
    return min(failed()), noticed


class _Command:
    """A line for `sh` that runs beside the load."""

    def __init__(self, line: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.line = line
        self.ended: float | None = None
        """When it had ended, on the monotonic clock."""
        self.status: int | None = None
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the command
        self._process = subprocess.Popen(
            ["sh", "-c", line],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        status = self._process.wait()
        self.ended, self.status = time.monotonic(), status

    def words(self) -> str:
        self._words.seek(0)
        return self._words.read().decode(errors="replace")[-_WORDS:].strip()

    def close(self) -> None:
        """Ends it with all that it started, if it hasn't ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._waiting.join()
        self._words.close()


class _Shell:
    """Runs a scenario's commands; what still runs at the end is killed."""

    def __init__(self, folder: Path, environment: Mapping[str, str], number: int) -> None:
        self._folder, self._environment, self._number = folder, environment, number
        self._commands: list[_Command] = []

    def __enter__(self) -> _Shell:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self._commands:
            command.close()

    def start(self, line: str) -> _Command:
        self._commands.append(_Command(line.replace(_RUN, str(self._number)), self._folder, self._environment))
        return self._commands[-1]

    def must(self, line: str, seconds: float) -> None:
        """Raises BenchmarkError when it fails, or takes longer."""
        command = self.start(line)
        _wait(lambda: command.ended is not None, seconds, f"the end of `{command.line}`")
        if command.status != 0:
            raise BenchmarkError(f"`{command.line}`: exit status {command.status}\n{command.words()}")


def _wait(condition: Callable[[], bool], seconds: float, what: str, command: _Command | None = None) -> None:
    """Raises BenchmarkError when that doesn't come about in time, or its command fails before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if command is not None and command.status:
            raise BenchmarkError(
                f"{what} did not come: `{command.line}`: exit status {command.status}\n{command.words()}"
            )
        if time.monotonic() > deadline:
            words = f"\n{command.words()}" if command is not None else ""
            raise BenchmarkError(f"{what} did not come within {seconds:g} s{words}")
        time.sleep(_POLL_SECONDS)


# -- what runs came to


def table(scenario: Scenario, runs: Sequence[Run]) -> Table:
    """Median, least and most over the runs, row by row."""

    def spread(values: Sequence[float | None]) -> Cell:
        told = [value for value in values if value is not None]
        return Spread.of(told) if told else "not told"

    rows: list[list[Cell]] = [
        ["first failed canary answer to last canary answer, s", spread([run.to_last_answer for run in runs])],
        ["of that, until the system noticed, s", spread([run.to_notice for run in runs])],
        ["of that, until the traffic had moved, s", spread([run.to_move for run in runs])],
        ["canary requests in that time", spread([run.canary_requests for run in runs])],
        ["of these failed", spread([run.canary_failures for run in runs])],
        ["canary requests in all", spread([run.canary_requests_in_all for run in runs])],
        ["requests lost that the canary did not fail", spread([run.lost for run in runs])],
        ["requests", float(sum(run.requests for run in runs))],
    ]
    title = f"{scenario.name}: {len(runs)} runs at {scenario.rate:g} requests/s, median (least to most)"
    return Table(title, ["", ""], rows)


def goals(scenario: Scenario, runs: Sequence[Run]) -> list[Goal]:
    """Each bound of the scenario against the worst of the runs."""
    bounds = scenario.bounds
    worst = {
        "first failed to last canary answer, s": (max(run.to_last_answer for run in runs), bounds.seconds),
        "canary requests in that time": (max(run.canary_requests for run in runs), bounds.canary_requests),
        "requests lost that the canary did not fail": (max(run.lost for run in runs), bounds.lost),
    }
    return [
        Goal(f"{scenario.name}, most: {what}", value, bound, at_least=False)
        for what, (value, bound) in worst.items()
        if bound is not None
    ]
