"""Brings versions to the replicas that an endpoint is about to need, from their own history, before any weight moves.

A version that was scaled down, changed, or destroyed since then comes back as it was, and counts once the data plane
has found its replicas ready. Nothing here touches an endpoint.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from infra.contracts import Amount
from infra.errors import UserError
from infra.files import write_atomically
from infra.names import config_file, version_stack
from infra.settings import SettingsError, VersionSettings
from infra.settings.version import MOST_REPLICAS
from model_packaging.artifact import Artifact
from model_packaging.stores import open_store
from rollout.clock import Clock, SystemClock
from rollout.project import Project, StackConfig, UnknownStackError, write_config
from rollout.pulumi_stack import PulumiStack
from rollout.release import Notify, Releases
from rollout.revisions import Revision, is_up, revision_at, revisions

_KEY = "lepton:version"
_SCALED = "scale to "
"""How the message of an update begins that changed nothing of a version but its replicas."""
_RESTORED = "bring back as it was, with "
_OPAQUE = "its history holds secrets, which the backend keeps to itself"
_POLL_SECONDS = 0.1

Refusal = Callable[[str, str], str | None]
"""Why a version of a model may not be brought back into service, if so: the catalogue may have it as retired."""


class CapacityError(UserError):
    """A version can't have the replicas that it needs. No weight was moved for it."""


@dataclass(frozen=True)
class Standing:
    """How a version stands to what an endpoint needs of it."""

    version: str
    stack: StackConfig
    """With the config that it is to have; the file itself may have another, or be gone."""
    document: dict[str, Any]
    """That config, as written."""
    replicas: int
    """How many it is to have ready."""
    missing: str = ""
    """Why it has to be brought back; empty where it is as it is needed."""
    obstacle: str = ""
    """Why it can't be."""
    more: int = 0
    """Replicas that it gets beyond those that it is promised now."""
    up: bool = True
    """Whether its stack is up at all, with whatever config."""
    message: str = ""
    """Of the update that brings it back."""

    def summary(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "replicas": self.replicas,
            "ready": not self.missing,
            "missing": self.missing or None,
            "obstacle": self.obstacle or None,
        }


class Capacity:
    """The replicas of the versions behind a project's endpoints."""

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
        self._refuse = refuse

    def ensure(self, endpoint: StackConfig, needs: Mapping[str, int], at: datetime | None = None) -> dict[str, float]:
        """Has each version be as it was, with at least so many replicas ready, and returns how long each took in s.

        Args:
            needs: Replicas by version. One that needs 0 has to be deployed, and no more.
            at: The moment whose config and replicas are to be in force again; None: those of the config file, or of
                the latest revision where the file is gone.

        Raises:
            CapacityError: saying of each version why it can't be so. What one was brought to before another failed
                stays, and is said.
            NotDeployedError, ObservationError: when the environment isn't up, or its data plane can't be read.
        """
        return self.bring(self.survey(endpoint, needs, at))

    def survey(self, endpoint: StackConfig, needs: Mapping[str, int], at: datetime | None = None) -> list[Standing]:
        """How the versions stand to what is needed; changes nothing. Arguments and errors as of `ensure`."""
        observer, model = self._releases.observer(endpoint), endpoint.endpoint.model
        ready = observer.ready(endpoint.team, model, list(needs))
        with ThreadPoolExecutor(max_workers=max(len(needs), 1)) as pool:
            found = list(
                pool.map(
                    lambda need: self._standing(endpoint, need[0], need[1], at, ready.get(need[0], 0)), needs.items()
                )
            )
        short = [standing for standing in found if standing.missing and not standing.obstacle]
        lacking = _lacking(short, observer.room()["total"], observer.room()["reserved"]) if short else ""
        if lacking:
            found = [replace(each, obstacle=lacking) if each in short and each.more else each for each in found]
        return found

    def bring(self, standings: list[Standing]) -> dict[str, float]:
        """Brings the versions that `survey` found short to what is needed, side by side. Raises as `ensure`."""
        obstacles = [f"{each.stack.address}: {each.missing}; {each.obstacle}" for each in standings if each.obstacle]
        if obstacles:
            raise CapacityError("\n".join(obstacles))
        taken = {each.version: 0.0 for each in standings}
        short = [each for each in standings if each.missing]
        problems: list[str] = []
        with ThreadPoolExecutor(max_workers=max(len(short), 1)) as pool:
            running = {each.version: pool.submit(self._bring, each) for each in short}
            for version, future in running.items():
                try:
                    taken[version] = future.result()
                except UserError as error:
                    problems.append(str(error))
        if problems:
            back = [version for version, seconds in taken.items() if seconds]
            if back:
                problems.append(f"{', '.join(back)}: brought up for this, and left so, without any weight of it")
            raise CapacityError("\n".join(problems))
        return taken

    def reduce(self, endpoint: StackConfig, keeps: Mapping[str, int]) -> list[str]:
        """Scales versions down to so many replicas, and returns those that it did.

        One that has as few, or isn't up, is left alone; so is one whose config holds secrets, as nobody can tell
        whether its file has edits that were never deployed.

        Raises:
            CapacityError: when one that is to have none has weight or a shadow share on the data plane, or when its
                config file has edits that nobody has deployed; none is touched then. Or when a stack's update failed.
            NotDeployedError, ObservationError: as of `ensure`.
        """
        traffic = self._releases.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)
        for version, keep in keeps.items():
            if not keep and (traffic["weights"].get(version) or version in traffic["shadow"]):
                raise CapacityError(
                    f"{endpoint.address}: {version} has a share of the traffic, so it keeps its replicas; nothing was "
                    "scaled down"
                )
        with ThreadPoolExecutor(max_workers=max(len(keeps), 1)) as pool:
            found = list(pool.map(lambda keep: self._surplus(endpoint, *keep), keeps.items()))
            surplus = list(filter(None, found))
            running = [pool.submit(self._scale, stack, document) for stack, document in surplus]
        problems = [str(problem) for future in running if isinstance(problem := future.exception(), UserError)]
        if problems:
            raise CapacityError("\n".join(problems))
        for future in running:
            future.result()
        return [stack.version.version for stack, _ in surplus]

    @contextmanager
    def rehearsed(self, standing: Standing) -> Iterator[PulumiStack]:
        """A version's stack with the config that bringing it back would give it, in a file of its own, to preview."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, standing.stack.file.name)
            _write(_as_file(standing.stack, file), standing.document)
            yield self._releases.pulumi(replace(standing.stack, file=file))

    # -- inside

    def _standing(self, endpoint: StackConfig, version: str, need: int, at: datetime | None, ready: int) -> Standing:
        stack, declared = self._stack(endpoint, version)
        if isinstance(declared, SettingsError):
            return Standing(version, stack, {}, need, "its config file can't be used", str(declared))
        history = self._releases.pulumi(stack).history()
        found = revisions(history, _KEY)
        up, now = is_up(history), found[-1] if found else None
        wanted, obstacle = _wanted(found, at, declared)
        if obstacle:
            return Standing(version, stack, {}, need, "it is not as it was", obstacle)
        try:
            then = stack.with_document(wanted)
        except SettingsError as error:
            return Standing(version, stack, {}, need, "it is not as it was", f"what it was can't be any more: {error}")
        # What may come of the file alone is not known to be what it was: its replicas neither.
        unknown = bool(at and now and not now.document and wanted is declared)
        least = then.version.replicas if at and not unknown else 0
        replicas = _needed(then.version, need, least, ready) if need else 0
        present = now.document.get("replicas", 1) if now and up and now.document else None
        if present is None and now and up:  # its history holds secrets
            present = then.version.replicas
        moves = bool(present and then.version.autoscaling)
        if moves:
            present = ready
        missing = _missing(now, up, None if unknown or moves else present, then, replicas, ready)
        if not missing and need and now and not now.document and wanted is not declared:
            missing = "it was changed since"
        if not missing and declared is None:
            missing = "its config file is gone"
        standing = Standing(version, stack, wanted, replicas, missing, up=up)
        if not missing:
            return standing
        if unknown:
            obstacle = (
                f"{_OPAQUE}, so nobody can tell whether {stack.shown} has edits that were never deployed; look, and "
                f"run `lepton deploy {stack.address}` first"
            )
            return replace(standing, obstacle=obstacle)
        replicas = _needed(then.version, need, then.version.replicas, ready) if need else 0
        asked = max(need, then.version.replicas) if need else 0
        if then.version.autoscaling:
            asked = min(asked, MOST_REPLICAS)
        document = wanted | {"replicas": asked}
        same = now is not None and _same_but_replicas(_parsed(then, now), then.version)
        return replace(
            standing,
            stack=stack.with_document(document),
            document=document,
            replicas=replicas,
            more=max(replicas - (present or 0), 0),
            message=f"{_SCALED if same else _RESTORED}{_count(replicas)}",
            obstacle=self._unservable(endpoint, then.version),
        )

    def _unservable(self, endpoint: StackConfig, version: VersionSettings) -> str:
        """Why the version can't be deployed, as far as that is known beforehand."""
        refused = self._refuse(version.model, version.version)
        if refused:
            return refused
        try:
            store = open_store(self._releases.platform(endpoint.settings.environment)["artifact_store"])
            artifact = Artifact.find(store, version.model, version.version)
        except UserError as error:
            return str(error)
        if version.artifact not in (None, artifact.digest):
            return f"it was {version.artifact}, and the store has {artifact.digest} under its name now"
        return ""

    def _stack(self, endpoint: StackConfig, version: str) -> tuple[StackConfig, dict[str, Any] | SettingsError | None]:
        """The version's stack, and what its config file says; None where that is gone."""
        settings = endpoint.endpoint
        name = version_stack(settings.environment, settings.model, version)
        file = self._project.folder(endpoint.team) / config_file(name)
        minimal = VersionSettings(environment=settings.environment, model=settings.model, version=version)
        gone = StackConfig(endpoint.team, name, file, self._project.show_path(file), "version", minimal)
        try:
            stack = self._project.version_of(endpoint, version)
        except UnknownStackError:
            return gone, None
        except SettingsError as error:
            return gone, error
        return stack, stack.document()

    def _bring(self, standing: Standing) -> float:
        stack, started = standing.stack, self._clock.monotonic()
        self._notify(f"{stack.address}: {standing.missing}; bringing it to {_count(standing.replicas)}")
        with self._project.holding(stack):
            self._deploy(stack, standing.document, standing.message, refresh=True)
            self._await(stack, standing.replicas)
        return self._clock.monotonic() - started

    def _deploy(self, stack: StackConfig, document: dict[str, Any], message: str, *, refresh: bool) -> None:
        """Writes the config and brings the stack up; the file is as it was, or gone again, where that fails."""
        before = stack.file.read_text() if stack.file.exists() else None
        _write(stack, document)
        try:
            with self._releases.explaining(stack):
                self._releases.pulumi(stack).up(message, refresh=refresh, notify=self._notify)
        except BaseException:
            if before is None:
                stack.file.unlink()
            else:
                write_atomically(stack.file, before)
            raise

    def _await(self, stack: StackConfig, replicas: int) -> None:
        settings = stack.version
        observer = self._releases.observer(stack)
        deadline = self._clock.monotonic() + settings.ready_timeout
        while True:
            ready = observer.ready(stack.team, settings.model, [settings.version]).get(settings.version, 0)
            if ready >= replicas:
                return
            if self._clock.monotonic() > deadline:
                raise CapacityError(
                    f"{stack.address}: deployed, and {ready} of {_count(replicas)} ready on the data plane after "
                    f"{settings.ready_timeout:g} s"
                )
            self._clock.sleep(_POLL_SECONDS)

    def _surplus(self, endpoint: StackConfig, version: str, keep: int) -> tuple[StackConfig, dict[str, Any]] | None:
        """The version's stack and the config that scales it down; None where there is nothing to do."""
        stack, declared = self._stack(endpoint, version)
        if isinstance(declared, SettingsError):
            raise CapacityError(f"{stack.address}: not scaled down: {declared}")
        history = self._releases.pulumi(stack).history()
        found = revisions(history, _KEY)
        if not found or not is_up(history):
            return None
        now = found[-1].document
        if declared is None:
            self._notify(f"{stack.address}: not scaled down, as its config file is gone")
            return None
        if not now:
            if stack.version.replicas > keep:
                self._notify(
                    f"{stack.address}: not scaled down: {_OPAQUE}, so nobody can tell whether {stack.shown} has edits "
                    f"that were never deployed; set its replicas to {keep}, and run `lepton deploy {stack.address}`"
                )
            return None
        if now.get("replicas", 1) <= keep:
            return None
        if not _same_but_replicas(_parsed(stack, found[-1]), stack.version):
            raise CapacityError(
                f"{stack.address}: not scaled down, as {stack.shown} has edits that nobody has deployed; "
                f"`lepton deploy {stack.address}` does, or take them back"
            )
        return stack.with_document(declared | {"replicas": keep}), declared | {"replicas": keep}

    def _scale(self, stack: StackConfig, document: dict[str, Any]) -> None:
        with self._project.holding(stack):
            self._deploy(stack, document, f"{_SCALED}{_count(document['replicas'])}", refresh=False)


def _wanted(found: list[Revision], at: datetime | None, declared: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The config that a version is to have again, or why nobody can say it."""
    then = revision_at(found, at) if at else None
    if then is None and declared is not None:
        return declared, ""
    then = then or (found[-1] if found else None)
    if then is None:
        return {}, "the backend has no history of it, and its config file is gone; bring the file back from Git"
    if then.document:
        return then.document, ""
    if declared is None:
        return {}, f"{_OPAQUE}, and its config file is gone; bring the file back from Git"
    since = [later for later in found if later.number > then.number and not later.message.startswith(_SCALED)]
    if since:
        return {}, (
            f"it was deployed {len(since)} times since ({since[-1].started:%Y-%m-%d %H:%M:%S}), and {_OPAQUE}; bring "
            "its config file of then back from Git, and run `lepton deploy`"
        )
    return declared, ""


def _needed(then: VersionSettings, need: int, least: int, ready: int) -> int:
    """Replicas that a version is to have where it is needed.

    Under an autoscaler that is what a deploy begins with, and no fewer than serve now.
    """
    wanted = max(need, least)
    if then.autoscaling is None:
        return wanted
    first = then.model_copy(update={"replicas": wanted}).first_replicas
    return max(first, min(ready, then.autoscaling.max))


def _missing(now: Revision | None, up: bool, present: int | None, then: StackConfig, replicas: int, ready: int) -> str:
    """Why a version is not as it is needed."""
    if now is None or not up:
        return "it is not up" if now else "it was never deployed"
    if not replicas:
        return ""
    if now.document and not _same_but_replicas(_parsed(then, now), then.version):
        return "it was changed since"
    if present is not None and present < replicas:
        return f"it was scaled down to {_count(present)}"
    return f"{ready} of its {_count(replicas)} ready" if ready < replicas else ""


def _parsed(stack: StackConfig, revision: Revision) -> VersionSettings | None:
    """A revision's settings; None where they can't be used any more."""
    try:
        return stack.with_document(revision.document).version
    except SettingsError:
        return None


def _same_but_replicas(one: VersionSettings | None, other: VersionSettings) -> bool:
    return one is not None and one.model_copy(update={"replicas": 0}) == other.model_copy(update={"replicas": 0})


def _lacking(short: list[Standing], total: Amount, reserved: Amount) -> str:
    """What the environment has too little of for these versions; empty where they fit."""
    need = Amount(cpu=0.0, memory=0, gpu=0)
    for each in short:
        resources = each.stack.version.resources
        need["cpu"] += each.more * (resources.cpu or 0)
        need["memory"] += each.more * (resources.memory or 0)
        need["gpu"] += each.more * resources.gpu
    lacking = [
        f"{needed:g} {unit} more are needed, and {have - spoken:g} of {have:g} are free"
        for unit, needed, have, spoken in (
            ("cores", need["cpu"], total["cpu"], reserved["cpu"]),
            ("bytes of memory", need["memory"], total["memory"], reserved["memory"]),
            ("GPUs", need["gpu"], total["gpu"], reserved["gpu"]),
        )
        if needed and needed > have - spoken
    ]
    return f"there is no room for it: {'; '.join(lacking)}" if lacking else ""


def _as_file(stack: StackConfig, file: Path) -> StackConfig:
    """The stack with a copy of its config file, where it has one."""
    if stack.file.exists():
        shutil.copyfile(stack.file, file)
    return replace(stack, file=file)


def _write(stack: StackConfig, document: dict[str, Any]) -> None:
    if stack.file.exists():
        write_config(stack, {_KEY: document})
    else:
        write_atomically(stack.file, yaml.safe_dump({"config": {_KEY: document}}, sort_keys=False))


def _count(replicas: int) -> str:
    return f"{replicas} replica" + ("" if replicas == 1 else "s")
