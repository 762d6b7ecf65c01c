"""Takes an endpoint back to an earlier revision: capacity first, then the weights, then what is no longer needed.

What is restored is the revision's whole config but `rollout` and `guard`: how releases go and are watched is policy,
and stays as it is now. A rollout that is under way ends by it, in the same update.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.contracts import Traffic
from infra.errors import UserError
from rollout.capacity import Capacity, Refusal, Standing
from rollout.clock import Clock, SystemClock
from rollout.project import ROLLOUT_KEY, Project, StackConfig, waited_for, write_config
from rollout.pulumi_stack import NoStackError
from rollout.release import NotDeployedError, Notify, NotVerifiedError, Releases
from rollout.revisions import (
    NoSuchRevisionError,
    Revision,
    in_force_until,
    revision_before,
    revision_led_by,
    revision_numbered,
)

_KEY = "lepton:endpoint"
_POLICY = ("rollout", "guard")
"""Keys of the endpoint's config that a rollback leaves as they are."""

_PATIENCE_SECONDS = 60.0
"""For what other commands do: a rollout's driver holds the endpoint for some seconds a step."""
_PAUSE_SECONDS = 1.0
"""Between two attempts to bring back what another command takes down."""


@dataclass(frozen=True)
class Target:
    """Where to go back to; by default before the last change: see `revisions.revision_before`."""

    revision: int | None = None
    """A revision's number."""
    version: str | None = None
    """The latest revision in which this version had the greatest weight."""


@dataclass
class Report:
    """What a rollback, or a drill of one, came to."""

    endpoint: str
    revision: Revision
    phases: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds by phase, in their order."""
    standings: list[Standing] = field(default_factory=list[Standing])
    """How each version stood before."""
    scaled_down: list[str] = field(default_factory=list[str])
    """Versions that have lost their replicas by it."""
    ended_rollout: str | None = None
    """Id of the rollout that it ended."""
    problems: list[str] = field(default_factory=list[str])
    """Of a rollback, what went wrong after the traffic was back; of a drill, all that stands in the way."""

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    @property
    def brought_back(self) -> list[str]:
        return [standing.version for standing in self.standings if standing.missing]

    def summary(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "restored": self.revision.number,
            "weights": self.revision.weights,
            "seconds": self.seconds,
            "phases": [{"phase": name, "seconds": seconds} for name, seconds in self.phases.items()],
            "capacity": [standing.summary() for standing in self.standings],
            "scaled_down": self.scaled_down,
            "ended_rollout": self.ended_rollout,
            "problems": self.problems,
        }


@dataclass(frozen=True)
class _Way:
    """The way back, as far as it is known before anything is touched."""

    endpoint: StackConfig
    """With the config that it is to have; its file has the one that it has."""
    document: dict[str, Any]
    needs: dict[str, int]
    """Replicas by version: 1 where it is served, and then as many as it had."""
    until: datetime | None
    """When what is restored was last in force; None: it is now."""
    standings: list[Standing]
    before: Traffic
    candidates: list[str]
    """Versions that gain in the rollout that it ends."""


class Rollbacks:
    """Rolls the endpoints of a project back."""

    def __init__(
        self,
        releases: Releases,
        project: Project,
        notify: Notify = lambda _: None,
        clock: Clock | None = None,
        refuse: Refusal = lambda model, version: None,
    ) -> None:
        self._releases = releases
        self._project = project
        self._notify = notify
        self._clock = clock or SystemClock()
        self._capacity = Capacity(releases, project, notify, self._clock, refuse)

    def restore(
        self,
        endpoint: StackConfig,
        target: Target = Target(),
        *,
        now: bool = False,
        keep: bool = False,
        why: str = "",
        patience: float = _PATIENCE_SECONDS,
    ) -> Report:
        """Gives the endpoint the config of an earlier revision again, and the versions in it their replicas before.

        Args:
            endpoint: An endpoint stack; what its config file says is read anew.
            target: Where to.
            now: Moves the weights on the data plane before the stack follows, where its variants allow that.
            keep: Leaves versions that lose all their traffic their replicas; else they are scaled down to none.
            why: For the update's message.
            patience: How long another command that changes the endpoint is waited for, in seconds.

        Raises:
            NoSuchRevisionError, NotDeployedError: there is nothing to go back to.
            BusyError: another command still changes the endpoint.
            CapacityError: a version can't have its replicas back; no weight has moved then.
            SettingsError, StackError, NotFollowedError, NotVerifiedError: see `Releases.apply`. The last one also when
                a version lost its replicas while its weight came back, and could not have them again.
        """
        with self._holding(endpoint, patience):
            report, way = self._find_way(self._project.stack(endpoint.address), target)
            if now and any(standing.missing for standing in way.standings):
                self._notify(f"{endpoint.address}: the target's versions are not all ready, so capacity comes first")
            for version, seconds in self._capacity.bring(way.standings).items():
                if seconds:
                    report.phases[f"capacity of {version}"] = seconds
            self._move(report, way, fast=now and self._can_shift(way), why=why)
            if now:
                with self._timed(report, "agreement"):
                    self._agree(way.endpoint)
            if self._stands(report, way) and not keep:
                self._scale_down(report, way)
        return report

    def drill(self, endpoint: StackConfig, target: Target = Target()) -> Report:
        """Does all of `restore` that changes nothing: its report's problems are what stands in the way back.

        Raises:
            NoSuchRevisionError, NotDeployedError: there is nothing to go back to.
            SettingsError, StackError, ObservationError: a config, the backend or the data plane can't be read.
        """
        report, way = self._find_way(self._project.stack(endpoint.address), target)
        short = [standing for standing in way.standings if standing.missing]
        report.problems += [f"{each.stack.address}: {each.missing}; {each.obstacle}" for each in short if each.obstacle]
        with self._timed(report, "previews"), ThreadPoolExecutor(max_workers=len(short) + 1) as pool:
            previews: list[Callable[[], None]] = [
                lambda each=each: self._preview_version(each) for each in short if not each.obstacle
            ]
            down = [each.version for each in short if not each.up]
            if down:
                self._notify(f"{endpoint.address}: its own preview has to wait until {', '.join(down)} is up again")
            else:
                previews.append(lambda: self._preview_endpoint(way))
            running = [pool.submit(preview) for preview in previews]
        problems = [future.exception() for future in running]
        report.problems += [str(problem) for problem in problems if isinstance(problem, UserError)]
        for problem in problems:
            if problem is not None and not isinstance(problem, UserError):
                raise problem
        return report

    # -- inside

    def _holding(self, endpoint: StackConfig, patience: float) -> AbstractContextManager[None]:
        """Waits for another command that changes the endpoint. Raises BusyError."""

        def waiting() -> None:
            self._notify(f"{endpoint.address}: waiting for another lepton on this machine that is changing it")

        return waited_for(lambda: self._project.holding(endpoint), self._clock, patience, waiting)

    def _find_way(self, endpoint: StackConfig, target: Target) -> tuple[Report, _Way]:
        started = self._clock.monotonic()
        found = self._releases.revisions(endpoint)
        if not found:
            raise NotDeployedError(f"{endpoint.address} has never been up, so there is nothing to go back to")
        state = endpoint.rollout()
        revision = _choose(found, target, state["id"] if state else None)
        if not revision.document:
            raise NoSuchRevisionError(
                f"{endpoint.address}: the config of revision {revision.number} holds secrets, which the backend keeps "
                "to itself; bring its file back from Git, and run `lepton deploy`"
            )
        current = endpoint.document()
        document = {key: value for key, value in revision.document.items() if key not in _POLICY}
        document |= {key: current[key] for key in _POLICY if key in current}
        report = Report(endpoint.address, revision, ended_rollout=state["id"] if state else None)
        report.phases["history"] = self._clock.monotonic() - started
        with self._timed(report, "capacity check"):
            changed = endpoint.with_document(document)
            settings = changed.endpoint
            served = {version for version, weight in settings.weights.items() if weight}
            served |= {settings.shadow.version} if settings.shadow else set()
            needs = {version: int(version in served) for version in settings.versions}
            until = in_force_until(found, revision)
            report.standings = self._capacity.survey(changed, needs, until)
            before = self._releases.observer(changed).traffic(endpoint.team, settings.model)
        candidates = list(state.get("candidates", ())) if state else []
        return report, _Way(changed, document, needs, until, report.standings, before, candidates)

    def _can_shift(self, way: _Way) -> bool:
        new = [version for version in way.endpoint.endpoint.weights if version not in way.before["weights"]]
        if new:
            self._notify(
                f"{way.endpoint.address}: {', '.join(new)} is no variant on the data plane, so the stack goes first"
            )
        return not new

    def _move(self, report: Report, way: _Way, *, fast: bool, why: str) -> None:
        message = f"rollback to revision {report.revision.number}" + (f": {why}" if why else "")
        started = self._clock.monotonic()
        changes = self._releases.apply(way.endpoint, way.document, message, fast=fast)
        seconds = self._clock.monotonic() - started
        if fast:
            report.phases["data plane"] = changes.shift_seconds
            seconds -= changes.shift_seconds
        report.phases["stack" if fast else "weights"] = seconds

    def _agree(self, endpoint: StackConfig) -> None:
        """Makes sure that the stack has nothing left to change.

        Raises:
            NotVerifiedError: where it has.
        """
        left = self._releases.pulumi(endpoint).preview(refresh=True)
        if left.any:
            raise NotVerifiedError(
                f"{endpoint.address}: the data plane has the weights, and its stack still differs from it ({left} by "
                f"another update); `lepton deploy {endpoint.address}` makes them agree"
            )

    def _stands(self, report: Report, way: _Way) -> bool:
        """Whether each version that is served kept its replicas since they were seen; one that didn't is brought back.

        A driver, also one on another machine, may have been about to scale it down when its weight came back.

        Raises:
            NotVerifiedError: when it can't be brought back within a minute.
        """
        served = {each.version: each.replicas for each in way.standings if way.needs[each.version]}
        ready = self._releases.observer(way.endpoint).ready(way.endpoint.team, way.endpoint.endpoint.model, [*served])
        lost = [version for version, replicas in served.items() if ready.get(version, 0) < replicas]
        if not lost:
            return True
        said = f"{', '.join(lost)} lost replicas while the weights came back"
        self._notify(f"{way.endpoint.address}: {said}; bringing them back")
        deadline = self._clock.monotonic() + _PATIENCE_SECONDS
        with self._timed(report, f"capacity of {', '.join(lost)} again"):
            while True:
                try:
                    self._capacity.bring(self._capacity.survey(way.endpoint, way.needs, way.until))
                    break
                except UserError as error:
                    # What takes them down may hold their stacks until it is done.
                    if self._clock.monotonic() >= deadline:
                        raise NotVerifiedError(
                            f"{way.endpoint.address}: the weights are back, and {said}, and could not have them again; "
                            f"nothing was scaled down: {error}"
                        ) from error
                self._clock.sleep(_PAUSE_SECONDS)
        report.problems.append(f"{way.endpoint.address}: {said}; they are back, and nothing was scaled down")
        return False

    def _scale_down(self, report: Report, way: _Way) -> None:
        """Takes their replicas from versions that have lost all their traffic, and from the ended rollout's."""
        after = way.endpoint.endpoint
        served = {version for version, weight in way.before["weights"].items() if weight} | way.before["shadow"].keys()
        kept = {version for version, weight in after.weights.items() if weight}
        kept |= {after.shadow.version} if after.shadow else set()
        started = self._clock.monotonic()
        for version in sorted((served | {*way.candidates}) - kept):
            try:
                report.scaled_down += self._capacity.reduce(way.endpoint, {version: 0})
            except UserError as error:
                report.problems.append(str(error))
        if report.scaled_down:
            report.phases[f"scale-down of {', '.join(report.scaled_down)}"] = self._clock.monotonic() - started

    def _preview_version(self, standing: Standing) -> None:
        with self._capacity.rehearsed(standing) as stack:
            try:
                stack.preview()
            except NoStackError as error:
                self._notify(f"{error}, so there is no preview of it; it would be made anew")

    def _preview_endpoint(self, way: _Way) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, way.endpoint.file.name)
            shutil.copyfile(way.endpoint.file, file)
            rehearsed = replace(way.endpoint, file=file)
            write_config(rehearsed, {_KEY: way.document, ROLLOUT_KEY: None})
            self._releases.pulumi(rehearsed).preview()

    @contextmanager
    def _timed(self, report: Report, phase: str) -> Iterator[None]:
        started = self._clock.monotonic()
        yield
        report.phases[phase] = self._clock.monotonic() - started


def _choose(found: list[Revision], target: Target, rollout_id: str | None) -> Revision:
    if target.revision is not None:
        return revision_numbered(found, target.revision)
    if target.version is not None:
        return revision_led_by(found, target.version)
    return revision_before(found, rollout_id)
