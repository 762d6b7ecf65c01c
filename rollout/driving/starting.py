"""Makes the state that a rollout starts with, or says why none can start."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from fractions import Fraction

from infra.errors import UserError
from infra.settings import PlatformSettings
from infra.settings.rollout import RolloutSettings
from rollout.driving.asking import is_driven
from rollout.driving.driver import RolloutActiveError, active
from rollout.driving.state import RolloutState, find_state
from rollout.driving.traffic import shadow_in, shares
from rollout.planning.plan import Plan
from rollout.project import Project, StackConfig
from rollout.release import NotDeployedError, Releases
from rollout.strategies import Step, words
from rollout.strategies.move import Move


class NotStartedError(UserError):
    """A rollout can't start as things are."""


def require_startable(releases: Releases, project: Project, endpoint: StackConfig) -> None:
    """Raises where no rollout of the endpoint can start now, whatever its plan.

    Raises:
        RolloutActiveError: when one is under way.
        NotStartedError: when the environment is frozen, or the endpoint is not what its config says.
        NotDeployedError: when the endpoint isn't up.
        ObservationError: when the data plane can't be read.
    """
    stack = releases.pulumi(endpoint)
    environment = endpoint.settings.environment
    if not stack.outputs():
        raise NotDeployedError(f"{endpoint.address} is not up; run `lepton up {environment}`")
    found = find_state(endpoint, stack)
    if found is not None:
        raise RolloutActiveError(active(endpoint.address, found))
    platform = project.platform(environment).settings
    assert isinstance(platform, PlatformSettings)
    if platform.freeze:
        raise NotStartedError(f"{environment} is frozen: {platform.freeze}; nothing was changed")
    # Its outputs say nothing here: an update that failed may have left there what it wanted.
    configured = endpoint.endpoint.weights
    observed = releases.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)["weights"]
    if shares(observed) != shares(configured):
        raise NotStartedError(
            f"{endpoint.address}: {endpoint.shown} says {words(configured)}, and the data plane has {words(observed)}; "
            f"run `lepton deploy {endpoint.address}` first, so that there is one start to go back to"
        )


def new_rollout(
    releases: Releases,
    project: Project,
    endpoint: StackConfig,
    plan: Plan,
    settings: RolloutSettings,
    by: str,
    now: datetime,
) -> RolloutState:
    """The state of a rollout by a plan, that no driver has yet."""
    current = endpoint.endpoint.weights
    gaining = Move.between(current, plan.target, {}).gaining
    found = releases.revisions(endpoint)
    versions = dict.fromkeys(version for step in plan.steps for version in step.capacity)
    state = RolloutState(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        by=by,
        driver="",
        strategy=plan.strategy,
        settings=settings,
        initial=Step(
            weights=current,
            shadow=shadow_in(endpoint.document()),
            capacity=_replicas(releases, project, endpoint, versions, current),
            bake_seconds=0.0,
            percent=0.0,
        ),
        revision=found[-1].number if found else None,
        named_baseline=endpoint.endpoint.baseline,
        baseline=_reference(endpoint, gaining),
        candidates=tuple(gaining),
        steps=plan.steps,
        since=now.isoformat(),
        started=now.isoformat(),
    )
    return state.model_copy(update={"phase": state.entry})


def _reference(endpoint: StackConfig, gaining: Iterable[str]) -> str:
    """The version that others are judged against: the endpoint's baseline, unless it is the one that gains."""
    settings = endpoint.endpoint
    others = {version: weight for version, weight in settings.weights.items() if version not in gaining}
    if settings.baseline_version in others:
        return settings.baseline_version
    return max(others, key=lambda version: others[version])


def _replicas(
    releases: Releases, project: Project, endpoint: StackConfig, versions: Iterable[str], weights: Mapping[str, int]
) -> dict[str, int]:
    """What each version's stack was last brought up with; of one that serves under an autoscaler, what serves."""

    def ask(version: str) -> int:
        stack = project.version_of(endpoint, version)
        desired = releases.pulumi(stack).outputs().get("desired_replicas", 0)
        if not (weights.get(version) and stack.version.autoscaling):
            return desired
        ready = releases.observer(endpoint).ready(endpoint.team, endpoint.endpoint.model, [version])
        return max(desired, ready[version])

    names = list(versions)
    with ThreadPoolExecutor(max_workers=max(len(names), 1)) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def left_behind(
    project: Project, releases: Releases, endpoint: StackConfig, target: dict[str, int]
) -> RolloutState | None:
    """The endpoint's rollout, where it goes to this target and was left by a driver that was killed."""
    state = find_state(endpoint, releases.pulumi(endpoint))
    if state is None or state.stopped or is_driven(project, endpoint):
        return None
    return state if _ratios(state.target) == _ratios(target) else None


def _ratios(weights: dict[str, int]) -> dict[str, Fraction]:
    whole = sum(weights.values())
    return {version: Fraction(weight, whole) for version, weight in weights.items() if weight}
