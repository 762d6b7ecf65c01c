"""Turns the weights that are and those that are wanted into the steps between. Pure.

A step is what an endpoint is to be like for a while: weights, a shadow, and the replicas that each version needs then.
What holds of the steps of every strategy, over any number of versions:

- Weights are integers, never all 0, with one sum for all steps; the last step has the target's ratios exactly.
- A version whose share is the same before and after (a bystander) has exactly that share in every step.
- The percentage never falls, and rises with every step that moves something to where it is going.
- A step can be undone. On the way between two steps each version has the more of both steps' replicas, there and back
  alike, so what fitted forwards fits backwards. But for `rolling`, which gives the old replicas up as it goes, no
  version has fewer replicas than in the step before, so weights alone take a step back.

Weights are exact where a sum of at most 1000000 can say the shares: 5 % of `{a: 1}` is `{a: 95, b: 5}`. Elsewhere the
target and the bystanders are exact, and of the others none is off by 1 of the sum (the largest remainders round up).

Replicas that a version's config asks for are its owner's word and stay, even where they look few. A version that asks
for none, or that no config knows, gets as many as its share needs, by what the versions that lose have for theirs, and
at least 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from infra.settings.rollout import RolloutSettings, StrategyName
from rollout.strategies import ab, adaptive, blue_green, canary, rolling, shadow
from rollout.strategies.adaptive import adapt
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import Step, StrategyError, words
from rollout.strategies.weights import common_sum, whole_weights

__all__ = ["Step", "StrategyError", "adapt", "moving", "plan_steps", "winner_step", "words"]

_STRATEGIES: dict[StrategyName, Callable[[Move, RolloutSettings], list[Stage]]] = {
    "canary": canary.stages,
    "rolling": rolling.stages,
    "blue-green": blue_green.stages,
    "canary-blue-green": blue_green.stages_after_canary,
    "shadow": shadow.stages,
    "ab": ab.stages,
    "adaptive": adaptive.stages,
}

_ROUND_SUMS: dict[StrategyName, int] = {"adaptive": 10_000}
"""What the sum of weights is a multiple of, where that can be. A score moves less than a percent, too."""


def plan_steps(
    current: Mapping[str, int], target: Mapping[str, int], settings: RolloutSettings, replicas: Mapping[str, int]
) -> list[Step]:
    """The steps from one set of weights to another, by the settings' strategy.

    A version that one of the sets lacks has weight 0 in it. `replicas`: by version, as its config asks for.

    A step in which nothing new gets requests bakes for 0 s, as there is nothing to look at; but before a switch the old
    side is looked at alone. A percentage to approve that
    no step has is that of the first step beyond it.

    Raises:
        StrategyError: when there is nothing to move, or the strategy can't do it.
    """
    move = Move.between(current, target, replicas)
    stages = _STRATEGIES[settings.strategy](move, settings)
    total = common_sum(move, [stage.shares for stage in stages], _ROUND_SUMS.get(settings.strategy, 100))
    approvals = _to_approve(settings, stages)
    before = move.current
    steps: list[Step] = []
    for index, stage in enumerate(stages):
        weights = whole_weights(stage.shares, total)
        unseen = [version for version in move.gaining if stage.shares[version] and not weights[version]]
        if unseen:
            raise StrategyError(
                f"at {float(stage.done * 100):g} %, {unseen[0]} would have less than 1 of {total}, which weights can't "
                "say; begin with a greater percentage"
            )
        looked_at = stage.rests or bool(stage.shadow) or (stage.done > 0 and stage.shares != before)
        steps.append(
            Step(
                weights=weights,
                shadow=dict(stage.shadow),
                capacity=dict(stage.capacity),
                bake_seconds=settings.bake if looked_at else 0.0,
                approval=index in approvals,
                percent=round(float(stage.done * 100), 6),
            )
        )
        before = stage.shares
    return steps


def moving(current: Mapping[str, int], target: Mapping[str, int]) -> list[str]:
    """The versions whose share differs between two sets of weights. Raises StrategyError as `plan_steps`."""
    return Move.between(current, target, {}).moving


def winner_step(step: Step, winner: str, among: Collection[str]) -> Step:
    """The step in which all that versions have together is the winner's; the others keep their replicas for a while.

    `among`: the versions that were compared, as `moving` says. Nobody looks at it: what it says has been judged.

    Raises:
        StrategyError: where the winner is none of them.
    """
    if winner not in among:
        raise StrategyError(f"{winner} can't win among {', '.join(among)}: it is none of them")
    won = sum(step.weights[version] for version in among)
    weights = {version: 0 if version in among else weight for version, weight in step.weights.items()}
    return Step(weights=weights | {winner: won}, capacity=step.capacity, bake_seconds=0.0, percent=100.0)


def _to_approve(settings: RolloutSettings, stages: list[Stage]) -> set[int]:
    """Which stages wait for somebody. A percentage that is skipped must not skip the somebody."""
    found: set[int] = set()
    for percent in settings.approve:
        if not 0 <= percent <= 100:
            raise StrategyError(f"approve: given {percent:g}: a percentage of what moves is from 0 to 100")
        # A third of the replicas is no percentage that anybody can write.
        wanted = round(percent, 2)
        found.add(next(index for index, stage in enumerate(stages) if round(float(stage.done * 100), 2) >= wanted))
    return found
