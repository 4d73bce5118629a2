"""When something is due: cron's five fields in UTC, or an interval."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

MAX_TEXT = 200
SHORTHANDS = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}  # fmt: skip
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = (
    ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS), ("day of the week", 0, 7, DAYS),
)  # fmt: skip
INTERVAL = re.compile(r"every ([0-9]{1,6}) ?(s|seconds?|m|minutes?|h|hours?|d|days?)\Z")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
PART = re.compile(r"(\*|[a-z0-9]+(?:-[a-z0-9]+)?)(?:/([0-9]{1,4}))?\Z")
YEARS = 9  # between two 29ths of February, at most
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ScheduleError(ValueError):
    """A text that is no schedule; says why."""


class Interval(NamedTuple):
    """Every so many seconds, counted from the beginning of 1970."""

    seconds: int

    def after(self, moment: datetime) -> datetime:
        """The next time, later than `moment`."""
        passed = (moment - EPOCH) // timedelta(seconds=self.seconds)
        return EPOCH + timedelta(seconds=self.seconds) * (passed + 1)

    @property
    def shortest(self) -> int:
        """Seconds between two times, at least."""
        return self.seconds


class Cron(NamedTuple):
    """Values that match, field by field. either: a day that matches one of the two fields of days
    is enough, as cron has it when both are given."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def _matches(self, moment: datetime) -> bool:
        if moment.month not in self.months:
            return False
        day = moment.day in self.days
        weekday = moment.isoweekday() % 7 in self.weekdays
        return day or weekday if self.either else day and weekday

    def after(self, moment: datetime) -> datetime:
        """The next time, later than `moment`. ScheduleError when there is none."""
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        hours, minutes = sorted(self.hours), sorted(self.minutes)
        for _ in range(366 * YEARS):
            if self._matches(day):
                for hour in hours:
                    for minute in minutes:
                        found = day.replace(hour=hour, minute=minute)
                        if found >= start:
                            return found
            day += timedelta(days=1)
        raise ScheduleError("it is never due")

    @property
    def shortest(self) -> int:
        """Seconds between two times, at least."""
        times = sorted(hour * 60 + minute for hour in self.hours for minute in self.minutes)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return 60 * min([*gaps, times[0] + 1440 - times[-1]])


def parse(text: str) -> Cron | Interval:
    """ScheduleError when it is neither cron's five fields nor `every N minutes`."""
    if len(text) > MAX_TEXT or not text.isascii() or not text.isprintable():
        raise ScheduleError("it is too long, or no plain text")
    bare = " ".join(text.lower().split())
    interval = INTERVAL.match(bare)
    if interval is not None:
        seconds = int(interval[1]) * UNITS[interval[2][0]]
        if not 1 <= seconds <= 366 * 86_400:
            raise ScheduleError("an interval is a second to a year")
        return Interval(seconds)
    fields = SHORTHANDS.get(bare, bare).split(" ")
    if len(fields) != len(FIELDS):
        raise ScheduleError(
            "it has five fields (minute, hour, day, month, day of the week), or is such as "
            "'every 10 minutes' or @daily"
        )
    found = [_field(part, *about) for part, about in zip(fields, FIELDS, strict=True)]
    weekdays = frozenset(day % 7 for day in found[4])
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    made = Cron(found[0], found[1], found[2], found[3], weekdays, either)
    made.after(EPOCH)
    return made


def _field(text: str, name: str, low: int, high: int, words: tuple[str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = PART.match(part)
        if match is None:
            raise ScheduleError(f"{part!r} is no {name}")
        span, step = match[1], int(match[2] or 1)
        if span == "*":
            first, last = low, high
        else:
            start, dash, end = span.partition("-")
            first = _value(start, name, low, high, words)
            last = _value(end, name, low, high, words) if dash else first
            if not dash and match[2]:
                last = high
        if first > last or step < 1:
            raise ScheduleError(f"{part!r} is no {name}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _value(text: str, name: str, low: int, high: int, words: tuple[str, ...]) -> int:
    if text in words:
        return words.index(text) + low
    if not text.isdigit() or not low <= int(text) <= high:
        raise ScheduleError(f"{text!r} is no {name}")
    return int(text)
