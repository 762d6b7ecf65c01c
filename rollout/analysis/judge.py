"""Judges what was seen of versions by a rollout's gates. Pure.

Each gate asks one or two questions of a candidate: is it worse than the baseline in the same seconds, and is it worse
than a limit? Each question is an e-process of `sequential.py`. docs/decisions/gates.md says why, and how well.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.settings.rollout import Gate, RolloutSettings
from rollout.analysis.gates import (
    BAND_SHARE,
    FEWEST_WINDOWS,
    QUANTILES,
    Watch,
    ratio_needed,
    score,
    throughput_needed,
    watch,
)
from rollout.analysis.observed import Observed
from rollout.analysis.samples import Look
from rollout.analysis.sequential import mean_windows
from rollout.analysis.verdict import Verdict, Word

__all__ = ["Judge", "Verdict", "Word", "question_alpha", "samples_needed"]

_RENEW_SECONDS = 60.0
"""How often, within a step, evidence is gathered anew beside what there is."""


class Judge:
    """Judges candidates against a baseline by a rollout's gates, through all of its steps.

    Every look goes in once, in order; the same looks give the same verdicts, so records can be replayed. A gate that
    has failed stays so.
    """

    def __init__(self, settings: RolloutSettings, baseline: str, candidates: Sequence[str]) -> None:
        self._arms = (baseline, *candidates)
        self._score = settings.score
        self._observed = Observed(self._arms)
        alpha = question_alpha(settings, len(candidates))
        self._watches = [
            watch(gate, settings, alpha, baseline, candidate) for gate in settings.gates for candidate in candidates
        ]
        self._duels = self._make_duels(settings)
        self._step: int | None = None
        self._steps = 0
        self._since_renewal = 0.0

    def _make_duels(self, settings: RolloutSettings) -> dict[tuple[str, str], Watch]:
        """Of strategies that look for a winner: by version, and another that is asked whether it is worse."""
        if settings.strategy not in ("ab", "adaptive") or not settings.gates:
            return {}
        gate = settings.gates[0].model_copy(update={"compare": True, "limit": None, "tolerance": 1.0})
        pairs = [(better, worse) for better in self._arms for worse in self._arms if better != worse]
        alpha = (1 - BAND_SHARE) * settings.alpha / len(pairs)
        return {pair: watch(gate, settings, alpha, *pair) for pair in pairs}

    def begin_step(self, index: int) -> None:
        """Counts the step's samples from 0. Evidence goes on, and a process that starts now is added to it.

        Another call with the same index changes nothing.
        """
        if index == self._step:
            return
        if self._step is not None:
            self._steps += 1
            self._since_renewal = 0.0
            for each in self._all():
                each.begin_step()
        self._step = index
        self._observed.begin_step(self._steps)

    def see(self, look: Look) -> None:
        self._since_renewal += look.seconds
        if self._since_renewal >= _RENEW_SECONDS:
            self._since_renewal = 0.0
            for each in self._all():
                each.renew()
        for each in self._all():
            each.see(look, self._observed)
        self._observed.add(look)
        for each in self._all():
            each.conclude(self._observed)

    def verdicts(self) -> list[Verdict]:
        """Of each gate on each candidate that the endpoint sends something: requests, or copies of some."""
        return [
            each.verdict(self._observed)
            for each in self._watches
            if each.failed or self._observed.is_sent_something(each.candidate)
        ]

    def winner(self) -> str | None:
        """Of `ab` and `adaptive`: the version that is better than all others by the first gate's metric, beyond chance.

        The probability that a version wins which is not better than all is at most `alpha`, beside that of the gates.
        """
        for arm in self._arms:
            if self._duels and all(self._duels[arm, other].failed for other in self._arms if other != arm):
                return arm
        return None

    def scores(self) -> dict[str, float]:
        """Scores in this step, by version; lower is better, and the baseline's is the sum of the weights.

        A version without requests in the step has none, and none has one while nothing is known of the baseline.
        """
        baseline, step = self._arms[0], self._observed.step
        reference = step[baseline] if step[baseline].requests else self._observed.rollout[baseline]
        if not reference.requests:
            return {}
        scores = {arm: score(step[arm], reference, self._score) for arm in self._arms[1:] if step[arm].requests}
        return {baseline: score(reference, reference, self._score)} | scores

    def _all(self) -> list[Watch]:
        return [*self._watches, *self._duels.values()]


def question_alpha(settings: RolloutSettings, candidates: int = 1) -> float:
    """The level of each question that a gate asks of a candidate: its part of alpha (Bonferroni)."""
    questions = sum(gate.compare + (gate.limit is not None) for gate in settings.gates) * candidates
    return (1 - BAND_SHARE) * settings.alpha / max(1, questions)


def samples_needed(
    gate: Gate, settings: RolloutSettings, baseline_value: float, share: float, *, candidates: int = 1, step: int = 0
) -> int:
    """How many requests of a candidate the gate asks for before it passes: harm of the size `detect` is then found
    with probability `power`.

    Args:
        gate: one of the settings'. Of `score` and `promql` the answer is a number of windows of at least
            `rollout.analysis.samples.WINDOW_SECONDS`, for values that differ between windows by as much as the harm is.
        baseline_value: the baseline's error ratio; of other metrics it does not matter.
        share: the candidate's part of its own and the baseline's requests, above 0 and at most 1. At 1 it is compared
            with what the baseline did before.
        candidates: how many there are, among which alpha is shared.
        step: index of the step that asks, as harm may begin with it.
    """
    alpha = question_alpha(settings, candidates)
    if gate.metric in ("score", "promql"):
        return max(FEWEST_WINDOWS, mean_windows(1.0, alpha, settings.power, step))
    if gate.metric == "throughput":
        return throughput_needed(gate, alpha, settings.power, share, step)
    if gate.metric == "error_ratio":
        level = min(max(baseline_value, 1e-4), 0.99)
        return ratio_needed(gate, alpha, settings.power, level, share, gate.limit, step)
    slow = 1 - QUANTILES[gate.metric]
    limit = None if gate.limit is None else slow
    return ratio_needed(gate, alpha, settings.power, slow, share, limit, step)
