"""Values of extended JSON, relaxed or canonical, as BSON's types."""

from __future__ import annotations

import binascii
import re
from decimal import Inexact, InvalidOperation, Rounded
from typing import Any

from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId

_HEX = re.compile(r"[0-9a-fA-F]{24}")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_BITS = 1 << 63


def is_hex_id(text: str) -> bool:
    return len(text) == 24 and _HEX.fullmatch(text) is not None


def date_millis(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 text; ValueError."""
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError("not a date")
    year, month, day = (int(found[i]) for i in (1, 2, 3))
    hour, minute, second = (int(found[i] or 0) for i in (4, 5, 6))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (
        1 <= month <= 12
        and 1 <= day <= (29 if leap and month == 2 else 28 if month == 2 else _DAYS[month - 1])
        and hour < 24
        and minute < 60
        and second < 60
        and year >= 1
    ):
        raise ValueError("not a date")
    before = year - (month <= 2)
    era = before // 400
    of_era = before - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    millis = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000
    millis += int((found[7] or "").ljust(3, "0")[:3])
    zone = found[8]
    if zone and zone != "Z":
        hours, minutes = int(zone[1:3]), int(zone[-2:])
        if hours > 23 or minutes > 59:
            raise ValueError("not a date")
        offset = (hours * 60 + minutes) * 60_000
        millis -= offset if zone[0] == "+" else -offset
    return millis


def _oid(value: Any) -> ObjectId:
    if type(value) is str and is_hex_id(value):
        return ObjectId(value)
    raise ValueError("24 hexadecimal digits are expected")


def _date(value: Any) -> DatetimeMS:
    if type(value) is str:
        return DatetimeMS(date_millis(value))
    if type(value) is int and -_BITS <= value < _BITS:
        return DatetimeMS(value)
    if type(value) is dict and list(value) == ["$numberLong"]:
        return DatetimeMS(int(_long(value["$numberLong"])))
    raise ValueError("a date or milliseconds are expected")


def _long(value: Any) -> Int64:
    if type(value) is str and _INTEGER.fullmatch(value) and -_BITS <= int(value) < _BITS:
        return Int64(value)
    raise ValueError("an integer of 64 bits in quotes is expected")


def _int(value: Any) -> int:
    if type(value) is str and _INTEGER.fullmatch(value) and -(1 << 31) <= int(value) < 1 << 31:
        return int(value)
    raise ValueError("an integer of 32 bits in quotes is expected")


def _double(value: Any) -> float:
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if type(value) is str and re.fullmatch(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,4})?", value):
        found = float(value)
        if found - found == 0:
            return found
    raise ValueError("a number in quotes is expected")


def _decimal(value: Any) -> Decimal128:
    if type(value) is str and len(value) <= 64:
        try:
            return Decimal128(value)
        except (InvalidOperation, Inexact, Rounded, ArithmeticError):
            pass
    raise ValueError("a decimal of at most 34 digits in quotes is expected")


def _binary(value: Any) -> Binary:
    if (
        type(value) is dict
        and sorted(value) == ["base64", "subType"]
        and type(value["base64"]) is str
        and type(value["subType"]) is str
        and re.fullmatch(r"[0-9a-fA-F]{1,2}", value["subType"])
    ):
        try:
            data = binascii.a2b_base64(value["base64"], strict_mode=True)
        except (binascii.Error, ValueError):
            raise ValueError("not base64") from None
        return Binary(data, int(value["subType"], 16))
    raise ValueError('{"base64": …, "subType": "00"} is expected')


READERS = {
    "$oid": _oid,
    "$date": _date,
    "$numberLong": _long,
    "$numberInt": _int,
    "$numberDouble": _double,
    "$numberDecimal": _decimal,
    "$binary": _binary,
}
