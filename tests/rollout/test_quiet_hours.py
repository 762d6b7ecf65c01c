"""Quiet hours, over midnight, in time zones and on the days when the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.rollout import QuietHours
from rollout.driving.quiet_hours import AlwaysQuietError, quiet_until

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ZONES = ("UTC", "Europe/Zurich", "America/New_York", "Asia/Kathmandu", "Africa/Cairo", "Australia/Lord_Howe")


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _hours(start: str, end: str, zone: str = "UTC", days: tuple[str, ...] = _DAYS) -> QuietHours:
    return QuietHours.model_validate({"start": start, "end": end, "zone": zone, "days": days})


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-11-20T17:59:59", None),
        ("2026-11-20T18:00:00", "2026-11-21T06:00:00"),
        ("2026-11-21T05:59:59", "2026-11-21T06:00:00"),
        ("2026-11-21T06:00:00", None),
    ],
)
def test_a_night_lasts_until_the_next_morning(now: str, until: str | None) -> None:
    assert quiet_until([_hours("18:00", "06:00")], _at(now)) == (until and _at(until))


def test_days_are_those_on_which_quiet_hours_start() -> None:
    friday_night = [_hours("18:00", "06:00", days=("fri",))]
    assert quiet_until(friday_night, _at("2026-11-21T03:00:00")) == _at("2026-11-21T06:00:00")
    assert quiet_until(friday_night, _at("2026-11-20T03:00:00")) is None


def test_a_zone_is_the_time_of_day_there() -> None:
    zurich = [_hours("12:00", "13:00", "Europe/Zurich")]
    assert quiet_until(zurich, _at("2026-01-05T11:30:00")) == _at("2026-01-05T12:00:00")
    assert quiet_until(zurich, _at("2026-07-06T10:30:00")) == _at("2026-07-06T11:00:00")


def test_quiet_hours_that_overlap_or_meet_are_one() -> None:
    week = [
        _hours("18:00", "06:00", "UTC", ("fri",)),
        _hours("05:00", "20:00", "UTC", ("sat",)),
        _hours("20:00", "09:00", "UTC", ("sat",)),
    ]
    assert quiet_until(week, _at("2026-11-20T19:00:00")) == _at("2026-11-22T09:00:00")


@pytest.mark.parametrize(
    ("start", "end", "now", "until"),
    [
        # Clocks go from 02:00 to 03:00 at 01:00 UTC.
        ("02:30", "04:00", "2026-03-29T01:10:00", "2026-03-29T02:00:00"),
        ("23:00", "02:30", "2026-03-29T00:59:00", "2026-03-29T01:30:00"),
        ("22:00", "06:00", "2026-03-28T22:00:00", "2026-03-29T04:00:00"),
        # Clocks go from 03:00 back to 02:00 at 01:00 UTC, so that 02:30 is at 00:30 and at 01:30 UTC.
        ("02:30", "04:00", "2026-10-25T00:30:00", "2026-10-25T03:00:00"),
        ("23:00", "02:30", "2026-10-25T00:45:00", "2026-10-25T01:30:00"),
        ("22:00", "06:00", "2026-10-24T20:00:00", "2026-10-25T05:00:00"),
    ],
)
def test_clock_changes_leave_no_gap(start: str, end: str, now: str, until: str) -> None:
    assert quiet_until([_hours(start, end, "Europe/Zurich")], _at(now)) == _at(until)


def test_quiet_hours_without_an_end_are_refused() -> None:
    with pytest.raises(AlwaysQuietError, match=r"18:00 to 06:00 UTC; .*06:00 to 18:00 UTC; leave out one"):
        quiet_until([_hours("18:00", "06:00"), _hours("06:00", "18:00")], _at("2026-11-20T19:00:00"))


def test_a_whole_week_but_an_hour_ends() -> None:
    long = [_hours("00:00", "23:00"), _hours("22:00", "01:00", "UTC", _DAYS[:-1])]
    assert quiet_until(long, _at("2026-11-16T00:00:00")) == _at("2026-11-22T23:00:00")


_TIMES = st.times().map(lambda value: value.strftime("%H:%M"))
_QUIET = st.builds(
    lambda start, end, zone, days: (start, end, zone, tuple(sorted(days))),
    _TIMES,
    _TIMES,
    st.sampled_from(_ZONES),
    st.sets(st.sampled_from(_DAYS), min_size=1),
).filter(lambda given: given[0] != given[1])
_MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)) | st.sampled_from(
    [_at("2026-03-29T01:00:00"), _at("2026-10-25T01:00:00"), _at("2026-03-08T07:00:00"), _at("2026-11-01T06:00:00")]
).flatmap(lambda change: st.integers(-240, 240).map(lambda minutes: change + timedelta(minutes=minutes)))


@given(st.lists(_QUIET, max_size=4), _MOMENTS)
def test_the_end_is_later_and_not_quiet_itself(
    quiet: list[tuple[str, str, str, tuple[str, ...]]], now: datetime
) -> None:
    hours = [_hours(*given) for given in quiet]
    try:
        until = quiet_until(hours, now)
    except AlwaysQuietError:
        return
    if until is not None:
        assert until > now
        assert quiet_until(hours, until) is None
        assert quiet_until(hours, until - timedelta(seconds=1)) == until


@given(_QUIET, _MOMENTS)
def test_whatever_a_clock_on_the_wall_calls_quiet_is_so(
    quiet: tuple[str, str, str, tuple[str, ...]], now: datetime
) -> None:
    start, end, zone, days = quiet
    wall = now.astimezone(ZoneInfo(zone))
    begins, ends = time.fromisoformat(start), time.fromisoformat(end)
    today, yesterday = _DAYS[wall.weekday()] in days, _DAYS[wall.weekday() - 1] in days
    clock = wall.time()
    if begins < ends:
        expected = today and begins <= clock < ends
    else:
        expected = (today and clock >= begins) or (yesterday and clock < ends)
    near = {(now + timedelta(hours=hours)).astimezone(ZoneInfo(zone)).utcoffset() for hours in (-30, 30)}
    found = quiet_until([_hours(*quiet)], now) is not None
    assert found == expected or (found and len(near) > 1)
