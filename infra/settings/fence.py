"""What an endpoint's update must find in its stack to be the next of its rollout: config key `lepton:rollout`.

The key holds a rollout's whole state, which is `rollout/`'s; read here is what keeps two drivers apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

CHANGED = "the stack was changed meanwhile"
"""How each refusal begins, whatever Pulumi puts around it."""


class Follows(BaseModel):
    """What the stack's last update left."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    weights: dict[str, int]
    driver: str | None = None
    """Who made it; None: no rollout's driver."""

    @classmethod
    def exported(cls, outputs: Mapping[str, Any]) -> Follows:
        """As an endpoint stack's outputs say it; without weights where it isn't up."""
        maker: Mapping[str, Any] = outputs.get("rollout") or {}
        return cls(weights=outputs.get("weights", {}), driver=maker.get("driver"))


class Fence(BaseModel):
    """Whose update this is, and what it follows."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    id: str
    driver: str
    step: int
    phase: str
    follows: Follows | None = None
    """None: anything until the rollout has set weights, and from then on what this driver of it has set."""

    def refusal(self, weights: Mapping[str, int], outputs: Mapping[str, Any]) -> str | None:
        """Why an update to these weights must not happen on a stack with these outputs, if so.

        A stack that isn't up has nothing to follow, and one that is as the update leaves it may be brought there again.
        """
        if not outputs:
            return None
        maker: Mapping[str, Any] = outputs.get("rollout") or {}
        found = Follows.exported(outputs)
        if self.follows is None:
            begun = self.step > 0 or self.phase in ("baking", "finishing")
            if not begun or (maker.get("id"), maker.get("driver")) == (self.id, self.driver):
                return None
            wanted = f"what driver {self.driver} has set in rollout {self.id}"
        elif found in (self.follows, Follows(weights=dict(weights), driver=self.driver)):
            return None
        else:
            wanted = _words(self.follows)
        return (
            f"{CHANGED}: it has {_words(found)}, and this update by driver {self.driver} follows {wanted}; "
            "nothing was changed"
        )


def _words(state: Follows) -> str:
    # The engine gives outputs in any order.
    weights = " ".join(f"{version}={weight}" for version, weight in sorted(state.weights.items()))
    return f"{weights} by " + (f"driver {state.driver}" if state.driver else "no rollout")
