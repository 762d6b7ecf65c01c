"""How an endpoint's releases go: the keys `rollout` and `guard` of `lepton:endpoint`."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from infra.settings.values import Name, Seconds, Settings

StrategyName = Literal["canary", "rolling", "blue-green", "canary-blue-green", "shadow", "ab", "adaptive"]
MetricName = Literal["error_ratio", "latency_p50", "latency_p95", "latency_p99", "throughput", "score", "promql"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class ScoreWeights(Settings):
    """The score `P = w1·T + w2·R + w3·E`: response time, resource use and error ratio, each over the baseline's.

    Lower is better; the baseline's own is the sum of the weights.
    """

    response_time: float = Field(default=1.0, ge=0)
    """w1, of the median latency."""
    resources: float = Field(default=0.0, ge=0)
    """w2, of the processor time a request."""
    errors: float = Field(default=1.0, ge=0)
    """w3."""

    @model_validator(mode="after")
    def _weighs_something(self) -> ScoreWeights:
        if self.response_time + self.resources + self.errors == 0:
            raise ValueError("every weight of the score is 0; give one of them more")
        return self


class Gate(Settings):
    """One check of a version between steps.

    The version fails it by being worse than the baseline over the same minutes, or worse than a fixed limit, and never
    by chance alone: see docs/decisions/gates.md.
    """

    metric: MetricName
    name: Name | None = None
    """Tells gates apart that are of the same metric. Default: the metric's name."""
    compare: bool = Field(default=True, strict=True)
    """Whether it is judged against the baseline."""
    tolerance: float = Field(default=1.0, gt=0)
    """How many times the baseline's value is still as good as the baseline: of errors the odds, of others the value."""
    limit: float | None = Field(default=None, ge=0)
    """A value that it must not be worse than, whatever the baseline does: a ratio, milliseconds, requests/s, …"""
    detect: float | None = Field(default=None, gt=0)
    """The harm that must not be missed. It says how many requests the gate asks for. Of `error_ratio`, how much more
    errors, as a ratio (default 0.02); of a latency, what share of the requests more is slow (default 0.1); of
    `throughput`, what share of its requests is missing (default 0.2); of others, how many times the baseline's or the
    limit's value it is (default 1.2)."""
    query: str | None = None
    """PromQL of `promql`, one value; `{team}`, `{model}`, `{version}` and `{window}` are filled in."""
    better: Literal["lower", "higher"] = "lower"
    """Which way `promql` is better; of the others it is known."""

    @model_validator(mode="after")
    def _is_whole(self) -> Gate:
        if (self.metric == "promql") != (self.query is not None):
            raise ValueError("'query' belongs to metric 'promql', and that needs one")
        if self.metric == "promql" and self.name is None:
            raise ValueError("a gate of metric 'promql' needs a 'name'")
        if not self.compare and self.limit is None:
            raise ValueError("a gate that does not compare with the baseline needs a 'limit'")
        return self

    @property
    def label(self) -> str:
        return self.name or self.metric.replace("_", "-")


class Hook(Settings):
    """A command, or an HTTP POST, that is told of a step and whose failure fails it."""

    command: list[str] | None = Field(default=None, min_length=1)
    """Run in the project's root, with the step as JSON on its standard input; fails by an exit status that isn't 0."""
    url: str | None = None
    """Gets the step as JSON; fails by a status that isn't 2xx."""
    url_variable: str | None = None
    """Environment variable that holds the URL, where that is a secret."""
    timeout: Seconds = 30.0

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Hook:
        if sum(given is not None for given in (self.command, self.url, self.url_variable)) != 1:
            raise ValueError("give one of 'command', 'url' and 'url_variable'")
        return self


class Hooks(Settings):
    before: tuple[Hook, ...] = ()
    """Before each step's weights are set."""
    after: tuple[Hook, ...] = ()
    """After each step's gates have passed."""


class Notification(Settings):
    """A webhook that is told what happens, as `{"text": …}` with the facts beside it: Slack's format."""

    url: str | None = None
    url_variable: str | None = None
    """Environment variable that holds the URL, where that is a secret."""
    on: tuple[Literal["start", "step", "hold", "success", "rollback"], ...] = ("start", "hold", "success", "rollback")

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Notification:
        if (self.url is None) == (self.url_variable is None):
            raise ValueError("give either 'url' or 'url_variable'")
        return self


def _time(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError("a time of day is '18:00', in quotes")
    return value


def _zone(value: object) -> str:
    try:
        ZoneInfo(str(value))
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError("a time zone is a name such as 'Europe/Zurich' or 'UTC'") from None
    return str(value)


class QuietHours(Settings):
    """When no step begins. A time that ends before it starts lasts until the next day."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = _DAYS
    """On which it starts."""
    start: Annotated[str, BeforeValidator(_time)]
    end: Annotated[str, BeforeValidator(_time)]
    zone: Annotated[str, BeforeValidator(_zone)] = "UTC"

    @model_validator(mode="after")
    def _lasts(self) -> QuietHours:
        if self.start == self.end:
            raise ValueError("start and end are the same; quiet hours last less than a day")
        return self


def _default_gates() -> tuple[Gate, ...]:
    return (Gate(metric="error_ratio"), Gate(metric="latency_p95", tolerance=1.5))


class RolloutSettings(Settings):
    """How a rollout goes, unless the command that starts it says otherwise."""

    strategy: StrategyName = "canary"
    steps: tuple[float, ...] | Literal["linear", "exponential"] = (5.0, 25.0, 50.0, 100.0)
    """Percent of what moves that the new version has after each step, rising; or how it rises. Of `shadow`, percent of
    requests copied come from `shadow_percent`, before these."""
    first: float = Field(default=5.0, gt=0, le=100)
    """Percent of the first step, where steps are `linear` or `exponential`."""
    increment: float = Field(default=20.0, gt=0, le=100)
    """Percent that each `linear` step adds."""
    factor: float = Field(default=2.0, gt=1)
    """What each `exponential` step multiplies by."""
    shadow_percent: float = Field(default=100.0, gt=0, le=100)
    max_surge: int = Field(default=1, ge=0, strict=True)
    """Replicas that a `rolling` step may have above those of the start."""
    max_unavailable: int = Field(default=0, ge=0, strict=True)
    """Replicas that a `rolling` step may lack of those of the start."""
    bake: Seconds = 60.0
    """How long each step lasts, at least, before its gates decide."""
    max_bake: Seconds = 600.0
    """How long a step may last while a gate is inconclusive."""
    on_inconclusive: Literal["hold", "rollback"] = "hold"
    """What follows then."""
    on_failure: Literal["rollback", "hold"] = "rollback"
    """What follows a gate or a hook that failed."""
    approve: tuple[float, ...] = ()
    """Percentages whose step somebody has to approve (`lepton rollout promote`) before it begins."""
    keep: Seconds | None = None
    """How long the old side keeps its replicas after the last step; then it has none. Default: it keeps them."""
    max_duration: Seconds = 86400.0
    """After which a rollout that isn't done is taken back, or held, as `on_failure` says."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """The probability that a version no worse than the baseline fails: all gates, steps and looks together."""
    power: float = Field(default=0.95, gt=0.5, lt=1)
    """The probability that each gate catches the harm it must not miss, at the samples that it asks for."""
    score: ScoreWeights = Field(default_factory=ScoreWeights)
    gates: tuple[Gate, ...] = Field(default_factory=_default_gates)
    hooks: Hooks = Field(default_factory=Hooks)
    notify: tuple[Notification, ...] = ()
    quiet: tuple[QuietHours, ...] = ()

    @model_validator(mode="after")
    def _can_go(self) -> RolloutSettings:
        if isinstance(self.steps, tuple):
            rising = all(low < high for low, high in zip((0.0, *self.steps), self.steps, strict=False))
            if not self.steps or not rising or self.steps[-1] > 100:
                raise ValueError("steps are rising percentages, above 0 and at most 100, such as [5, 25, 50, 100]")
        if self.max_surge == self.max_unavailable == 0:
            raise ValueError("max_surge and max_unavailable are both 0, so that no replica could move")
        if self.max_bake < self.bake:
            raise ValueError("max_bake is shorter than bake")
        labels = [gate.label for gate in self.gates]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"two gates are called {twice[0]}; give one of them a 'name'")
        return self


class GuardRule(Settings):
    """When the guard acts on a variant between rollouts: when it is beyond any of these for long enough."""

    error_ratio: float | None = Field(default=None, gt=0, le=1)
    """More errors than this, beyond chance."""
    latency_p95: float | None = Field(default=None, gt=0)
    """A 95th percentile above this, in ms."""
    ready: int | None = Field(default=None, ge=1, strict=True)
    """Fewer healthy replicas than this."""
    lasting: Seconds = 30.0
    """How long without a break."""
    action: Literal["rollback", "drop"] = "drop"
    """`rollback`: the endpoint's previous revision. `drop`: the variant's weight goes to the others, by theirs."""

    @model_validator(mode="after")
    def _watches_something(self) -> GuardRule:
        if self.error_ratio is None and self.latency_p95 is None and self.ready is None:
            raise ValueError("a rule of the guard watches 'error_ratio', 'latency_p95' or 'ready'; give one of them")
        return self


class GuardSettings(Settings):
    """What the guard does for the endpoint, also while no rollout runs."""

    rules: tuple[GuardRule, ...] = Field(min_length=1)
    recover: float = Field(default=0.5, gt=0, le=1)
    """Hysteresis: what was beyond a bound counts as well again only below this share of it."""
    cooldown: Seconds = 300.0
    """After an action, no other for so long."""
    max_actions: int = Field(default=3, ge=1, strict=True)
    """Actions an hour, at most; what would be more is only told."""
    notify: tuple[Notification, ...] = ()
