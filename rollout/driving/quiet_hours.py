"""When no step of a rollout begins: the quiet hours of the settings, as moments in time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from infra.errors import UserError
from infra.settings.rollout import QuietHours

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = timedelta(days=8)
"""And a day, so that a change of the clocks can't make it shorter than one."""
_NEAR = (-2, -1, 0, 1)
"""Days, counted from the local one, whose quiet hours can hold the moment: they last less than a day, and a change of
the clocks can move either end."""


class AlwaysQuietError(UserError):
    """Quiet hours leave no moment of the week."""


def quiet_until(quiet: Sequence[QuietHours], now: datetime) -> datetime | None:
    """The end, in UTC, of the quiet hours that `now` is in; None where it is in none.

    Quiet hours that overlap or follow each other at once are one. A time of day that the clocks skip or repeat counts
    in both of its readings, so that they last rather longer than shorter then.

    Raises:
        AlwaysQuietError: where they never end.
    """
    moment = now.astimezone(UTC)
    latest = moment + _WEEK
    while (end := max((_end(hours, moment) for hours in quiet), default=moment)) > moment:
        if end > latest:
            given = "; ".join(f"{' '.join(hours.days)} {hours.start} to {hours.end} {hours.zone}" for hours in quiet)
            raise AlwaysQuietError(
                f"quiet hours leave no time of the week for a step: given {given}; leave out one of them"
            )
        moment = end
    return moment if moment > now else None


def _end(hours: QuietHours, moment: datetime) -> datetime:
    """When these hours end, of those days whose hours hold the moment; the moment itself where none does."""
    zone = ZoneInfo(hours.zone)
    today = moment.astimezone(zone).date()
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    latest = moment
    for days in _NEAR:
        first = today + timedelta(days)
        if _DAYS[first.weekday()] not in hours.days:
            continue
        last = first if end > start else first + timedelta(1)
        begins = min(_readings(datetime.combine(first, start, zone)))
        ends = max(_readings(datetime.combine(last, end, zone)))
        if begins <= moment < ends:
            latest = max(latest, ends)
    return latest


def _readings(local: datetime) -> tuple[datetime, datetime]:
    """A local time before and after a change of the clocks; the same twice on any other day."""
    return local.replace(fold=0).astimezone(UTC), local.replace(fold=1).astimezone(UTC)
