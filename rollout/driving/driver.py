"""Drives a rollout: each step is prepared, its weights set and read back, and baked until its gates have decided.

All that it knows is in the endpoint's stack (`state.py`) and in the rollout's record, and every phase can be run again:
after a kill -9 at any point, another driver goes on where this one was. See docs/decisions/driver.md.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeVar

from infra.contracts import ObservationError
from infra.errors import UserError
from infra.settings import PlatformSettings, SettingsError
from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import Verdict
from rollout.analysis.samples import Look
from rollout.capacity import CapacityError
from rollout.driving.means import Judging, Means, Recording, Sampling
from rollout.driving.quiet_hours import quiet_until
from rollout.driving.state import Follows, GateOutcome, Phase, RolloutState, adopted, find_state, read_state
from rollout.driving.traffic import final, restored, shadow_in, shares, with_step, with_variants
from rollout.driving.vitals import DEAD_SECONDS, Vitals
from rollout.project import ROLLOUT_KEY, StackConfig, UnknownStackError, waited_for, write_config
from rollout.pulumi_stack import StackError
from rollout.release import FencedError
from rollout.strategies import Step, adapt, moving, winner_step, words

T = TypeVar("T")

TICK_SECONDS = 1.0
"""Between two looks."""
_UNWATCHED_SECONDS = 10.0
"""Of the time between two looks, no more counts as baked: nobody has seen what happened then."""
_WORD_SECONDS = 30.0
"""Between two words on why a step bakes on."""
_BLIND_SECONDS = 30.0
"""How long the data plane's weights may be unreadable before the rollout is held."""
_READY_SECONDS = 30.0
"""How long a version that Pulumi calls deployed may take until the data plane has it ready."""
_UNREADABLE_SECONDS = 30.0
"""How long a config file may be unreadable: an editor may be saving it, or somebody have only half written it."""
_BUSY_SECONDS = 0.2
_ENDING_SECONDS = 3.0
_ATTEMPTS = 4
"""Of an update that fails, before its step does."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class SupersededError(UserError):
    """Another driver acts on the endpoint, or its rollout is gone: this one touches nothing more."""


class NoRolloutError(UserError):
    """The endpoint has no rollout under way."""


class RolloutActiveError(UserError):
    """The endpoint has a rollout under way."""


class StepError(UserError):
    """A step failed."""


class _Changed(Exception):
    """Somebody has asked something, or stopped the rollout: the file's state is what counts now."""

    def __init__(self, state: RolloutState) -> None:
        super().__init__()
        self.state = state


class _Disturbed(Exception):
    """The traffic isn't what the rollout has made it."""


class _Undecidable(Exception):
    """Nobody can say whether the step is good."""


def driver_name() -> str:
    """A name for this process that no other has had: who reads it finds the process."""
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


class Driver:
    """Drives the rollout of one endpoint.

    Args:
        address: the endpoint's.
        name: the driver's own, as `driver_name` gives it.
    """

    def __init__(self, means: Means, address: str, name: str) -> None:
        self._means = means
        self._project = means.project
        self._releases = means.releases
        self._clock = means.clock
        self._address = address
        self._name = name
        self._record: Recording
        self._judge: Judging | None = None
        self._sampler: Sampling | None = None
        self._entered = 0.0
        """When the state was last written, by the clock that only grows."""
        self._known: Follows | None = None
        """What the stack exports, as far as this driver has made or read it."""
        self._possible: tuple[Follows, ...] = ()
        """What it may export after this driver's last update; before one, anything."""
        self._found: Mapping[str, int] | None = None
        """The weights that the data plane had when somebody said to go on."""
        self._blind_since: float | None = None
        self._vitals = Vitals()
        self._phases: Mapping[Phase, Callable[[RolloutState], RolloutState]] = {
            "awaiting approval": self._await_approval,
            "waiting": self._wait,
            "preparing": self._prepare,
            "moving": self._move,
            "baking": self._bake,
            "finishing": self._finish,
            "taking back": self._take_back,
        }

    def register(self, state: RolloutState) -> None:
        """Has the endpoint's config know of a new rollout, which no driver has yet: `go_on` takes it over.

        Raises:
            RolloutActiveError: where one is under way.
        """
        endpoint = self._endpoint()
        with self._held():
            found = find_state(endpoint, self._releases.pulumi(endpoint))
            if found is not None:
                raise RolloutActiveError(active(self._address, found))
            write_config(endpoint, {ROLLOUT_KEY: state.document()})

    def go_on(self, change: Callable[[RolloutState], RolloutState] = lambda state: state) -> RolloutState:
        """Takes the endpoint's rollout over, with such a change, and drives it until it is over or stops.

        Raises:
            NoRolloutError: where none is under way.
            BusyError: where another process on this machine drives it.
            SupersededError: when another driver, or somebody who ended the rollout, has come between.
            RequestError: where the change can't be made.
            SettingsError: when the rollout's state can't be used.
        """
        with self._driving():
            state = self._take_over(change)
            while not (state.ended or state.stopped):
                state = self._go_on(state)
            return state

    # -- the machine

    def _take_over(self, change: Callable[[RolloutState], RolloutState]) -> RolloutState:
        """Makes this the rollout's driver."""
        endpoint = self._endpoint()
        with self._held():
            found = under_way(self._address, find_state(endpoint, self._releases.pulumi(endpoint)))
            state = change(found).model_copy(update={"driver": self._name, "turn": found.turn + 1})
            self._known = self._ask_stack(state)
            state = state.model_copy(update={"follows": self._known})
            write_config(endpoint, self._adopted(endpoint, state, found) | {ROLLOUT_KEY: state.document()})
        self._found = self._observed(endpoint)
        self._record = self._means.record(endpoint, state.id)
        self._entered = self._clock.monotonic()
        self._event("driver", state, driver=self._name)
        if not found.driver:
            self._notify("start", state, f"by {state.by}: {words(state.initial.weights)} to {words(state.target)}")
        self._enters(state)
        made = [shares(each) for each in (state.before.weights, state.current.weights)]
        if self._found is not None and shares(self._found) not in made:
            self._means.say(f"the data plane has {words(self._found)}; the weights of the step will be set again")
        return state

    def _adopted(self, endpoint: StackConfig, state: RolloutState, found: RolloutState) -> dict[str, Any]:
        """The endpoint's config by its key, where that of this checkout has to follow the rollout found in the stack.

        Raises SettingsError where a version has no config file here, and the rollout is to go on.
        """
        edits = adopted(endpoint, self._releases.pulumi(endpoint), found)
        for document in edits.values():
            changed = endpoint.with_document(document)
            if state.phase != "taking back":
                self._project.require_versions(changed)
            self._means.say(
                f"{endpoint.shown} did not know how far the rollout is; it has the traffic of the stack's last update "
                f"now: {words(changed.endpoint.weights)}"
            )
        return edits

    def _go_on(self, state: RolloutState) -> RolloutState:
        """One phase, run to its end or to what came between."""
        try:
            if state.request and state.phase != "taking back":
                after = self._answer(state)
            else:
                after = self._phases[state.phase](state)
        except _Changed as changed:
            return self._stopped_by_somebody(changed.state)
        except SupersededError:
            raise
        except _Disturbed as error:
            after = self._enter(state, "paused", str(error))
        except _Undecidable as error:
            after = self._enter(state, "held", str(error))
        except (UserError, OSError) as error:
            after = self._fail(state, str(error))
        return self._write(state, after)

    def _answer(self, state: RolloutState) -> RolloutState:
        """What follows from a request."""
        by, now = state.asked_by, self._clock.now()
        self._means.say(f"{state.request} by {by}")
        match state.request:
            case "abort":
                return self._enter(state, "taking back", f"aborted by {by}")
            case "pause":
                return self._enter(state.model_copy(update={"request": None}), "paused", f"paused by {by}")
            case _:
                try:
                    return state.promoted(now, by, spent=self._lap())
                except UserError as error:
                    self._means.say(str(error))
                    return state.model_copy(update={"request": None})

    def _await_approval(self, state: RolloutState) -> RolloutState:
        reason = f"step {state.step + 1} of {len(state.steps)} needs approval: `lepton rollout promote {self._address}`"
        if state.reason != reason:
            state = self._write(state, state.model_copy(update={"reason": reason}))
            self._notify("hold", state, reason)
        while True:
            self._tick(state)

    def _wait(self, state: RolloutState) -> RolloutState:
        while reason := self._reason_to_wait(state.settings):
            if reason != state.reason:
                state = self._write(state, state.model_copy(update={"reason": reason}))
                self._means.say(reason)
            self._tick(state)
        return self._enter(state, "preparing")

    def _prepare(self, state: RolloutState) -> RolloutState:
        step = state.current
        self._means.run_hooks(state.settings.hooks.before, self._facts(state), self._project.root)
        self._check(state)
        if step.capacity:
            self._means.capacity.ensure(self._endpoint(), step.capacity)
        endpoint = self._endpoint()
        configured = endpoint.endpoint.weights
        # The file may name a version that was never deployed there.
        observed = self._observed(endpoint)
        variants = configured if observed is None else observed
        missing = [version for version in (*step.weights, *step.shadow) if version not in variants]
        if missing:
            whole = dict.fromkeys(missing, 0) | configured
            said = f"rollout {state.id} step {state.step + 1}/{len(state.steps)}: {' '.join(missing)} without weight"
            self._apply_patiently(state, lambda document: with_variants(document, whole, state.baseline), said)
        for version in state.newcomers:
            self._require_ready(version)
            warmed = self._means.warm_up(self._endpoint(), version)
            self._event("warm", state, version=version, warmed=warmed)
        return self._enter(state, "moving")

    def _move(self, state: RolloutState) -> RolloutState:
        self._check(state)
        step = state.current
        # Counting starts here: what a bad version does while the stack is still busy is seen, too.
        self._look(state)
        said = f"rollout {state.id} step {state.step + 1}/{len(state.steps)}: {_step_words(step)}"
        self._apply_patiently(state, lambda document: with_step(document, step, state.baseline), said)
        self._found = None
        if step.capacity:
            self._reduce(state, step.capacity)
        moved = self._enter(state, "baking")
        self._notify("step", moved, f"step {state.step + 1} of {len(state.steps)}: {_step_words(step)}")
        return moved

    def _bake(self, state: RolloutState) -> RolloutState:
        step, settings = state.current, state.settings
        if state.passed_all:
            return self._enter(state, "finishing")
        judge = self._judge_at(state)
        baked = self._baked(state)
        # Where nothing new gets requests, as before a switch, gates have nothing to pass, but some can fail.
        judged = bool(settings.gates) and any(step.weights[each] or each in step.shadow for each in state.candidates)
        if step.bake_seconds == 0:
            return self._passes(state, [])
        looked = self._clock.monotonic()
        word_at = max(baked, step.bake_seconds)
        while True:
            self._tick(state, observe=False)
            look = self._look(state)
            seconds = self._clock.monotonic() - looked
            looked += seconds
            baked += min(seconds, _UNWATCHED_SECONDS)
            # A look at metrics that aren't there says nothing of weights, which may be fine.
            self._compare(state, look.weights or self._observed(self._endpoint()))
            self._require_alive(state)
            judge.see(look)
            verdicts = [verdict for verdict in judge.verdicts() if judged or verdict.word == "fail"]
            self._record.look(state.step, look, verdicts)
            judged_so = state.model_copy(update={"outcomes": _outcomes(verdicts)})
            failed = [verdict for verdict in verdicts if verdict.word == "fail"]
            if failed:
                said = [f"{each.version} failed gate {each.gate}: {each.reason}" for each in failed]
                return self._fail(judged_so, "; ".join(said))
            winner = judge.winner() if state.strategy == "ab" and judged else None
            if winner:
                return self._won(state, winner, verdicts)
            undecided = _undecided(state, look, verdicts) if judged else ""
            if baked >= step.bake_seconds and not undecided:
                return self._passes(state, verdicts)
            if baked >= max(settings.max_bake, step.bake_seconds):
                reason = f"step {state.step + 1} is inconclusive after {baked:.0f} s: {undecided}"
                back = settings.on_inconclusive == "rollback"
                return self._enter(judged_so, "taking back" if back else "held", reason)
            if baked >= word_at:
                self._means.say(f"step {state.step + 1}/{len(state.steps)}: bakes on after {baked:.0f} s: {undecided}")
                word_at = baked + _WORD_SECONDS

    def _finish(self, state: RolloutState) -> RolloutState:
        """Ends a rollout that has passed. An update that fails now is tried again until it is done."""
        keep, promoted = state.settings.keep, bool(state.reason)
        elapsed = _since(state.since, self._clock.now())
        entered = self._clock.monotonic()
        while keep is not None and not promoted and elapsed + self._clock.monotonic() - entered < keep:
            self._tick(state)
        if keep is not None:
            gone = {
                version: 0
                for version, weight in state.target.items()
                if not weight and state.initial.weights.get(version)
            }
            self._try(lambda: self._reduce(state, gone))
        done = self._enter(state, "succeeded")
        said = f"rollout {state.id} succeeded: {_step_words(state.steps[-1])}"
        self._until_done(lambda: self._apply(done, lambda document: final(document, state), said))
        return done

    def _take_back(self, state: RolloutState) -> RolloutState:
        """Restores what was before, by the fast path first, until it is done."""
        aborted = state.request == "abort"
        back = self._enter(state, "aborted" if aborted else "taken back", state.reason)
        said = f"rollout {state.id} {'aborted' if aborted else 'taken back'}: {_line(state.reason)}"

        def restore() -> None:
            self._bring_back(state.initial)
            try:
                self._apply(back, lambda document: restored(document, state), said, fast=True)
            except ObservationError as error:
                self._means.say(f"the data plane can't be changed past the stack: {error}")
                self._apply(back, lambda document: restored(document, state), said)

        self._until_done(restore)
        if state.initial.capacity:
            self._try(lambda: self._reduce(state, state.initial.capacity))
        return back

    # -- what phases are made of

    def _tick(self, state: RolloutState, *, observe: bool = True) -> None:
        """A second of waiting, and a look whether all is as it should be. Raises as `_check`."""
        self._clock.sleep(TICK_SECONDS)
        self._check(state, observe=observe)

    def _check(self, state: RolloutState, *, observe: bool = True) -> None:
        """Raises _Changed, SupersededError, StepError (it has taken too long), _Disturbed or _Undecidable."""
        endpoint = self._endpoint()
        self._reread(endpoint, state)
        longest = state.settings.max_duration
        if state.phase != "finishing" and state.spent + self._lap() > longest:
            raise StepError(f"not done within its maximum duration, {longest:g} s")
        self._compare(state, endpoint.endpoint.weights, endpoint.shown)
        if observe:
            self._compare(state, self._observed(endpoint))

    def _compare(self, state: RolloutState, weights: Mapping[str, int] | None, where: str = "the data plane") -> None:
        """Raises _Disturbed where the traffic isn't what the rollout made it, _Undecidable where that is unknown."""
        now = self._clock.monotonic()
        if weights is None:
            self._blind_since = now if self._blind_since is None else self._blind_since
            if now - self._blind_since >= _BLIND_SECONDS:
                raise _Undecidable(f"the data plane's weights could not be read for {now - self._blind_since:.0f} s")
            return
        if where == "the data plane":
            self._blind_since = None
        expected = [state.current.weights]
        if state.phase not in ("baking", "finishing"):
            expected += [state.before.weights, *([self._found] if self._found else [])]
        if all(shares(weights) != shares(wanted) for wanted in expected):
            raise _Disturbed(
                f"somebody else has changed the traffic: {where} has {words(weights)}, and the rollout has set "
                f"{words(expected[0] if len(expected) == 1 else expected[1])}; `lepton rollout resume` sets that "
                "of its step again, `lepton rollout abort` that of the start"
            )

    def _observed(self, endpoint: StackConfig) -> dict[str, int] | None:
        """The data plane's weights; None where they can't be read now."""
        try:
            return self._releases.observer(endpoint).traffic(endpoint.team, endpoint.endpoint.model)["weights"]
        except ObservationError:
            return None

    def _reread(self, endpoint: StackConfig, state: RolloutState) -> RolloutState:
        """What the file says of the rollout now. Raises _Changed, and SupersededError where it isn't this driver's."""
        try:
            found = self._readable(lambda: read_state(endpoint))
        except SettingsError as error:
            raise SupersededError(f"{error}\nThis driver touches nothing more") from None
        if found is None or found.id != state.id:
            raise SupersededError(
                f"{endpoint.shown} has {f'rollout {found.id}' if found else 'no rollout'} where it had {state.id}: "
                "this driver touches nothing more"
            )
        if found.driver != self._name:
            raise SupersededError(f"{endpoint.shown}: driver {found.driver} has taken the rollout over from this one")
        if (found.stopped and not state.stopped) or (found.request and found.request != state.request):
            raise _Changed(found)
        return found

    def _write(self, before: RolloutState, after: RolloutState) -> RolloutState:
        """Has the file say where the rollout is, and tells of it. Who has stopped it meanwhile, comes first."""

        def write() -> RolloutState:
            with self._held():
                endpoint = self._endpoint()
                try:
                    found = self._reread(endpoint, before)
                    new = after
                except _Changed as changed:
                    found = changed.state
                    if found.stopped and not after.ended:
                        return found
                    new = after.model_copy(update={"request": found.request, "asked_by": found.asked_by})
                # An update that is made from this file, here or in a checkout that was left behind, is fenced, too.
                new = new.model_copy(update={"follows": self._known or found.follows})
                write_config(endpoint, {ROLLOUT_KEY: None if after.ended else new.document()})
                return new

        # A rollout that goes on can do without: its next update has the state, too.
        written = self._until_done(write) if after.ended or after.stopped else self._try(write) or after
        if written.phase != before.phase or written.step != before.step:
            self._entered = self._clock.monotonic()
            self._enters(written)
        return written

    def _apply_patiently(
        self, state: RolloutState, edit: Callable[[dict[str, Any]], dict[str, Any]], message: str
    ) -> None:
        """Raises the last error when an update fails again and again; what was set before is in force then."""
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._apply(state, edit, message)
            except (StackError, OSError) as error:
                if attempt == _ATTEMPTS:
                    raise
                self._means.say(f"{_line(str(error))}; tried again in {pause:g} s")
            self._clock.sleep(pause)
            self._check(state)
            pause *= 2
        return None

    def _apply(
        self,
        state: RolloutState,
        edit: Callable[[dict[str, Any]], dict[str, Any]],
        message: str,
        *,
        fast: bool = False,
    ) -> None:
        """One update of the endpoint, which the stack refuses where it doesn't follow this driver's last."""
        with self._held():
            endpoint = self._endpoint()
            try:
                self._reread(endpoint, state)
            except _Changed as changed:
                # What is under way to the end of the rollout, no request stops; but whoever has stopped it for weights
                # of their own keeps them.
                if changed.state.stopped or not state.ended:
                    raise
            follows = self._known or self._ask_stack(state)
            following = state.model_copy(update={"follows": follows})
            document = edit(endpoint.document())
            weights = {variant["version"]: variant["weight"] for variant in document["variants"]}
            made = Follows(weights=weights, driver=self._name)
            # If it fails, nobody knows how far it came.
            self._known, self._possible = None, (follows, made)
            began = self._clock.monotonic()
            try:
                self._releases.apply(endpoint, document, message, rollout=following.document(), fast=fast)
            except FencedError as error:
                raise SupersededError(f"{error}\nThis driver touches nothing more") from None
            self._known, self._possible = made, (made,)
            seconds = self._clock.monotonic() - began
            shadow = shadow_in(document)
            self._event("weights", state, weights=weights, shadow=shadow, seconds=round(seconds, 3), text=message)

    def _reduce(self, state: RolloutState, keeps: Mapping[str, int]) -> None:
        """Scales versions down while nobody else can give them traffic. Raises as what it asks, and CapacityError."""
        with self._held():
            endpoint = self._endpoint()
            self._reread(endpoint, state)
            self._ask_stack(state)
            self._means.capacity.reduce(endpoint, keeps)

    def _ask_stack(self, state: RolloutState) -> Follows:
        """What the stack exports. Raises SupersededError where that is of no update of this rollout, or another's."""
        endpoint = self._endpoint()
        outputs = self._releases.pulumi(endpoint).outputs()
        made = outputs.get("rollout")
        begun = state.step > 0 or state.phase in ("baking", "finishing")
        if begun and (made is None or made["id"] != state.id):
            raise SupersededError(
                f"{self._address}: {endpoint.shown} has rollout {state.id}, and the stack's last update is of "
                f"{'rollout ' + made['id'] if made else 'none'}: it was ended elsewhere. Take {ROLLOUT_KEY} out of the "
                "file, or get it as it is there"
            )
        found = Follows.exported(outputs)
        if self._possible and found not in self._possible:
            raise SupersededError(f"{self._address}: somebody else has updated the stack to {words(found.weights)}")
        return found

    def _bring_back(self, step: Step) -> None:
        """Has what is to be restored ready to serve. Raises CapacityError, or ObservationError."""
        endpoint = self._endpoint()
        serving = [*(version for version, weight in step.weights.items() if weight), *step.shadow]
        needs = {version: max(step.capacity.get(version, 1), 1) for version in serving}
        ready = self._releases.observer(endpoint).ready(endpoint.team, endpoint.endpoint.model, serving)
        if all(ready.get(version, 0) >= need for version, need in needs.items()):
            return
        try:
            self._means.capacity.ensure(endpoint, needs)
        except CapacityError as error:
            if not all(ready.get(version) for version in serving):
                raise
            self._means.say(f"going back with fewer replicas than there were: {error}")

    def _look(self, state: RolloutState) -> Look:
        if self._sampler is None:
            self._sampler = self._means.sampler(self._endpoint(), state)
        return self._sampler.look(list(dict.fromkeys([*state.current.weights, *state.current.shadow])))

    def _require_alive(self, state: RolloutState) -> None:
        """Raises StepError where a version that gains requests has had no replica for some time to answer them."""
        endpoint = self._endpoint()
        served = [version for version in state.candidates if state.current.weights[version]]
        try:
            ready = self._releases.observer(endpoint).ready(endpoint.team, endpoint.endpoint.model, served)
        except ObservationError:
            # As long as the weights can be read, that is no verdict.
            return
        dead = self._vitals.see(ready, served, self._clock.monotonic())
        if dead:
            raise StepError(
                f"{', '.join(dead)} gets requests, and has had no ready replica for {DEAD_SECONDS:.0f} s; see "
                f"`lepton status {self._address}`"
            )

    def _require_ready(self, version: str) -> None:
        endpoint = self._endpoint()
        observer = self._releases.observer(endpoint)
        deadline = self._clock.monotonic() + _READY_SECONDS
        while not observer.ready(endpoint.team, endpoint.endpoint.model, [version]).get(version):
            if self._clock.monotonic() > deadline:
                raise StepError(
                    f"{version} has no ready replica, so it gets no traffic; look at `lepton status {self._address}`"
                )
            self._clock.sleep(_BUSY_SECONDS)

    def _judge_at(self, state: RolloutState) -> Judging:
        """The judge with all that was seen in this rollout, in this process or before."""
        if self._judge is None:
            self._judge = self._means.judge(state)
            at = None
            for index, look in self._record.looks():
                if index != at:
                    self._judge.begin_step(index)
                    at = index
                self._judge.see(look)
            if at == state.step:
                return self._judge
        self._judge.begin_step(state.step)
        return self._judge

    def _baked(self, state: RolloutState) -> float:
        """Seconds that the step has been looked at since it was last set: counted by looks, as clocks jump."""
        since = datetime.fromisoformat(state.since).timestamp()
        looks = [look for index, look in self._record.looks() if index == state.step and look.at >= since]
        return sum(min(look.seconds, _UNWATCHED_SECONDS) for look in looks)

    def _passes(self, state: RolloutState, verdicts: Sequence[Verdict]) -> RolloutState:
        for verdict in verdicts:
            self._means.say(f"{verdict.version} passes gate {verdict.gate}: {verdict.reason}")
        outcomes = _outcomes(verdicts)
        judged = state.model_copy(update={"outcomes": outcomes})
        self._means.run_hooks(state.settings.hooks.after, self._facts(judged), self._project.root)
        if state.strategy == "adaptive" and self._judge and state.step < len(state.steps) - 1:
            judged = self._adapted(judged, self._judge)
        return judged.passed(self._clock.now(), outcomes, spent=self._lap())

    def _adapted(self, state: RolloutState, judge: Judging) -> RolloutState:
        """The next step, by the scores so far; the last is a version's that is better beyond chance, if one is."""
        among = moving(state.initial.weights, state.target)
        scored = {version: score for version, score in judge.scores().items() if version in among}
        following = state.steps[state.step + 1]
        ends = state.step + 2 == len(state.steps)
        winner = judge.winner() if ends else None
        adapted = winner_step(state.current, winner, among) if winner in among else adapt(state.current, scored)
        if ends:
            who = f"{winner} is better than the others" if winner in among else "no version is better than the others"
            said = f"{who} beyond chance: the rollout ends with {words(adapted.weights)}"
            self._means.say(said)
            self._event("adapted", state, text=said)
        following = following.model_copy(update={"weights": adapted.weights})
        steps = (*state.steps[: state.step + 1], following, *state.steps[state.step + 2 :])
        return state.model_copy(update={"steps": steps})

    def _won(self, state: RolloutState, winner: str, verdicts: Sequence[Verdict]) -> RolloutState:
        self._means.say(f"{winner} has won")
        among = moving(state.initial.weights, state.target)
        steps = (*state.steps[: state.step + 1], winner_step(state.current, winner, among))
        return self._passes(state.model_copy(update={"steps": steps}), verdicts)

    def _reason_to_wait(self, settings: RolloutSettings) -> str:
        environment = self._endpoint().settings.environment
        platform = self._readable(lambda: self._project.platform(environment))
        assert isinstance(platform.settings, PlatformSettings)
        if platform.settings.freeze:
            return f"{platform.settings.environment} is frozen: {platform.settings.freeze}"
        until = quiet_until(settings.quiet, self._clock.now())
        return f"quiet hours, until {until:%Y-%m-%d %H:%M} UTC" if until else ""

    def _stopped_by_somebody(self, state: RolloutState) -> RolloutState:
        """The file's state; where that has stopped, the file and the record know already why."""
        if state.stopped:
            self._enters(state)
        return state

    def _fail(self, state: RolloutState, reason: str) -> RolloutState:
        return self._enter(state, "taking back" if state.settings.on_failure == "rollback" else "held", reason)

    def _enter(self, state: RolloutState, phase: Phase, reason: str = "") -> RolloutState:
        return state.enter(phase, self._clock.now(), reason, spent=self._lap())

    def _lap(self) -> float:
        """Seconds since the state was last written."""
        return self._clock.monotonic() - self._entered

    # -- telling

    def _enters(self, state: RolloutState) -> None:
        """Says, records and notifies that the rollout is in another phase."""
        where = f"step {state.step + 1}/{len(state.steps)}"
        self._event(state.phase, state)
        match state.phase:
            case "baking":
                self._means.say(f"{where}: {_step_words(state.current)}, as the data plane says; baking")
            case "paused" | "held":
                self._means.say(f"{state.phase} at {where}: {state.reason}")
                self._notify("hold", state, f"{state.phase}: {state.reason}")
            case "taking back":
                self._means.say(f"taking back: {state.reason}")
            case "succeeded":
                self._means.say(f"succeeded: {_step_words(state.steps[-1])}")
                self._notify("success", state, f"succeeded: {_step_words(state.steps[-1])}")
            case "taken back" | "aborted":
                self._means.say(f"{state.phase}: {_step_words(state.initial)}, as the data plane says")
                self._notify("rollback", state, f"{state.phase}: {state.reason}")
            case _:
                self._means.say(f"{where}: {state.phase}{f': {state.reason}' if state.reason else ''}")
        if state.ended:
            self._record.finish(state, self._clock.now())

    def _event(self, kind: str, state: RolloutState, **facts: Any) -> None:
        self._record.event(kind, self._clock.now(), **{**self._facts(state), **facts})

    def _notify(self, on: str, state: RolloutState, text: str) -> None:
        said = f"{self._address}: rollout {state.id} {text}"
        for problem in self._means.tell(state.settings.notify, on, said, self._facts(state)):
            self._means.say(problem)

    def _facts(self, state: RolloutState) -> dict[str, Any]:
        return {
            "endpoint": self._address,
            "rollout": state.id,
            "strategy": state.strategy,
            "phase": state.phase,
            "step": state.step + 1,
            "steps": len(state.steps),
            "weights": state.current.weights,
            "shadow": state.current.shadow,
            "baseline": state.baseline,
            "candidates": list(state.candidates),
            "reason": state.reason,
            "by": state.by,
            "outcomes": [outcome.model_dump() for outcome in state.outcomes],
        }

    # -- inside

    def _endpoint(self) -> StackConfig:
        try:
            return self._readable(lambda: self._project.stack(self._address))
        except (SettingsError, UnknownStackError) as error:
            raise SupersededError(str(error)) from None

    def _readable(self, read: Callable[[], T]) -> T:
        """What a config file says, once it can be used. Raises the last error where it can't for 30 s."""
        deadline = self._clock.monotonic() + _UNREADABLE_SECONDS
        while True:
            try:
                return read()
            except (SettingsError, UnknownStackError):
                if self._clock.monotonic() > deadline:
                    raise
            self._clock.sleep(_BUSY_SECONDS)

    def _driving(self) -> AbstractContextManager[None]:
        """Makes this process the endpoint's driver. One that is just ending, or only asks who drives, is waited for."""
        return waited_for(lambda: self._project.driving(self._endpoint()), self._clock, _ENDING_SECONDS)

    def _held(self) -> AbstractContextManager[None]:
        """Waits for other commands that are changing the endpoint."""
        return waited_for(lambda: self._project.holding(self._endpoint()), self._clock)

    def _until_done(self, do: Callable[[], T]) -> T:
        """Tries again, in ever longer intervals, whatever goes wrong but that this driver is superseded."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return do()
            except SupersededError:
                raise
            except (UserError, OSError) as error:
                self._means.say(f"{_line(str(error))}; tried again in {pause:g} s")
            self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, do: Callable[[], T]) -> T | None:
        """Does what nothing depends on."""
        try:
            return do()
        except SupersededError:
            raise
        except (UserError, OSError) as error:
            self._means.say(str(error))
            return None


def under_way(address: str, state: RolloutState | None) -> RolloutState:
    """Raises NoRolloutError where there is none."""
    if state is None:
        raise NoRolloutError(f"{address}: no rollout is under way; `lepton rollout start` begins one")
    return state


def active(address: str, state: RolloutState) -> str:
    """What to do about a rollout that is under way."""
    return (
        f"{address}: rollout {state.id} to {words(state.target)} is under way, {state.phase} at step "
        f"{state.step + 1} of {len(state.steps)}; go on with `lepton rollout resume {address}`, or end it with "
        f"`lepton rollout abort {address}`"
    )


def _undecided(state: RolloutState, look: Look, verdicts: Sequence[Verdict]) -> str:
    """Why the step can't be passed now; empty where it can."""
    if look.problem:
        return look.problem
    open_ones = [f"{each.version}, gate {each.gate}: {each.reason}" for each in verdicts if each.word != "pass"]
    if not verdicts:
        return "no gate has said anything"
    if state.strategy == "ab" and not open_ones:
        return "no version has won yet"
    return "; ".join(open_ones)


def _outcomes(verdicts: Sequence[Verdict]) -> tuple[GateOutcome, ...]:
    return tuple(
        GateOutcome(gate=each.gate, version=each.version, verdict=each.word, reason=each.reason) for each in verdicts
    )


def _since(moment: str, now: datetime) -> float:
    """Seconds since a time that another process wrote down, whose clock may have been another."""
    return max((now - datetime.fromisoformat(moment)).total_seconds(), 0.0)


def _step_words(step: Step) -> str:
    copies = "".join(f", {percent:g} % copied to {version}" for version, percent in step.shadow.items())
    return words(step.weights) + copies


def _line(text: str) -> str:
    return text.splitlines()[0] if text else ""
