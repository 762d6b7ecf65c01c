"""What versions did between two looks: counts, read from the metrics of any mode."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infra.contracts import ObservationError, Observer
from infra.settings.rollout import Gate
from rollout.clock import Clock

FRESH_SECONDS = 15.0
"""How old the newest data may be: several scrapes, as one may fail."""

WINDOW_SECONDS = 10.0
"""How long the window of a `promql` gate's query is, at least: several scrapes, of which a rate needs two."""

_REQUESTS = "version:requests:total"
_ERRORS = "version:errors:total"
_BUCKETS = "version:latency_ms:bucket"
_CPU = "version:cpu_seconds:total"
_AGE = "age"
"""Label of what says how old a version's requests are, beside the counters in one answer."""


@dataclass(frozen=True)
class Counts:
    """Ended requests of one version between two looks."""

    requests: int = 0
    errors: int = 0
    latency_ms: Mapping[float, int] = field(default_factory=dict[float, int])
    """Requests that took at most so many milliseconds, by upper bound (cumulative; `inf` has them all)."""
    cpu_seconds: float = 0.0
    """Processor time that its servers took; 0 where nothing says."""


@dataclass(frozen=True)
class Look:
    """What was seen since the look before it; where that had a problem, since the last that had none."""

    at: float
    """Seconds since the epoch."""
    seconds: float
    """Since the look before, whatever the time of day did."""
    counts: Mapping[str, Counts] = field(default_factory=dict[str, Counts])
    """By version. A version without requests has zeros; one that nothing is known of is absent."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """By gate of metric `promql`, by version: the query's value over its own window, where one ended with this look."""
    weights: Mapping[str, int] = field(default_factory=dict[str, int])
    """As the data plane had them."""
    shadow: Mapping[str, float] = field(default_factory=dict[str, float])
    """Percent of requests copied, by version, as the data plane had it."""
    problem: str = ""
    """Why there is nothing to see, if so: no data, a dead metrics server, a stale series. Never a pass."""
    problems: Mapping[str, str] = field(default_factory=dict[str, str])
    """By gate of metric `promql`: why there is no value of it."""


Series = frozenset[tuple[str, str]]
"""Labels of one counter, its name among them."""


class Sampler:
    """Looks at an endpoint's versions, again and again: each look has what came since the one before.

    The first look is where counting starts, and has no counts.
    """

    def __init__(self, observer: Observer, team: str, model: str, gates: Sequence[Gate], clock: Clock) -> None:
        self._observer = observer
        self._team = team
        self._model = model
        self._queries = {gate.label: gate.query for gate in gates if gate.query is not None}
        self._clock = clock
        self._last: dict[Series, float] = {}
        self._known: set[tuple[str, str]] = set()
        """Versions that have been seen, with their source."""
        self._errors_ahead: dict[tuple[str, str], float] = {}
        self._looked: float | None = None
        self._asked: float | None = None

    def look(self, versions: Sequence[str]) -> Look:
        """What these versions did. Never raises for what isn't there: `Look.problem` says so."""
        now = self._clock.monotonic()
        at, seconds = self._clock.now().timestamp(), now - (now if self._looked is None else self._looked)
        self._looked = now
        try:
            traffic = self._observer.traffic(self._team, self._model)
            answer = self._observer.query(self._counters(versions))
        except ObservationError as error:
            return Look(at, seconds, problem=str(error))
        weights, shadow = traffic["weights"], traffic["shadow"]
        sources = {
            version: "shadow" if version in shadow and not weights.get(version) else "client" for version in versions
        }
        ages = {(labels["version"], labels["source"]): age for labels, age in answer if _AGE in labels}
        fresh = {key for key, age in ages.items() if age <= FRESH_SECONDS}
        if not fresh:
            found = f"the newest sample is {min(ages.values()):.0f} s old" if ages else "there is none"
            problem = f"no fresh sample of {_REQUESTS} for {self._team}/{self._model}: {found}"
            return Look(at, seconds, weights=weights, shadow=shadow, problem=problem)
        counts = self._count(answer, fresh, sources)
        values, problems = self._ask(versions, now)
        return Look(at, seconds, counts, values, weights, shadow, problems=problems)

    # -- counters

    def _counters(self, versions: Sequence[str]) -> str:
        """One query for all counters, and the age of each version's requests beside them."""
        whose = f"team={_quoted(self._team)}, model={_quoted(self._model)}"
        whose += f", version=~{_quoted('|'.join(re.escape(version) for version in versions))}"
        names = _quoted("|".join((_REQUESTS, _ERRORS, _BUCKETS, _CPU)))
        age = f"max by (version, source) (time() - timestamp({_REQUESTS}{{{whose}}}))"
        return f'{{__name__=~{names}, {whose}}} or label_replace({age}, "{_AGE}", "s", "", "")'

    def _count(
        self, answer: Sequence[tuple[dict[str, str], float]], fresh: set[tuple[str, str]], sources: Mapping[str, str]
    ) -> dict[str, Counts]:
        started = bool(self._last)
        seen_instances = {_instance(series) for series in self._last}
        grown: dict[tuple[str, str], _Growth] = {}
        current = {frozenset(labels.items()): value for labels, value in answer if _AGE not in labels}
        for series, value in current.items():
            labels = dict(series)
            name, version = labels["__name__"], labels["version"]
            before = self._last.get(series)
            if before is None:
                # What counts already was scraped, and had nothing of this; what is new to us may have counted for days.
                growth = value if _instance(series) in seen_instances else 0.0
            else:
                growth = value - before if value >= before else value
            # Servers know no source: their processor time is the version's, whoever asked.
            source = labels.get("source", sources.get(version, "client"))
            grown.setdefault((version, source), _Growth()).add(name, labels, growth)
        self._last.update(current)
        self._known |= fresh
        if not started:
            return {}
        return {
            version: self._counts((version, source), grown.get((version, source), _Growth()))
            for version, source in sources.items()
            # One that was never seen has had no request, as the others' counters are there. One that was has gone.
            if (version, source) in fresh or (version, source) not in self._known
        }

    def _counts(self, key: tuple[str, str], growth: _Growth) -> Counts:
        # The counters are read a moment apart: an error whose request is not counted yet waits for the next look.
        errors = growth.errors + self._errors_ahead.pop(key, 0.0)
        self._errors_ahead[key] = max(0.0, errors - growth.requests)
        return Counts(
            requests=round(growth.requests),
            errors=round(min(errors, growth.requests)),
            latency_ms=growth.latency(),
            cpu_seconds=growth.cpu_seconds,
        )

    # -- queries of gates

    def _ask(self, versions: Sequence[str], now: float) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """The gates' own queries, whenever a window is over: windows don't overlap."""
        if self._asked is None:
            self._asked = now
        window = now - self._asked
        if not self._queries or window < WINDOW_SECONDS:
            return {}, {}
        self._asked = now
        values: dict[str, dict[str, float]] = {}
        problems: dict[str, str] = {}
        for label, query in self._queries.items():
            for version in versions:
                asked = filled(query, self._team, self._model, version, window)
                try:
                    answer = self._observer.query(asked)
                except ObservationError as error:
                    problems[label] = f"{version}: {error}"
                    continue
                if len(answer) == 1 and math.isfinite(answer[0][1]):
                    values.setdefault(label, {})[version] = answer[0][1]
                else:
                    found = "no number" if len(answer) == 1 else f"{len(answer)} values"
                    problems[label] = f"{version}: the query must give one value, and gave {found}: {asked}"
        return values, problems


def filled(query: str, team: str, model: str, version: str, window: float) -> str:
    """A gate's query as it is asked for one version, over so many seconds."""
    # By hand, since PromQL is full of braces.
    given = {"team": team, "model": model, "version": version, "window": f"{int(window)}s"}
    return re.sub(r"\{(team|model|version|window)\}", lambda match: given[match[1]], query)


@dataclass
class _Growth:
    """By how much a version's counters have grown, over all their series."""

    requests: float = 0.0
    errors: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict[float, float])
    cpu_seconds: float = 0.0

    def add(self, name: str, labels: Mapping[str, str], growth: float) -> None:
        if name == _REQUESTS:
            self.requests += growth
        elif name == _ERRORS:
            self.errors += growth
        elif name == _CPU:
            self.cpu_seconds += growth
        else:
            bound = float(labels["le"])
            self.buckets[bound] = self.buckets.get(bound, 0.0) + growth

    def latency(self) -> dict[float, int]:
        """Rising with the bound, also where some of the series began anew since the last look and some seem not to."""
        counts: dict[float, int] = {}
        most = 0
        for bound in sorted(self.buckets):
            most = max(most, round(self.buckets[bound]))
            counts[bound] = most
        return counts


def _instance(series: Series) -> str:
    """Which process counts it: of a router its own name, of servers each one's."""
    labels = dict(series)
    kind = "servers" if labels["__name__"] == _CPU else "requests"
    return f"{kind} {labels.get('instance', '')}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
