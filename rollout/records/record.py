"""The record of a rollout: what happened and what was seen, kept while it runs, and one page about it in the end.

It is a folder `.state/rollouts/TEAM.STACK/ID`:

- `events.jsonl`: a line for each thing that happened: `{"schema": 1, "kind": …, "at": ISO 8601, …}`. The kind is the
  phase that the rollout came to, `weights` where the data plane was seen to have them, or `driver`, `warm` and the
  like; the facts are those that hooks get.
- `looks.jsonl`: a line for each look: the index of its step, the fields of `samples.Look`, and now and then the
  verdicts after it. A driver that follows one that was killed judges by them.
- `record.json` and `report.html`: the whole of it, for scripts and for people.

Nothing here stops a rollout: what can't be written is told once, and a line that was torn is left out when read.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.files import salvage_json, write_atomically, write_json
from rollout.analysis.judge import Verdict
from rollout.analysis.samples import WINDOW_SECONDS, Counts, Look
from rollout.driving.hooks import public_url
from rollout.driving.state import RolloutState
from rollout.project import Project, StackConfig
from rollout.records.series import sum_of
from rollout.records.summary import phases, summarise
from rollout.release import Notify

SCHEMA = 1
"""Of every line and of `record.json`; a reader of another one leaves it alone."""

MOST_LOOKS = 20_000
"""Kept as they were, about 12 MB; when there are more, neighbours are merged."""

_OUTLINE = ("outcome", "strategy", "by", "started", "ended", "seconds", "reason")

_VERDICTS_EVERY = 0.01
"""Verdicts are kept when a word of them changes, and after this share of the time since their step began."""


@dataclass(frozen=True)
class Event:
    kind: str
    at: float
    """Seconds since the epoch."""
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """One line of the looks."""

    step: int
    look: Look
    verdicts: tuple[Verdict, ...] | None = None
    """None where they weren't kept."""


class Record:
    """One rollout's folder. It need not exist yet."""

    def __init__(self, folder: Path, notify: Notify = lambda _: None) -> None:
        self.folder = folder
        self._notify = notify
        self._told = False
        self._kept: int | None = None
        self._room = MOST_LOOKS
        self._words: dict[tuple[str, str], str] = {}
        self._step, self._step_began, self._verdicts_at = -1, 0.0, 0.0

    @classmethod
    def of(cls, project: Project, endpoint: StackConfig, rollout_id: str, notify: Notify = lambda _: None) -> Record:
        """The record of that rollout of the endpoint."""
        return cls(folder_of(project, endpoint) / rollout_id, notify)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def _events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def _looks_file(self) -> Path:
        return self.folder / "looks.jsonl"

    def event(self, kind: str, at: datetime, **facts: Any) -> None:
        """Notes that something happened. Facts are what JSON can say, settings, states and data classes."""
        line = {"schema": SCHEMA, "kind": kind, "at": at.astimezone(UTC).isoformat(), **facts}
        self._try(partial(_append, self._events_file, line))

    def look(self, step: int, look: Look, verdicts: Sequence[Verdict] = ()) -> None:
        """Notes what was seen in a step, and what the gates said then."""
        line = _look_line(Seen(step, look, tuple(verdicts) if self._keeps(step, look, verdicts) else None))
        self._try(partial(self._add_look, line))

    def events(self) -> list[Event]:
        """All that happened, in order of time."""
        found: list[Event] = []
        for line in self._lines(self._events_file):
            facts = {name: value for name, value in line.items() if name not in ("schema", "kind", "at")}
            try:
                found.append(Event(line["kind"], datetime.fromisoformat(line["at"]).timestamp(), facts))
            except (KeyError, TypeError, ValueError):
                continue
        return found

    def looks(self) -> Iterator[tuple[int, Look]]:
        """What was seen, with the index of its step, for a Judge: it comes to the same evidence."""
        for seen in self.seen():
            yield seen.step, seen.look

    def seen(self) -> Iterator[Seen]:
        for line in self._lines(self._looks_file):
            try:
                yield _seen(line)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue

    def finish(self, state: RolloutState, at: datetime) -> None:
        """Writes `record.json` and the page of a rollout that is over."""
        self._try(partial(self._write, state, at))

    def draw(self, state: RolloutState, at: datetime) -> None:
        """Writes the page of a rollout that is under way, as it is now."""
        self._try(partial(self._write, state, at, page_only=True))

    def outline(self) -> dict[str, Any]:
        """Who, when and what became of it, in short, also of a rollout that isn't over."""
        found = read_summary(self)
        if found is None:
            entered = phases(self.events())
            facts = entered[-1].facts if entered else {}
            started = datetime.fromtimestamp(entered[0].at, UTC).isoformat() if entered else None
            found = {"outcome": entered[-1].kind if entered else None, "started": started, **facts}
        return {"id": self.id, **{name: found.get(name) for name in _OUTLINE}}

    def _write(self, state: RolloutState, at: datetime, *, page_only: bool = False) -> None:
        from rollout.records.page import render  # noqa: PLC0415 - of no use to a rollout that runs

        events, seen = self.events(), list(self.seen())
        endpoint = self.folder.parent.name.replace(".", "/", 1)
        summary = plain(summarise(endpoint, state, at, events, seen, _git_commit(self.folder)))
        if not page_only:
            write_json(self.folder / "record.json", summary)
        write_atomically(self.page, render(summary, events, seen))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            # Traffic is worth more than its record, whatever is wrong with that.
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            what = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            self._notify(f"the record of the rollout is not complete: {self.folder}: {what}")

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        try:
            with file.open("rb") as content:
                for text in content:
                    line = _parsed(text)
                    if line is not None:
                        yield line
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell(error)

    def _keeps(self, step: int, look: Look, verdicts: Sequence[Verdict]) -> bool:
        """Whether to keep these verdicts: evidence each second of a long bake is more than anybody reads."""
        if step != self._step:
            self._step, self._step_began, self._verdicts_at, self._words = step, look.at, 0.0, {}
        words = {(verdict.gate, verdict.version): verdict.word for verdict in verdicts}
        since = look.at - self._verdicts_at
        if words == self._words and 0 <= since < _VERDICTS_EVERY * (look.at - self._step_began):
            return False
        self._words, self._verdicts_at = words, look.at
        return bool(verdicts)

    def _add_look(self, line: dict[str, Any]) -> None:
        if self._kept is None:
            self._kept = sum(1 for _ in self._lines(self._looks_file))
        _append(self._looks_file, line)
        self._kept += 1
        if self._kept > self._room:
            merged = _merged(list(self.seen()))
            write_atomically(self._looks_file, "".join(_text(_look_line(seen)) for seen in merged))
            self._kept = len(merged)
            # What can't be merged any more is not gone through again for each look.
            self._room = max(MOST_LOOKS, self._kept * 3 // 2)


def folder_of(project: Project, endpoint: StackConfig) -> Path:
    """Where the records of an endpoint are."""
    return project.root / ".state" / "rollouts" / f"{endpoint.team}.{endpoint.name}"


def records_of(project: Project, endpoint: StackConfig) -> list[Record]:
    """The records of an endpoint, oldest first."""
    folder = folder_of(project, endpoint)
    return [Record(found) for found in sorted(folder.iterdir()) if found.is_dir()] if folder.is_dir() else []


def read_summary(record: Record) -> dict[str, Any] | None:
    """What `record.json` has; None where the rollout isn't over, or the file can't be read."""
    found = salvage_json(record.folder / "record.json")
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _git_commit(folder: Path) -> str | None:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return asked.stdout.strip() or None


def _append(file: Path, line: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = _text(line).encode()
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        # Whoever was killed, or had no room, in mid-line: this one must not be glued to it.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(plain(line), separators=(",", ":")) + "\n"


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.get("schema") == SCHEMA else None


def plain(value: Any) -> Any:
    """A value as JSON can say it, and without what could be secret of a URL."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {
            _key(name): public_url(item) if name == "url" and isinstance(item, str) else plain(item)
            for name, item in value.items()
        }
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        # JSON knows no infinity; the greatest number is as good as that here.
        return None if math.isnan(value) else max(-sys.float_info.max, min(value, sys.float_info.max))
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _key(name: object) -> str:
    return repr(name).removesuffix(".0") if isinstance(name, float) else str(name)


def _look_line(seen: Seen) -> dict[str, Any]:
    line: dict[str, Any] = {"schema": SCHEMA, "step": seen.step, **_given(seen.look)}
    line["counts"] = {version: _given(counts) for version, counts in seen.look.counts.items()}
    if seen.verdicts is not None:
        line["verdicts"] = seen.verdicts
    return line


def _given(value: Any) -> dict[str, Any]:
    """The fields of a data class that aren't empty."""
    found = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {name: item for name, item in found if item or name in ("at", "seconds")}


def _seen(line: Mapping[str, Any]) -> Seen:
    fields = {field.name for field in dataclasses.fields(Look)} - {"counts"}
    counts = {version: _counts(found) for version, found in line.get("counts", {}).items()}
    look = Look(**{name: line[name] for name in fields if name in line}, counts=counts)
    given = line.get("verdicts")
    names = {field.name for field in dataclasses.fields(Verdict)}
    verdicts = (
        None
        if given is None
        else tuple(Verdict(**{name: value for name, value in item.items() if name in names}) for item in given)
    )
    return Seen(int(line["step"]), look, verdicts)


def _counts(found: Mapping[str, Any]) -> Counts:
    latency = {float(bound): count for bound, count in found.get("latency_ms", {}).items()}
    names = {field.name for field in dataclasses.fields(Counts)} - {"latency_ms"}
    return Counts(**{name: found[name] for name in names if name in found}, latency_ms=latency)


def _merged(seen: Sequence[Seen]) -> list[Seen]:
    """Looks with neighbours made one, as far as gates can do without the difference.

    Counts add up; a query's values don't. No look becomes longer than the windows that gates judge.
    """
    found: list[Seen] = []
    mergeable = False
    for item in seen:
        if mergeable and _alike(found[-1], item):
            found[-1] = _together(found[-1], item)
            mergeable = False
        else:
            found.append(item)
            mergeable = True
    return found


def _alike(first: Seen, second: Seen) -> bool:
    return (
        first.step == second.step
        and first.look.counts.keys() == second.look.counts.keys()
        and first.look.weights == second.look.weights
        and first.look.shadow == second.look.shadow
        and (bool(first.look.problem) or first.look.seconds + second.look.seconds <= WINDOW_SECONDS)
        and first.look.problem == second.look.problem
        and not any((first.look.values, second.look.values, first.look.problems, second.look.problems))
    )


def _together(first: Seen, second: Seen) -> Seen:
    counts = {version: sum_of(counts, second.look.counts[version]) for version, counts in first.look.counts.items()}
    look = dataclasses.replace(second.look, seconds=first.look.seconds + second.look.seconds, counts=counts)
    return Seen(second.step, look, second.verdicts or first.verdicts)
