"""The guard: looks after the endpoints of an environment between rollouts, and acts by each endpoint's own rules.

One process for all of them. The rules and limits are `rules.py`, what it sees is `lookout.py`, and each action is a
process of its own (`action.py`), so that the others are watched meanwhile.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from infra.errors import UserError
from infra.files import salvage_json, write_json
from infra.settings.rollout import GuardSettings
from rollout.clock import Clock
from rollout.guarding.lookout import Lookout, Question, Sight
from rollout.guarding.rules import Action, Drop, Finding, Memory, VariantWatch, drop
from rollout.project import Project, StackConfig

_SAVE_SECONDS = 5.0
"""Between two writings of how long something has been beyond its limit."""
_BUSY_SECONDS = 5.0
"""Until an action is tried again that another command, or a rollout's driver, stood in the way of."""
_NO_WAY_SECONDS = 300.0
"""And one for which there was no way."""
_SLOW_ACTION_SECONDS = 300.0

EventKind = Literal["watching", "beyond", "well", "acting", "done", "failed", "held back", "problem"]


class GuardedError(UserError):
    """Another guard on this machine looks after these endpoints."""


@dataclass(frozen=True)
class Event:
    """One thing that the guard saw or did."""

    at: datetime
    kind: EventKind
    endpoint: str
    """Its address; empty where it is of none."""
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def document(self) -> dict[str, Any]:
        return {"at": self.at.isoformat(), "kind": self.kind, "endpoint": self.endpoint, "text": self.text} | dict(
            self.facts
        )


Actor = Callable[[Mapping[str, Any]], Question]
"""Starts an action, which goes on by itself, and gives the question how it ended.

The order has `do` (`drop` or `rollback`), `endpoint`, `version`, `why` and the weights `seen`; for a drop the `weights`
to be, for a rollback the versions `dropped` before and the weights `left`. The answer has `result` (`done`, `failed`;
or `busy`, `driven`, `no way`, where nothing was touched) and `text`, or `problem`."""

Report = Callable[[Event, GuardSettings | None], None]
"""Is told each event, with the settings of the endpoint that it is of."""


class GuardedEndpoints:
    """The endpoints of an environment that have rules, as their config files say now."""

    def __init__(self, project: Project, environment: str, teams: Sequence[str] = ()) -> None:
        self._project = project
        self._environment = environment
        self._teams = set(teams)
        self._known: dict[Path, tuple[object, StackConfig | None]] = {}

    def read(self) -> tuple[dict[str, StackConfig], dict[Path, str]]:
        """Endpoints by address, and what is wrong with files that can't be used, by file."""
        found: dict[str, StackConfig] = {}
        problems: dict[Path, str] = {}
        known: dict[Path, tuple[object, StackConfig | None]] = {}
        for team, file in self._files():
            try:
                known[file] = self._read(team, file)
            except (UserError, OSError) as error:
                problems[file] = str(error)
                continue
            stack = known[file][1]
            if stack is not None:
                found[stack.address] = stack
        self._known = known
        return found, problems

    def _read(self, team: str, file: Path) -> tuple[object, StackConfig | None]:
        stat = file.stat()
        mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        before = self._known.get(file)
        if before is not None and before[0] == mark:
            return before
        stack = self._project.stack(f"{team}/{file.name.removeprefix('Pulumi.').removesuffix('.yaml')}")
        guarded = stack.kind == "endpoint" and stack.endpoint.guard is not None
        return mark, stack if guarded else None

    def _files(self) -> Iterator[tuple[str, Path]]:
        for folder in sorted((self._project.root / "stacks").iterdir()):
            if folder.name == "platform" or (self._teams and folder.name not in self._teams):
                continue
            yield from ((folder.name, file) for file in sorted(folder.glob(f"Pulumi.{self._environment}.*.yaml")))


class Memories:
    """What the guard has to know after a restart, a file an endpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, address: str, now: float) -> Memory:
        file = self._file(address)
        return Memory.of(salvage_json(file), now) if file.exists() else Memory()

    def save(self, address: str, memory: Memory) -> None:
        """Raises OSError."""
        write_json(self._file(address), memory.document())

    def _file(self, address: str) -> Path:
        return self._folder / f"{address.replace('/', '.')}.json"


def state_folder(project: Project, environment: str) -> Path:
    """Where guards of an environment keep what has to outlive them."""
    return project.root / ".state" / "guard" / environment


@contextmanager
def guarding(folder: Path, teams: Sequence[str], *, wait: bool = False) -> Iterator[None]:
    """Makes this process the one guard, on this machine, of these teams' endpoints, or of all.

    `wait` stands by while there is another, and takes over when that ends.

    Raises:
        GuardedError: while there is another, without `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = 0 if wait else fcntl.LOCK_NB
    with ExitStack() as locks:
        try:
            # Guards of single teams exclude one of all, and not each other.
            whole = _open(locks, folder / "lock")
            fcntl.flock(whole, (fcntl.LOCK_SH if teams else fcntl.LOCK_EX) | now)
            for team in sorted(set(teams)):
                fcntl.flock(_open(locks, folder / f"{team}.lock"), fcntl.LOCK_EX | now)
        except BlockingIOError:
            who = "endpoints of " + ", ".join(sorted(set(teams))) if teams else "these endpoints"
            raise GuardedError(
                f"another guard on this machine looks after {who}; end that one, or stand by with --wait"
            ) from None
        yield


def _open(locks: ExitStack, file: Path) -> TextIO:
    return locks.enter_context(file.open("w"))


@dataclass
class _Acting:
    action: Action
    finding: Finding
    order: dict[str, Any]
    question: Question
    is_slow: bool = False


@dataclass
class _Post:
    """One endpoint, as the guard has it."""

    stack: StackConfig
    guard: GuardSettings
    memory: Memory
    watches: dict[str, VariantWatch] = field(default_factory=dict[str, VariantWatch])
    beyond: dict[str, Finding] = field(default_factory=dict[str, Finding])
    told: set[str] = field(default_factory=set[str])
    """What was said and need not be again until things have changed."""
    problem: str = ""
    """Of the last look, without its numbers."""
    acting: _Acting | None = None
    retry_at: float = 0.0


class Guard:
    """Looks at every guarded endpoint, over and over."""

    def __init__(
        self,
        endpoints: GuardedEndpoints,
        lookout: Lookout,
        actor: Actor,
        memories: Memories,
        report: Report,
        clock: Clock,
    ) -> None:
        self._endpoints = endpoints
        self._lookout = lookout
        self._actor = actor
        self._memories = memories
        self._report = report
        self._clock = clock
        self._posts: dict[str, _Post] = {}
        self._broken: dict[Path, str] = {}

    def look(self) -> None:
        """Looks at each endpoint once, and begins what has to be done. Takes as long as reading the data plane does."""
        self._read_config()
        for post in self._posts.values():
            self._hear(post)
            sight = self._lookout.look(post.stack)
            self._take_in(post, sight)
            self._say_changes(post)
            self._act(post, sight)

    @property
    def acting(self) -> list[str]:
        """Addresses at which an action is going on."""
        return [address for address, post in self._posts.items() if post.acting]

    def hear(self) -> None:
        """Takes in what has become of actions, and nothing else."""
        for post in self._posts.values():
            self._hear(post)

    # -- which endpoints

    def _read_config(self) -> None:
        found, problems = self._endpoints.read()
        for file, problem in problems.items():
            if self._broken.get(file) != problem:
                self._tell("problem", None, problem)
        self._broken = problems
        for address in [address for address in self._posts if address not in found]:
            # One whose file is broken for now keeps its rules.
            if self._posts[address].stack.file not in problems and not self._posts[address].acting:
                self._tell("watching", self._posts.pop(address), "it has no rules any more; left alone")
                self._lookout.forget(address)
        for address, stack in found.items():
            self._take_up(address, stack)

    def _take_up(self, address: str, stack: StackConfig) -> None:
        guard = stack.endpoint.guard
        post = self._posts.get(address)
        if guard is None or (post is not None and post.stack is stack):
            return
        if post is None:
            post = _Post(stack, guard, self._memories.load(address, self._clock.monotonic()))
            self._posts[address] = post
            self._tell("watching", post, _rules(guard))
            return
        post.stack = stack
        if post.guard != guard:
            post.guard = guard
            post.watches.clear()
            post.beyond.clear()
            post.told.clear()
            self._tell("watching", post, f"other rules: {_rules(guard)}")

    # -- what is seen

    def _take_in(self, post: _Post, sight: Sight) -> None:
        problem = _without_numbers(sight.problem)
        if problem != post.problem:
            self._tell("problem", post, sight.problem or "can be read again")
            post.problem = problem
        if sight.ready is not None:
            with_weight = {version for version, weight in sight.weights.items() if weight > 0}
            for version in post.watches.keys() - with_weight:
                del post.watches[version]
            for version in sorted(with_weight - post.watches.keys()):
                post.watches[version] = VariantWatch(version, post.guard)
                post.watches[version].recall(post.memory.beyond)
            if not post.acting and any(version in with_weight for version in post.memory.dropped):
                self._note_given_back(post, with_weight)
        for version, watch in post.watches.items():
            watch.see_requests(sight.seconds, None if sight.counts is None else sight.counts.get(version))
            watch.see_ready(sight.seconds, None if sight.ready is None else sight.ready.get(version, 0))

    def _note_given_back(self, post: _Post, with_weight: set[str]) -> None:
        """Somebody else gives a dropped version weight again, and so may the guard then."""
        post.memory.dropped = [version for version in post.memory.dropped if version not in with_weight]
        self._save(post)

    def _say_changes(self, post: _Post) -> None:
        found = {finding.key: finding for watch in post.watches.values() for finding in watch.findings()}
        for key, finding in found.items():
            if key not in post.beyond:
                self._tell("beyond", post, f"{finding.version} is beyond a limit: {finding.reason}", finding)
        for key, finding in post.beyond.items():
            if key not in found:
                why = "is well again" if finding.version in post.watches else "has no weight any more"
                self._tell("well", post, f"{finding.version} {why} ({finding.metric})", finding)
        changed = found.keys() != post.beyond.keys()
        if changed:
            post.told = {said for said in post.told if said.split("\n")[0] in found}
        post.beyond = found
        now = self._clock.monotonic()
        if changed or (found and now - post.memory.beyond_at >= _SAVE_SECONDS):
            post.memory.beyond = {key: finding.seconds for key, finding in found.items()}
            post.memory.beyond_at = now
            self._save(post)

    # -- what is done

    def _act(self, post: _Post, sight: Sight) -> None:
        now = self._clock.monotonic()
        due = [finding for finding in post.beyond.values() if finding.is_due]
        if not due or post.acting or now < post.retry_at or sight.ready is None:
            return
        due.sort(key=lambda finding: (finding.rule, -finding.seconds))
        for finding in due:
            refusal = post.memory.refusal(post.guard, now)
            if refusal is not None:
                self._hold_back(post, finding, refusal)
                continue
            order = self._order(post, sight, finding)
            if isinstance(order, str):
                self._hold_back(post, finding, order)
            else:
                self._begin(post, finding, order)
                return

    def _order(self, post: _Post, sight: Sight, finding: Finding) -> dict[str, Any] | str:
        """What to do about it, or why nothing can be done."""
        order: dict[str, Any] = {
            "do": finding.action,
            "endpoint": post.stack.address,
            "version": finding.version,
            "seen": dict(sight.weights),
            "why": f"{finding.version}: {finding.reason}, for {finding.seconds:.0f} s",
        }
        if finding.action == "rollback":
            left = [*post.memory.left, dict(sight.weights)]
            return order | {"dropped": list(post.memory.dropped), "left": left}
        assert sight.ready is not None
        dropped = drop(finding.version, sight.weights, sight.ready, [other.version for other in post.beyond.values()])
        return order | {"weights": dropped.weights} if isinstance(dropped, Drop) else dropped

    def _begin(self, post: _Post, finding: Finding, order: dict[str, Any]) -> None:
        what = f"{order['do']} {finding.version}"
        left = order["left"][-1] if order["do"] == "rollback" else None
        action = post.memory.begin(what, self._clock.monotonic(), self._clock.now().isoformat(), left)
        try:
            # Before it begins: a guard that is killed now must not count less than it did.
            self._memories.save(post.stack.address, post.memory)
        except OSError as error:
            post.memory.withdraw(action)
            self._hold_back(post, finding, f"what can't be written down is not done: {error}")
            return
        self._tell("acting", post, f"{what}: {order['why']}", finding, do=order["do"])
        post.acting = _Acting(action, finding, order, self._actor(order))

    def _hear(self, post: _Post) -> None:
        acting = post.acting
        if acting is None:
            return
        answer = acting.question.answer()
        now = self._clock.monotonic()
        if answer is None:
            if not acting.is_slow and now - acting.action.began > _SLOW_ACTION_SECONDS:
                acting.is_slow = True
                self._tell(
                    "problem", post, f"{acting.action.what} is still going on after {now - acting.action.began:.0f} s"
                )
            return
        post.acting = None
        result, text = answer.get("result"), answer.get("text") or answer.get("problem") or "it said nothing"
        if result in {"busy", "driven", "no way"}:
            post.memory.withdraw(acting.action)
            post.retry_at = now + (_NO_WAY_SECONDS if result == "no way" else _BUSY_SECONDS)
            self._hold_back(post, acting.finding, text)
        else:
            self._settle(post, acting, now, ok=result == "done", text=text)
        self._save(post)

    def _settle(self, post: _Post, acting: _Acting, now: float, *, ok: bool, text: str) -> None:
        acting.action.ended, acting.action.ok = now, ok
        if not ok:
            self._tell("failed", post, f"{acting.action.what} failed: {text}", do=acting.order["do"])
            return
        if acting.order["do"] == "drop":
            post.memory.dropped = [*post.memory.dropped, acting.order["version"]]
        # What was seen so far was of other traffic.
        post.watches.clear()
        post.beyond.clear()
        post.told.clear()
        post.memory.beyond = {}
        self._tell("done", post, text, do=acting.order["do"], version=acting.order["version"])

    def _hold_back(self, post: _Post, finding: Finding, why: str) -> None:
        """Says once, while it lasts, why nothing is done."""
        said = f"{finding.key}\n{_without_numbers(why)}"
        if said not in post.told:
            post.told.add(said)
            self._tell("held back", post, f"nothing is done about {finding.version}: {why}", finding)

    # -- inside

    def _save(self, post: _Post) -> None:
        try:
            self._memories.save(post.stack.address, post.memory)
        except OSError as error:
            said = f"\nmemory {error}"
            if said not in post.told:
                post.told.add(said)
                self._tell("problem", post, f"its memory can't be written: {error}")

    def _tell(
        self, kind: EventKind, post: _Post | None, text: str, finding: Finding | None = None, **facts: Any
    ) -> None:
        if finding is not None:
            facts = {"version": finding.version, "metric": finding.metric, "seconds": finding.seconds} | facts
        address = post.stack.address if post else ""
        self._report(Event(self._clock.now(), kind, address, text, facts), post.guard if post else None)


def _without_numbers(text: str) -> str:
    """What tells one thing to say from another: its numbers change all the time."""
    return "".join(character for character in text if not character.isdigit())


def _rules(guard: GuardSettings) -> str:
    said: list[str] = []
    for rule in guard.rules:
        limits = [
            *([f"more errors than {rule.error_ratio:.2%}"] if rule.error_ratio is not None else []),
            *([f"a 95th percentile above {rule.latency_p95:g} ms"] if rule.latency_p95 is not None else []),
            *([f"fewer than {rule.ready} healthy replicas"] if rule.ready is not None else []),
        ]
        said.append(f"{rule.action} after {rule.lasting:g} s of {' or '.join(limits)}")
    return "; ".join(said)
