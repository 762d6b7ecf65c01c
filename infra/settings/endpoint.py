"""What an endpoint stack's config may say: config key `lepton:endpoint`."""

from __future__ import annotations

from collections import Counter

from pydantic import Field, field_validator, model_validator

from infra.names import endpoint_stack
from infra.settings.rollout import GuardSettings, RolloutSettings
from infra.settings.values import Name, Seconds, SemanticVersion, Settings, Weight


class Variant(Settings):
    """A version behind the endpoint, and its share as an integer weight relative to its siblings'."""

    version: SemanticVersion
    weight: Weight


class Shadow(Settings):
    """A version that gets a copy of some requests; its answers are dropped."""

    version: SemanticVersion
    percent: float = Field(gt=0, le=100)


class Cookie(Settings):
    name: str = Field(pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")  # RFC 6265, cookie-name
    ttl: Seconds = 3600.0


class Sticky(Settings):
    """What makes requests one client's: a header it sends, or a cookie it is given."""

    header: str | None = Field(default=None, pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")  # RFC 9110, field-name
    cookie: Cookie | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Sticky:
        if (self.header is None) == (self.cookie is None):
            raise ValueError("stickiness goes by a header or by a cookie: give one of the two")
        return self


class Timeouts(Settings):
    """How long an answer may take.

    A streamed answer (server-sent events, gRPC, OpenAI's API) is bounded by `per_try` until it starts and by `idle`
    between its bytes, never by `total`.
    """

    per_try: Seconds = 30.0
    """Until an attempt's answer starts."""
    total: Seconds = 60.0
    """From the request's end to the answer's end, all attempts together."""
    idle: Seconds = 300.0
    """Without a byte in either direction."""


class EndpointSettings(Settings):
    """The durable address of a model, and its whole traffic."""

    environment: Name
    model: Name
    variants: tuple[Variant, ...]
    baseline: SemanticVersion | None = None
    """The variant others are judged against and fail over to. Default: the one with the greatest weight."""
    shadow: Shadow | None = None
    sticky: Sticky | None = None
    failover: bool = True
    """Whether a variant without a healthy replica hands its share to the baseline."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    retries: int = Field(default=2, ge=0, le=10, strict=True)
    """Attempts after the first, only for requests that no server has seen."""
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    guard: GuardSettings | None = None

    @field_validator("variants")
    @classmethod
    def _traffic_is_possible(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if not variants:
            raise ValueError("give at least one variant")
        counts = Counter(variant.version for variant in variants)
        twice = [version for version, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"variant {twice[0]} is listed twice; give each version once, with its whole weight")
        if not any(variant.weight for variant in variants):
            raise ValueError("every weight is 0, so no request could be answered; give one variant at least 1")
        return variants

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> EndpointSettings:
        if self.baseline is not None and self.baseline not in self.weights:
            raise ValueError(f"baseline {self.baseline} is not a variant; choose one of {', '.join(self.weights)}")
        return self

    @property
    def weights(self) -> dict[str, int]:
        return {variant.version: variant.weight for variant in self.variants}

    @property
    def baseline_version(self) -> str:
        return self.baseline or max(self.variants, key=lambda variant: variant.weight).version

    @property
    def versions(self) -> list[str]:
        """Every version that gets requests, or a copy of them."""
        shadow = [self.shadow.version] if self.shadow else []
        return list(dict.fromkeys([*self.weights, *shadow]))

    @property
    def stack_name(self) -> str:
        """The name of the one stack that may have these settings."""
        return endpoint_stack(self.environment, self.model)
