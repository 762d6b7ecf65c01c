"""Deploys versions and moves an endpoint's traffic, each change verified on the data plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from infra.contracts import ObservationError, Observer, PlatformExports, Traffic, observer_of, shifter_of
from infra.errors import UserError
from infra.settings import EndpointSettings, SettingsError
from infra.settings.fence import CHANGED, Fence, Follows
from rollout.analysis.split import compatible
from rollout.author import acting_user
from rollout.clock import Clock, SystemClock
from rollout.driving.state import ENDED, Phase, RequestError
from rollout.project import ROLLOUT_KEY, BusyError, Project, StackConfig, write_config
from rollout.pulumi_stack import Changes, PulumiStack, StackError
from rollout.revisions import Revision, revisions
from rollout.strategies import words

_VERIFY_SECONDS = 10
_POLL_SECONDS = 0.05
_SPLIT_REQUESTS = 200
"""Enough to see a step that was not taken, and soon sent."""
_SAME_PERCENT = 0.001
"""Two shares of copied requests are one below this difference: routers keep them in whole parts of a million."""
_PAUSED: Phase = "paused"
_TAKING_BACK: Phase = "taking back"

Notify = Callable[[str], None]


class NotVerifiedError(UserError):
    """Pulumi says that it is done, and the data plane says otherwise."""


class FencedError(StackError):
    """The stack isn't what the update was decided on: somebody else has changed it, and nothing was changed."""


class NotFollowedError(UserError):
    """The data plane has been given new weights, and the stack's own update failed after that."""


@dataclass(frozen=True)
class Status:
    """An endpoint: what was asked for, and what is."""

    address: str
    url: str
    weights: dict[str, int]
    observed_weights: dict[str, int]
    ready: dict[str, int]
    revision: int | None

    def summary(self) -> dict[str, Any]:
        return {
            "endpoint": self.address,
            "url": self.url,
            "weights": self.weights,
            "observed_weights": self.observed_weights,
            "ready": self.ready,
            "revision": self.revision,
        }


class NotDeployedError(UserError):
    """The stack isn't up."""


class Releases:
    """Operations on the stacks of one project."""

    def __init__(self, project: Project, notify: Notify = lambda _: None, clock: Clock | None = None) -> None:
        self._project = project
        self._notify = notify
        self._clock = clock or SystemClock()
        self._platforms: dict[str, PlatformExports] = {}

    def deploy(self, stack: StackConfig) -> Changes:
        """Brings a version or an endpoint up as its config file says.

        Raises:
            StackError: when it can't be brought up; a version also when it doesn't become ready.
            NotVerifiedError: when the data plane doesn't come to an endpoint's weights.
        """
        with self._project.holding(stack):
            self.confirm(stack.settings.environment)
            with self.explaining(stack):
                changes = self.pulumi(stack).up(f"deploy {stack.address}", refresh=True, notify=self._notify)
            if stack.kind == "endpoint":
                self.verify(stack)
            return changes

    def set_weights(
        self, endpoint: StackConfig, weights: Mapping[str, int], drop: Iterable[str] = (), by: str | None = None
    ) -> Changes:
        """Gives these versions these weights; variants that aren't named keep theirs, dropped ones go.

        A rollout of the endpoint is paused by it, in the same update; one that was left while it was being taken back
        ends. `by`: who does it; default: see `rollout.author`.

        Raises:
            SettingsError: when the result can't be a config; nothing is touched then.
            RequestError: while a driver takes the endpoint's rollout back; nothing is touched then.
            BusyError, StackError, FencedError, NotVerifiedError: see `apply`.
        """
        with self._project.holding(endpoint):
            self._require_not_taken_back(endpoint)
            document = endpoint.document()
            current = {variant["version"]: variant["weight"] for variant in document["variants"]}
            dropped = set(drop)
            for version in dropped - current.keys():
                raise SettingsError(f"{endpoint.address} has no variant {version} to drop; it has {', '.join(current)}")
            kept = {version: weight for version, weight in {**current, **weights}.items() if version not in dropped}
            variants = [{"version": version, "weight": weight} for version, weight in kept.items()]
            said = words(kept)
            rollout = self.paused(endpoint, f"traffic set by {by or acting_user(self._project.root)}: {said}")
            return self.apply(endpoint, document | {"variants": variants}, f"traffic set {said}", rollout=rollout)

    def _require_not_taken_back(self, endpoint: StackConfig) -> None:
        state = endpoint.rollout()
        if state is None or state["phase"] != _TAKING_BACK:
            return
        try:
            with self._project.driving(endpoint):
                return
        except BusyError:
            raise RequestError(
                f"{endpoint.address}: its rollout {state['id']} is being taken back; try again when it is over: "
                f"`lepton rollout watch {endpoint.address}`"
            ) from None

    def paused(self, endpoint: StackConfig, reason: str) -> dict[str, Any] | None:
        """The state of the endpoint's rollout after somebody else has set its weights.

        None where there is none, or it has ended, or ends by this, as it was left while it was being taken back.
        """
        state = endpoint.rollout()
        if state is None or state["phase"] in ENDED:
            return None
        if state["phase"] == _TAKING_BACK:
            self._notify(f"{endpoint.address}: this ends its rollout {state['id']}, which was being taken back")
            return None
        self._notify(
            f"{endpoint.address}: this pauses its rollout {state['id']}; go on with `lepton rollout resume "
            f"{endpoint.address}`, or end it with `lepton rollout abort {endpoint.address}`"
        )
        # What the driver expected of the stack no longer holds, so this follows whatever is there now.
        outputs = self._outputs(endpoint)
        follows = Follows.exported(outputs).model_dump() if outputs else None
        changed = {"phase": _PAUSED, "reason": reason, "since": self._clock.now().isoformat()}
        return state | changed | {"request": None, "follows": follows}

    def _outputs(self, endpoint: StackConfig) -> dict[str, Any] | None:
        """What the stack exports; None where the backend can't be read: an emergency doesn't wait for it."""
        try:
            return self.pulumi(endpoint).outputs()
        except StackError:
            return None

    def apply(
        self,
        endpoint: StackConfig,
        document: dict[str, Any],
        message: str,
        *,
        rollout: Mapping[str, Any] | None = None,
        fast: bool = False,
    ) -> Changes:
        """Writes an endpoint's config, brings its stack up, and reads the weights back from the data plane.

        `rollout` is the state of its rollout, and None that it has none. `fast`: the data plane has the weights before
        the stack follows. Whoever calls this holds the endpoint.

        Raises:
            SettingsError: when the config can't be used; nothing is touched then.
            ObservationError: when the data plane can't be changed past the stack; nothing is changed then.
            FencedError: when the stack isn't what the rollout's update follows; all is as it was before then.
            StackError: when the update fails; the config file is as it was before then.
            NotFollowedError: when it fails after the data plane was moved; the config file keeps the new weights then.
            NotVerifiedError: when the data plane doesn't come to the new weights.
        """
        changed = endpoint.with_document(document)
        self._project.require_versions(changed)
        key = f"lepton:{endpoint.kind}"
        before = {key: endpoint.document(), ROLLOUT_KEY: endpoint.rollout()}
        if fast and rollout is not None:
            # The stack's own program asks this under Pulumi's lock, and by then the traffic has moved.
            refusal = Fence.model_validate(rollout).refusal(changed.endpoint.weights, self._outputs(endpoint) or {})
            if refusal:
                raise FencedError(f"{endpoint.address}: {refusal}")
        write_config(endpoint, {key: document, ROLLOUT_KEY: rollout})
        started = self._clock.monotonic()
        shifted: float | None = None
        left: Mapping[str, int] = {}
        try:
            if fast:
                left = self._shift(changed)
                shifted = self._clock.monotonic() - started
            changes = self.pulumi(changed).up(message, notify=self._notify)
        except BaseException as error:
            fenced = isinstance(error, StackError) and CHANGED in str(error)
            if fenced and shifted is not None:
                self._shift_back(changed, left)
            elif shifted is not None:
                # The old config would have the next update undo what the emergency asked for.
                raise NotFollowedError(
                    f"{endpoint.address}: the data plane has the new weights, {words(changed.endpoint.weights)}, and "
                    f"so has {endpoint.shown}; its stack did not follow, and `lepton deploy {endpoint.address}` makes "
                    f"it: {error or type(error).__name__}"
                ) from error
            write_config(endpoint, before)
            if fenced:
                raise FencedError(str(error)) from None
            self._notify_of_half_done(endpoint.with_document(before[key]))
            raise
        self.verify(changed)
        return replace(changes, shift_seconds=shifted or 0.0)

    def _shift(self, endpoint: StackConfig) -> dict[str, int]:
        """Has the data plane take the endpoint's weights on, and returns what it had.

        Until the stack follows, a variant that goes has none.
        """
        settings = endpoint.endpoint
        present = self.observer(endpoint).traffic(endpoint.team, settings.model)["weights"]
        shifter = shifter_of(self.platform(settings.environment))
        shifter.shift(endpoint.team, settings.model, {**dict.fromkeys(present, 0), **settings.weights})
        return present

    def _shift_back(self, endpoint: StackConfig, left: Mapping[str, int]) -> None:
        """Undoes a shift, unless whoever changed the stack has given the data plane other weights already."""
        settings = endpoint.endpoint
        given = {**dict.fromkeys(left, 0), **settings.weights}
        try:
            if self.observer(endpoint).traffic(endpoint.team, settings.model)["weights"] == given:
                shifter_of(self.platform(settings.environment)).shift(endpoint.team, settings.model, left)
        except UserError as error:
            self._notify(
                f"{endpoint.address}: the data plane may have {words(given)}, which its stack has not; `lepton deploy "
                f"{endpoint.address}` where the stack was changed makes them agree: {error}"
            )

    def _notify_of_half_done(self, endpoint: StackConfig) -> None:
        """An update that was stopped may have come as far as the data plane."""
        with suppress(UserError):
            weights = self.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)["weights"]
            if weights and weights != endpoint.endpoint.weights:
                self._notify(
                    f"{endpoint.address}: the data plane has {weights}, and {endpoint.shown} again says "
                    f"{endpoint.endpoint.weights}; `lepton deploy {endpoint.address}` makes them agree"
                )

    def verify(self, endpoint: StackConfig) -> Traffic:
        """Waits until the data plane has the weights and the shadow of the endpoint's config.

        Where the data plane doesn't say so itself, requests through it have to be split by these weights too.

        Raises:
            NotVerifiedError: when it hasn't within 10 s.
        """
        observer, settings = self.observer(endpoint), endpoint.endpoint
        deadline = self._clock.monotonic() + _VERIFY_SECONDS
        while True:
            try:
                traffic = observer.traffic(endpoint.team, settings.model)
                said = f"the data plane has {_traffic_said(traffic['weights'], traffic['shadow'])}"
                if traffic["weights"] == settings.weights and _same_shadow(traffic["shadow"], _shadow(settings)):
                    seen = observer.split(endpoint.team, settings.model, _SPLIT_REQUESTS)
                    if seen is None or compatible(settings.weights, seen):
                        return traffic
                    said += f", and of {sum(seen.values())} requests through it were answered: {words(seen)}"
            except ObservationError as error:
                said = str(error)
            if self._clock.monotonic() > deadline:
                wanted = _traffic_said(settings.weights, _shadow(settings))
                raise NotVerifiedError(f"{endpoint.address}: asked for {wanted}, and {said}")
            self._clock.sleep(_POLL_SECONDS)

    def status(self, endpoint: StackConfig) -> Status:
        """Raises NotDeployedError where the endpoint isn't up, ObservationError where the data plane can't be read."""
        outputs = self.pulumi(endpoint).outputs()
        if not outputs:
            raise NotDeployedError(f"{endpoint.address} is not up; run `lepton up {endpoint.settings.environment}`")
        observer, model = self.observer(endpoint), endpoint.endpoint.model
        observed = observer.traffic(endpoint.team, model)
        found = self.revisions(endpoint)
        return Status(
            address=endpoint.address,
            url=outputs["url"],
            weights=outputs["weights"],
            observed_weights=observed["weights"],
            ready=observer.ready(endpoint.team, model, endpoint.endpoint.versions),
            revision=found[-1].number if found else None,
        )

    @contextmanager
    def explaining(self, stack: StackConfig) -> Iterator[None]:
        """Adds to a StackError of a version's update what the data plane knows of why its replicas aren't ready."""
        try:
            yield
        except StackError as error:
            reasons: list[str] = []
            if stack.kind == "version" and type(error) is StackError:
                settings = stack.version
                with suppress(UserError):
                    reasons = self.observer(stack).why_not_ready(stack.team, settings.model, settings.version)
            if not reasons:
                raise
            raise StackError("\n".join([str(error), *(f"{stack.address}: {reason}" for reason in reasons)])) from None

    def revisions(self, endpoint: StackConfig) -> list[Revision]:
        return revisions(self.pulumi(endpoint).history(), f"lepton:{endpoint.kind}")

    def observer(self, stack: StackConfig) -> Observer:
        """Reads the data plane of the stack's environment. Raises NotDeployedError."""
        return observer_of(self.platform(stack.settings.environment))

    def confirm(self, environment: str) -> None:
        """Raises ObservationError where what is reached now isn't the environment as its platform's stack made it.

        To be asked before a refresh, which takes what it doesn't find for gone. Nothing where the platform isn't up.
        """
        with suppress(NotDeployedError):
            observer_of(self.platform(environment)).confirm()

    def platform(self, environment: str) -> PlatformExports:
        """The outputs of an environment's platform. Raises NotDeployedError."""
        if environment not in self._platforms:
            stack = self._project.platform(environment)
            outputs = self.pulumi(stack).outputs()
            if not outputs:
                raise NotDeployedError(f"{stack.address} is not up; run `lepton up {environment}`")
            self._platforms[environment] = cast("PlatformExports", outputs)
        return self._platforms[environment]

    def pulumi(self, stack: StackConfig) -> PulumiStack:
        return PulumiStack(self._project, stack)


def _shadow(settings: EndpointSettings) -> dict[str, float]:
    return {settings.shadow.version: settings.shadow.percent} if settings.shadow else {}


def _same_shadow(found: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return found.keys() == wanted.keys() and all(
        math.isclose(found[version], percent, abs_tol=_SAME_PERCENT) for version, percent in wanted.items()
    )


def _traffic_said(weights: Mapping[str, int], shadow: Mapping[str, float]) -> str:
    copies = "".join(f", and {percent:g} % copied to {version}" for version, percent in shadow.items())
    return (words(weights) or "no weights") + copies
