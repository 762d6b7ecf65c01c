"""Has the record of a rollout say how it ended where its driver couldn't: a rollback took it out of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime

from infra.settings import SettingsError
from rollout.clock import Clock
from rollout.driving.state import RolloutState, read_state
from rollout.project import Project, StackConfig
from rollout.records.record import Record, read_summary
from rollout.release import Notify


@contextmanager
def recorded_end(project: Project, endpoint: StackConfig, reason: str, notify: Notify, clock: Clock) -> Iterator[None]:
    """Finishes the record of the endpoint's rollout where what is done within ends it, also where that fails after.

    A rollout that its own driver has ended meanwhile has its record already. `reason`: why it ended.
    """
    before, began = _readable(endpoint), clock.now()
    try:
        yield
    finally:
        # A file that can't be read is an error of what was done within, if of anything.
        with suppress(SettingsError):
            after = endpoint.rollout()
            record = Record.of(project, endpoint, before.id, notify) if before else None
            gone = before is not None and (after is None or after.get("id") != before.id)
            if record is not None and before is not None and gone and read_summary(record) is None:
                weights = project.stack(endpoint.address).endpoint.weights
                _finish(record, before, reason, weights, began, clock.now())


def _finish(
    record: Record, before: RolloutState, reason: str, weights: Mapping[str, int], began: datetime, now: datetime
) -> None:
    over = before.model_copy(update={"phase": "taken back", "reason": reason, "since": now.isoformat()})
    facts = {"step": before.step + 1, "steps": len(before.steps), "reason": reason}
    # Its driver may have gone on until the weights were moved.
    last = max((event.at for event in record.events()), default=0.0)
    record.event("taking back", began if began.timestamp() > last else now, **facts)
    record.event("weights", now, phase="taken back", weights=weights, **facts)
    record.event("taken back", now, **facts)
    record.finish(over, now)


def _readable(endpoint: StackConfig) -> RolloutState | None:
    """The state in the config file; a rollback needs none that can be used."""
    try:
        return read_state(endpoint)
    except SettingsError:
        return None
