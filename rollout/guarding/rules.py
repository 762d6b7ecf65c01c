"""When the guard acts on an endpoint, and what it does then: evidence, hysteresis, limits. Pure; the loop is `guard`.

A limit on a share of requests counts as exceeded, beyond chance, by an e-detector (Shin, Ramdas and Rinaldo 2023,
"E-detectors: a nonparametric framework for sequential change detection", https://arxiv.org/abs/2203.03532).
docs/decisions/guard.md has the bound on false actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.errors import UserError
from infra.settings.rollout import GuardSettings
from rollout.analysis.samples import Counts
from rollout.revisions import Revision

LOOK_SECONDS = 2.0
"""Between two looks: metrics are read no more often than that."""
FALSE_ALARM_LOOKS = 365 * 86400 / LOOK_SECONDS
"""Looks, on average at least, until a variant within its limit is first taken for one beyond it: a year's."""
_WELL = 20.0
"""Evidence at which a variant counts as well again: at most 1 in 20 that still isn't."""
_ODDS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""How many times the limit's odds of failure the alternatives have that evidence is sought for."""
_SPARE = 2.0
"""By how much the logarithm of evidence may be above what it needs: more would keep a good variant looking bad."""
SLOW_SHARE = 0.05
"""A 95th percentile is above a limit where more than this share of the requests is slower."""
BLIND_SECONDS = 60.0
"""Longer unseen, and what was seen before counts no more: it may have ended meanwhile."""
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86400.0
"""For so long it doesn't go back to weights that it rolled back from."""
BACKOFF_SECONDS = 60.0
"""After an action that failed, at least, and twice that after each further one; at most an hour."""

Metric = Literal["error_ratio", "latency_p95", "ready"]


class NoWayBackError(UserError):
    """No revision of the endpoint is fit to be gone back to."""


class Detector:
    """Evidence that the share of bad requests is above a limit now, whatever it was before.

    A mixture of CUSUM statistics of likelihood ratios, each against one alternative above the limit. While the share
    is at most the limit, the evidence reaches `c` within `n` looks with a probability of at most `n / c`.
    """

    def __init__(self, limit: float, threshold: float) -> None:
        """`limit` in (0, 1); `threshold`: the evidence that is enough."""
        odds = limit / (1 - limit)
        alternatives = [odds * factor / (1 + odds * factor) for factor in _ODDS]
        # Logarithms of what a bad and a good request say for each alternative.
        self._bad = [math.log(share / limit) for share in alternatives]
        self._good = [math.log((1 - share) / (1 - limit)) for share in alternatives]
        self._threshold = math.log(threshold)
        self._sums = [0.0] * len(_ODDS)

    def see(self, bad: int, requests: int) -> None:
        """Takes in a look's requests, in which `bad` were bad."""
        ceiling = self._threshold + math.log(len(_ODDS)) + _SPARE
        self._sums = [
            min(max(total, 0.0) + bad * of_bad + (requests - bad) * of_good, ceiling)
            for total, of_bad, of_good in zip(self._sums, self._bad, self._good, strict=True)
        ]

    @property
    def suspects(self) -> bool:
        """Whether anything speaks for a share above the limit."""
        return max(self._sums) > 0

    @property
    def is_sure(self) -> bool:
        largest = max(self._sums)
        if largest <= 0:
            return False
        mean = sum(math.exp(total - largest) for total in self._sums) / len(self._sums)
        return largest + math.log(mean) >= self._threshold


@dataclass
class Beyond:
    """Hysteresis of one limit: since when a variant has been beyond it, in seconds that were really seen."""

    lasting: float
    is_beyond: bool = False
    seconds: float = 0.0
    """Seen since it began."""
    now: bool = False
    """Whether the last look itself showed it."""

    @property
    def is_due(self) -> bool:
        return self.is_beyond and self.now and self.seconds >= self.lasting


class ShareWatch:
    """Watches a share of the requests against a limit: errors, or slow ones."""

    def __init__(self, limit: float, well: float, lasting: float) -> None:
        """`well`: the share below which a variant that was beyond the limit counts as well again."""
        self._limit = limit
        self._well = well
        self.state = Beyond(lasting)
        self._restart()

    def see(self, seconds: float, requests: int, bad: int, unwell: int) -> None:
        """Takes in a look: of `requests`, `bad` count against the limit, and `unwell` against being well again."""
        state = self.state
        suspected = self._harm.suspects
        self._harm.see(bad, requests)
        if not state.is_beyond and not self._harm.suspects:
            state.seconds, self.requests, self.bad = 0.0, 0, 0
        elif suspected or state.is_beyond:
            state.seconds += seconds
        if self._harm.suspects or state.is_beyond:
            self.requests += requests
            self.bad += bad
        state.now = requests > 0 and self._harm.is_sure
        if state.is_beyond:
            self._recovery.see(requests - unwell, requests)
            if self._recovery.is_sure:
                state.is_beyond, state.seconds, state.now = False, 0.0, False
                self._restart()
        elif state.now:
            state.is_beyond = True

    def blind(self) -> None:
        """Takes in that a look showed nothing."""
        self.state.now = False

    def recall(self, seconds: float) -> None:
        """Goes on where a guard before this one was: beyond the limit for so long, and to be seen so again."""
        self.state.is_beyond, self.state.seconds = True, seconds

    def _restart(self) -> None:
        self._harm = Detector(self._limit, FALSE_ALARM_LOOKS)
        self._recovery = Detector(1 - self._well, _WELL)
        self.requests = 0
        """Seen since it began …"""
        self.bad = 0
        """… and bad ones among them."""


class ReadyWatch:
    """Watches a variant's healthy replicas against the least that there should be."""

    def __init__(self, least: int, lasting: float) -> None:
        self.least = least
        self.state = Beyond(lasting)
        self.ready = least

    def see(self, seconds: float, ready: int) -> None:
        state = self.state
        self.ready = ready
        if ready >= self.least:
            state.is_beyond, state.seconds, state.now = False, 0.0, False
            return
        if state.is_beyond:
            state.seconds += seconds
        state.is_beyond = state.now = True

    def blind(self) -> None:
        self.state.now = False

    def recall(self, seconds: float) -> None:
        self.state.is_beyond, self.state.seconds = True, seconds


@dataclass(frozen=True)
class Finding:
    """What a rule says of a variant."""

    version: str
    rule: int
    """Index in the endpoint's rules."""
    metric: Metric
    limit: float
    action: Literal["rollback", "drop"]
    seconds: float
    """For which it has been beyond the limit."""
    is_due: bool
    """Whether that is long enough, and still so."""
    reason: str
    """With the numbers, for people."""

    @property
    def key(self) -> str:
        """Tells it from all other findings of the endpoint, also by other rules before or after."""
        return f"{self.version} {self.rule} {self.metric} {self.limit:g}"


class VariantWatch:
    """One variant, by all rules of its endpoint."""

    def __init__(self, version: str, settings: GuardSettings) -> None:
        self.version = version
        self._rules = settings.rules
        self._recover = settings.recover
        self._errors: dict[int, ShareWatch] = {}
        self._slow: dict[int, ShareWatch] = {}
        self._ready: dict[int, ReadyWatch] = {}
        self._blind_seconds = 0.0
        self._unread_seconds = 0.0
        self._watch_requests()
        self._watch_replicas()

    def _watch_requests(self) -> None:
        for index, rule in enumerate(self._rules):
            # A limit of 1 can't be exceeded.
            if rule.error_ratio is not None and rule.error_ratio < 1:
                well = rule.error_ratio * self._recover
                self._errors[index] = ShareWatch(rule.error_ratio, well, rule.lasting)
            if rule.latency_p95 is not None:
                self._slow[index] = ShareWatch(SLOW_SHARE, SLOW_SHARE, rule.lasting)

    def _watch_replicas(self) -> None:
        for index, rule in enumerate(self._rules):
            if rule.ready is not None:
                self._ready[index] = ReadyWatch(rule.ready, rule.lasting)

    def see_requests(self, seconds: float, counts: Counts | None) -> None:
        """Takes in a look's requests; None where nothing is known of them."""
        if counts is None:
            self._blind_seconds += seconds
            for watch in (*self._errors.values(), *self._slow.values()):
                watch.blind()
            if self._blind_seconds > BLIND_SECONDS:
                self._watch_requests()
            return
        self._blind_seconds = 0.0
        # Of two counters that are read one after the other, the errors may be a request ahead.
        errors = min(counts.errors, counts.requests)
        for watch in self._errors.values():
            watch.see(seconds, counts.requests, errors, errors)
        for index, watch in self._slow.items():
            limit = _given(self._rules[index].latency_p95)
            timed = max(counts.latency_ms.values(), default=0)
            slow = timed - _faster(counts.latency_ms, limit, timed, generous=True)
            unwell = timed - _faster(counts.latency_ms, limit * self._recover, timed, generous=False)
            watch.see(seconds, timed, slow, unwell)

    def see_ready(self, seconds: float, ready: int | None) -> None:
        """Takes in a look's healthy replicas; None where the data plane could not be read."""
        self._unread_seconds = self._unread_seconds + seconds if ready is None else 0.0
        if self._unread_seconds > BLIND_SECONDS:
            self._watch_replicas()
        for watch in self._ready.values():
            if ready is None:
                watch.blind()
            else:
                watch.see(seconds, ready)

    def findings(self) -> list[Finding]:
        """What is beyond its limit, in the order of the rules."""
        return [finding for watched, finding in self._everything() if watched.state.is_beyond]

    def recall(self, beyond: Mapping[str, float]) -> None:
        """Goes on where a guard before this one was. `beyond`: seconds by `Finding.key`."""
        for watched, finding in self._everything():
            if finding.key in beyond:
                watched.recall(beyond[finding.key])

    def _everything(self) -> Iterator[tuple[ShareWatch | ReadyWatch, Finding]]:
        """Each limit's watch, with what it would say of the variant."""
        for index, rule in enumerate(self._rules):
            if index in self._errors:
                watched, limit = self._errors[index], _given(rule.error_ratio)
                said = f"{_share(watched)} failed, and {limit:.2%} may"
                yield watched, self._finding(index, "error_ratio", limit, watched.state, said)
            if index in self._slow:
                watched, limit = self._slow[index], _given(rule.latency_p95)
                said = f"{_share(watched)} took longer than {limit:g} ms, and {SLOW_SHARE:.0%} may"
                yield watched, self._finding(index, "latency_p95", limit, watched.state, said)
            if index in self._ready:
                watched = self._ready[index]
                said = f"{watched.ready} of its replicas healthy, and {watched.least} at least should be"
                yield watched, self._finding(index, "ready", watched.least, watched.state, said)

    def _finding(self, rule: int, metric: Metric, limit: float, state: Beyond, reason: str) -> Finding:
        action = self._rules[rule].action
        return Finding(self.version, rule, metric, limit, action, state.seconds, state.is_due, reason)


def _given(value: float | None) -> float:
    assert value is not None
    return value


def _share(watch: ShareWatch) -> str:
    if not watch.requests:
        return "too many of the requests that a guard before this one saw"
    return f"{watch.bad / watch.requests:.1%} of {watch.requests} requests"


def _faster(latency_ms: Mapping[float, int], limit: float, timed: int, *, generous: bool) -> int:
    """Requests that took at most `limit` milliseconds, as far as the buckets' bounds tell.

    `generous` counts those between the two bounds around the limit as faster; else they count as slower.
    """
    bounds = [bound for bound in latency_ms if (bound >= limit if generous else bound <= limit)]
    if not bounds:
        return timed if generous else 0
    return latency_ms[min(bounds) if generous else max(bounds)]


@dataclass
class Action:
    """One thing that the guard did or tried. Its times are `Clock.monotonic`, so that no jump shortens a wait."""

    began: float
    at: str
    """The time of day, for people."""
    what: str
    ended: float | None = None
    """None while it goes on, or where the guard was killed meanwhile."""
    ok: bool | None = None
    left: dict[str, int] | None = None
    """The weights that a rollback was to leave."""


@dataclass
class Memory:
    """What the guard has to know of an endpoint after a restart."""

    actions: list[Action] = field(default_factory=list[Action])
    """Of the last day, oldest first."""
    dropped: list[str] = field(default_factory=list[str])
    """Versions whose weight it took, until somebody gives them weight again."""
    beyond: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds for which something has been beyond a limit, by `Finding.key`."""
    beyond_at: float = 0.0
    """When that was so."""

    def refusal(self, settings: GuardSettings, now: float) -> str | None:
        """Why no action may begin now, if none may. Forgets what no limit asks about any more."""
        failed = self._failures()
        backoff = min(BACKOFF_SECONDS * 2 ** (failed - 1), HOUR_SECONDS) if failed else 0.0
        rest = max(settings.cooldown, backoff)
        kept = DAY_SECONDS + settings.cooldown
        self.actions = [action for action in self.actions if now - action.began < kept]
        recent = [action for action in self.actions if now - action.began < HOUR_SECONDS]
        if self.actions:
            last = self.actions[-1]
            since = now - (last.began if last.ended is None else last.ended)
            if since < rest:
                why = f"{failed} failed in a row" if backoff > settings.cooldown else "cooldown"
                return f"the last action was {since:.0f} s ago, and {rest:.0f} s have to be between ({why})"
        if len(recent) >= settings.max_actions:
            return f"{len(recent)} actions within an hour, and {settings.max_actions} may be"
        return None

    @property
    def left(self) -> list[dict[str, int]]:
        """Weights that it rolled back from."""
        return [action.left for action in self.actions if action.left is not None]

    def begin(self, what: str, now: float, at: str, left: dict[str, int] | None = None) -> Action:
        action = Action(now, at, what, left=left)
        self.actions.append(action)
        return action

    def withdraw(self, action: Action) -> None:
        """Takes back an action that came to nothing, as another command was at the endpoint."""
        self.actions.remove(action)

    def _failures(self) -> int:
        """Actions in a row, up to the last one, that failed."""
        failed = 0
        for action in reversed(self.actions):
            if action.ok is not False:
                break
            failed += 1
        return failed

    def document(self) -> dict[str, Any]:
        return {
            "actions": [vars(action) for action in self.actions],
            "dropped": self.dropped,
            "beyond": self.beyond,
            "beyond_at": self.beyond_at,
        }

    @classmethod
    def of(cls, document: Any, now: float) -> Memory:
        """The memory in a document, as far as it can be read.

        A machine's monotonic clock starts anew with the machine: an action of an earlier boot counts as done when this
        one started, which is later than it was. What can't be read may have held an action of just now, and so counts
        as one.
        """
        found = cls()
        try:
            for each in document["actions"]:
                action = Action(**each)
                if action.began > now:
                    action.began, action.ended = 0.0, None
                found.actions.append(action)
            found.dropped = [str(version) for version in document["dropped"]]
            # After a longer time unwatched, nobody knows whether it went on.
            if 0 <= now - document["beyond_at"] <= BLIND_SECONDS:
                found.beyond = {str(key): float(seconds) for key, seconds in document["beyond"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            found.actions.append(Action(now, "", "what the guard did is lost: its memory could not be read"))
        return found


@dataclass(frozen=True)
class Drop:
    """The weights that leave a variant none."""

    weights: dict[str, int]


def drop(version: str, weights: Mapping[str, int], ready: Mapping[str, int], beyond: Iterable[str]) -> Drop | str:
    """What dropping a variant makes of the weights, or why that can't be.

    Its weight goes to the others that have weight and a healthy replica and are not beyond a limit themselves, by
    their weights. The sum stays.
    """
    bad = set(beyond) | {version}
    takers = {
        name: weight for name, weight in weights.items() if weight > 0 and name not in bad and ready.get(name, 0) > 0
    }
    if not takers:
        others = [name for name, weight in weights.items() if weight > 0 and name != version]
        if not others:
            return f"{version} is the only variant with weight"
        return f"no other variant is well: {', '.join(others)} are beyond a limit too, or have no healthy replica"
    shares = apportion(weights[version], takers)
    return Drop({name: 0 if name == version else weight + shares.get(name, 0) for name, weight in weights.items()})


def apportion(amount: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Splits a whole number by weights into whole numbers with the same sum: largest remainders get what is over."""
    total = sum(weights.values())
    shares = {name: amount * weight // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(amount * weights[name] % total))
    for name in by_remainder[: amount - sum(shares.values())]:
        shares[name] += 1
    return shares


def way_back(
    found: Sequence[Revision], version: str, dropped: Iterable[str], left: Iterable[Mapping[str, int]]
) -> Revision:
    """The latest revision that the guard may go back to, from a version that does harm.

    It gives no weight to that version nor to one that the guard has dropped, is none that the guard came from, and no
    rollout's step on the way.

    Raises:
        NoWayBackError: where there is none.
    """
    refused, known = {version, *dropped}, list(left)
    for revision in reversed(found[:-1]):
        # The history keeps a document with secrets to itself, so that its weights are empty.
        weights = revision.weights
        if revision.is_between or not weights or any(weights.get(name) for name in refused):
            continue
        if weights not in known:
            return revision
    raise NoWayBackError(
        f"none of the {len(found)} revisions gives weight to neither {' nor '.join(sorted(refused))}, "
        "or the guard has come from them"
    )
