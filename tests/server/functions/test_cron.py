"""When schedules are due, against a search minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from server.functions.cron import MAX_TEXT, Cron, ScheduleError, parse


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(("text", "moment", "due"), [
    ("* * * * *", "2026-03-01T10:00:30", "2026-03-01T10:01:00"),
    ("* * * * *", "2026-03-01T10:00:00", "2026-03-01T10:01:00"),
    ("*/15 * * * *", "2026-03-01T10:46:00", "2026-03-01T11:00:00"),
    ("5,35 8-10/2 * * *", "2026-03-01T08:40:00", "2026-03-01T10:05:00"),
    ("0 0 29 2 *", "2026-03-01T00:00:00", "2028-02-29T00:00:00"),
    ("0 12 * * mon-fri", "2026-03-06T12:00:00", "2026-03-09T12:00:00"),
    ("0 12 * * 7", "2026-03-06T12:00:00", "2026-03-08T12:00:00"),
    ("0 12 13 * FRI", "2026-03-07T12:00:00", "2026-03-13T12:00:00"),
    ("0 12 14 * fri", "2026-03-13T12:00:00", "2026-03-14T12:00:00"),
    ("0 0 1 jan,jul *", "2026-03-13T12:00:00", "2026-07-01T00:00:00"),
    ("59 23 31 12 *", "2026-12-31T23:59:00", "2027-12-31T23:59:00"),
    ("3/20 * * * *", "2026-03-01T10:23:00", "2026-03-01T10:43:00"),
    ("@daily", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
    ("@Hourly", "2026-12-31T23:00:00", "2027-01-01T00:00:00"),
    ("every 10 minutes", "2026-03-01T10:00:00", "2026-03-01T10:10:00"),
    ("every 90s", "2026-03-01T00:00:00", "2026-03-01T00:01:30"),
    ("every 1 day", "2026-03-01T10:00:00", "2026-03-02T00:00:00"),
])  # fmt: skip
def test_the_next_time(text, moment, due):
    assert parse(text).after(at(moment)) == at(due)


@pytest.mark.parametrize("text", [
    "*/7 3-5 * * *", "0,30 * 1,15 * *", "10 4 */9 * 1", "1-59/13 */5 * 2,3 *", "0 0 * * 1,3,5",
])  # fmt: skip
def test_times_are_those_of_a_search_minute_by_minute(text):
    made = parse(text)
    assert isinstance(made, Cron)
    minute, end = at("2026-01-30T00:00:00"), at("2026-03-20T00:00:00")
    days_given = not text.split()[2].startswith("*") and not text.split()[4].startswith("*")
    slow = []
    while minute < end:
        day, weekday = minute.day in made.days, minute.isoweekday() % 7 in made.weekdays
        if (
            minute.minute in made.minutes and minute.hour in made.hours
            and minute.month in made.months and (day or weekday if days_given else day and weekday)
        ):  # fmt: skip
            slow.append(minute)
        minute += timedelta(minutes=1)
    quick, moment = [], at("2026-01-29T23:59:00")
    while (moment := made.after(moment)) < end:
        quick.append(moment)
    assert quick == slow
    gaps = [(b - a).total_seconds() for a, b in zip(slow, slow[1:], strict=False)]  # noqa: RUF007
    assert made.shortest <= min(gaps, default=made.shortest)


@pytest.mark.parametrize(("text", "seconds"), [
    ("* * * * *", 60), ("*/7 * * * *", 240), ("0 * * * *", 3600), ("0 0 * * *", 86_400),
    ("0,59 * * * *", 60), ("every 5 minutes", 300), ("every 1 h", 3600),
])  # fmt: skip
def test_the_shortest_pause(text, seconds):
    assert parse(text).shortest == seconds


@pytest.mark.parametrize("text", [
    "", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *",
    "* * * * 8", "a * * * *", "5-1 * * * *", "*/0 * * * *", "1,,2 * * * *", "0 0 30 2 *",
    "every 0 minutes", "every 5", "every 999999 days", "@never", "-1 * * * *", "1-2-3 * * * *",
    "*" * (MAX_TEXT + 1), "0 0 * feb-xyz *", "١ * * * *", "* * * *\n*", "* * * * *\r\nx: y",
])  # fmt: skip
def test_what_is_no_schedule(text):
    with pytest.raises(ScheduleError):
        parse(text)
