"""A whole environment: its stacks brought up or down in order, those of a kind side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby

from infra.errors import UserError
from infra.names import PLATFORM_PROJECT
from rollout.project import Project, StackConfig
from rollout.pulumi_stack import Changes, PulumiStack, environment_of, stacks_of
from rollout.release import Notify, NotVerifiedError, Releases
from rollout.sample_requests import SampleRequests, sample_requests


class FleetError(UserError):
    """Some stacks failed. The text holds every reason, and names what was not tried for them."""


@dataclass(frozen=True)
class Done:
    stack: StackConfig
    changes: Changes


def bring_up(project: Project, environment: str, notify: Notify) -> Iterator[Done]:
    """Brings the platform up, then the versions, then the endpoints, and yields each as it is done.

    Every config file of the environment is read and validated before anything is touched.

    Raises:
        SettingsError: when a config can't be used.
        FleetError: when stacks failed. Only those that need one of them were not tried.
    """

    releases = Releases(project, notify)
    stacks = project.stacks(environment)
    releases.confirm(environment)

    def up(stack: StackConfig) -> Changes:
        with project.holding(stack), releases.explaining(stack):
            return PulumiStack(project, stack).up(f"up {environment}", refresh=True, notify=notify)

    yield from _in_waves(stacks, up, needs=_needs)


def verify(project: Project, releases: Releases, endpoints: Sequence[StackConfig]) -> list[SampleRequests]:
    """Waits until the data plane has the weights of an environment's endpoints; returns what each is tried with.

    Raises:
        NotVerifiedError: with every reason, of all that the data plane hasn't got as configured.
    """
    if endpoints:
        # Read once, and not by each of those that start together.
        releases.platform(endpoints[0].settings.environment)

    def verified(endpoint: StackConfig) -> SampleRequests:
        releases.verify(endpoint)
        return sample_requests(releases, project, endpoint, endpoint.endpoint.baseline_version)

    # More than processors, as each mostly waits for what it asks.
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(verified, endpoint) for endpoint in endpoints]
    problems = [str(error) for each in asked if isinstance(error := each.exception(), UserError)]
    if problems:
        raise NotVerifiedError("\n".join(problems))
    return [each.result() for each in asked]


def bring_down(project: Project, environment: str, notify: Notify) -> Iterator[Done]:
    """Destroys the environment's stacks, the endpoints first. Their history stays.

    Raises:
        SettingsError: when a config can't be used.
        FleetError: before anything is touched, when a stack of the environment has resources and no config file any
            more; or when stacks failed. Only those that a failed one needs were not tried.
    """
    declared = project.stacks(environment)
    existing = {team: stacks_of(project, team) for team in [PLATFORM_PROJECT, *project.teams()]}
    addresses = {stack.address for stack in declared}
    undeclared = [
        f"{team}/{name}"
        for team, stacks in existing.items()
        for name, resources in stacks.items()
        if resources
        and f"{team}/{name}" not in addresses
        and environment_of(project, team, name) in (environment, None)
    ]
    if undeclared:
        raise FleetError(
            f"{', '.join(undeclared)}: no config file any more, and still resources; bring the file back from Git, or "
            "run `pulumi destroy --stack NAME` in the team's folder"
        )
    Releases(project, notify).confirm(environment)

    def destroy(stack: StackConfig) -> Changes:
        with project.holding(stack):
            return PulumiStack(project, stack).destroy(notify=notify)

    up = [stack for stack in reversed(declared) if stack.name in existing[stack.team]]
    yield from _in_waves(up, destroy, needs=lambda stack, other: _needs(other, stack))


def _needs(stack: StackConfig, other: StackConfig) -> bool:
    """Whether `stack` can't be without `other`."""
    if other.kind == "platform":
        return stack.kind != "platform"
    if stack.kind != "endpoint" or other.kind != "version" or stack.team != other.team:
        return False
    return other.version.model == stack.endpoint.model and other.version.version in stack.endpoint.versions


def _in_waves(
    stacks: list[StackConfig],
    change: Callable[[StackConfig], Changes],
    needs: Callable[[StackConfig, StackConfig], bool],
) -> Iterator[Done]:
    failed: list[StackConfig] = []
    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _, wave in groupby(stacks, key=lambda stack: stack.kind):
            running = {}
            for stack in wave:
                obstacle = next((other for other in failed if needs(stack, other)), None)
                if obstacle is None:
                    running[pool.submit(change, stack)] = stack
                else:
                    failed.append(stack)
                    problems.append(f"{stack.address}: not tried, for {obstacle.address}")
            for future in as_completed(running):
                try:
                    yield Done(running[future], future.result())
                except UserError as error:
                    failed.append(running[future])
                    problems.append(str(error))
    if problems:
        raise FleetError("\n".join(problems))
