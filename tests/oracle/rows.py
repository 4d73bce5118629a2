"""Binary values to JSON, the slow and obvious way."""

from __future__ import annotations

import datetime
import ipaddress
import json
import struct
import uuid
from collections.abc import Callable
from fractions import Fraction


class Malformed(ValueError):
    """The bytes are not a value of the type."""


def fixed(size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise Malformed
    return data


def string(text: bytes) -> str:
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    out = []
    for char in text.decode():
        code = ord(char)
        out.append(short.get(code) or (f"\\u{code:04x}" if code < 32 else char))
    return '"' + "".join(out) + '"'


def quoted(text: str) -> str:
    return json.dumps(text)


def integer(fmt: str) -> Callable[[bytes], str]:
    return lambda data: str(struct.unpack(fmt, fixed(struct.calcsize(fmt), data))[0])


def floating(data: bytes, bits: int) -> str:
    """The shortest decimal strictly between the two midpoints, the closest of those, and of two
    equally close ones the even."""
    mantissa_bits, fixed_digits = (52, 15) if bits == 64 else (23, 6)
    raw = int.from_bytes(fixed(bits // 8, data), "big")
    sign = "-" if raw >> (bits - 1) else ""
    biased = (raw >> mantissa_bits) & ((1 << (bits - 1 - mantissa_bits)) - 1)
    fraction = raw & ((1 << mantissa_bits) - 1)
    top = (1 << (bits - 1 - mantissa_bits)) - 1
    if biased == top:
        return '"NaN"' if fraction else f'"{sign}Infinity"'
    if not biased and not fraction:
        return sign + "0"
    bias = (top >> 1) + mantissa_bits
    c = fraction if biased == 0 else fraction | 1 << mantissa_bits
    q = (1 if biased == 0 else biased) - bias
    value = Fraction(c) * Fraction(2) ** q
    below = Fraction(2) ** q / (4 if fraction == 0 and biased > 1 else 2)
    low, high = value - below, value + Fraction(2) ** q / 2
    exponent = 400
    while True:  # from coarse to fine: the first power of ten with a multiple in between
        unit = Fraction(10) ** exponent
        first, last = low // unit + 1, -(-high // unit) - 1
        if first <= last:
            nearest = (
                min(range(int(first), int(last) + 1), key=lambda n: (abs(n * unit - value), n % 2))
                if last - first < 50
                else round(value / unit)
            )
            break
        exponent -= 1
    digits = str(nearest).rstrip("0")
    exponent += len(str(nearest)) - len(digits)
    point = len(digits) + exponent - 1
    if -4 <= point < fixed_digits:
        if point < 0:
            return f"{sign}0.{'0' * (-point - 1)}{digits}"
        if len(digits) <= point + 1:
            return sign + digits + "0" * (point + 1 - len(digits))
        return f"{sign}{digits[: point + 1]}.{digits[point + 1 :]}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'-' if point < 0 else '+'}{abs(point):02d}"


def numeric(data: bytes) -> str:
    if len(data) < 8:
        raise Malformed
    count, weight, sign, scale = struct.unpack("!HhHH", data[:8])
    special = {0xC000: '"NaN"', 0xD000: '"Infinity"', 0xF000: '"-Infinity"'}
    if sign in special:
        return special[sign]
    if len(data) != 8 + 2 * count or sign not in (0, 0x4000):
        raise Malformed
    groups = struct.unpack(f"!{count}H", data[8:])
    if any(group > 9999 for group in groups):
        raise Malformed

    def at(position: int) -> str:
        index = weight - position
        return f"{groups[index]:04d}" if 0 <= index < count else "0000"

    whole = "".join(at(p) for p in range(weight, -1, -1))
    whole = at(weight).lstrip("0") + whole[4:] if whole else ""
    if weight >= 0 and not at(weight).lstrip("0"):
        whole = "0" + whole
    after = "".join(at(-p) for p in range(1, scale // 4 + 2))[:scale]
    return ("-" if sign else "") + (whole or "0") + ("." + after if scale else "")


def year_month_day(days: int) -> tuple[str, str]:
    """YYYY-MM-DD of a day number from 2000-01-01, and " BC" or ""."""
    cycles, rest = divmod(days, 146097)
    day = datetime.date(2000, 1, 1) + datetime.timedelta(days=rest)
    year = day.year + 400 * cycles
    shown = year if year > 0 else 1 - year
    return f"{shown:04d}-{day.month:02d}-{day.day:02d}", "" if year > 0 else " BC"


def clock(usecs: int) -> str:
    seconds, fraction = divmod(usecs, 1_000_000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return text + (f".{fraction:06d}".rstrip("0") if fraction else "")


def date(data: bytes) -> str:
    (days,) = struct.unpack("!i", fixed(4, data))
    if days in (2**31 - 1, -(2**31)):
        return '"infinity"' if days > 0 else '"-infinity"'
    return '"' + "".join(year_month_day(days)) + '"'


def timestamp(data: bytes, zone: str = "") -> str:
    (usecs,) = struct.unpack("!q", fixed(8, data))
    if usecs in (2**63 - 1, -(2**63)):
        return '"infinity"' if usecs > 0 else '"-infinity"'
    day, bc = year_month_day(usecs // 86_400_000_000)
    return f'"{day}T{clock(usecs % 86_400_000_000)}{zone}{bc}"'


def time(data: bytes) -> str:
    (usecs,) = struct.unpack("!q", fixed(8, data))
    if not 0 <= usecs <= 86_400_000_000:
        raise Malformed
    return f'"{clock(usecs)}"'


def timetz(data: bytes) -> str:
    usecs, west = struct.unpack("!qi", fixed(12, data))
    if not 0 <= usecs <= 86_400_000_000 or not -86400 < west < 86400:
        raise Malformed
    away = abs(west)
    offset = f"{'+' if west <= 0 else '-'}{away // 3600:02d}"
    if away % 3600:
        offset += f":{away // 60 % 60:02d}"
    if away % 60:
        offset += f":{away % 60:02d}"
    return f'"{clock(usecs)}{offset}"'


def interval(data: bytes) -> str:
    usecs, days, months = struct.unpack("!qii", fixed(16, data))
    if (usecs, days, months) == (2**63 - 1, 2**31 - 1, 2**31 - 1):
        return '"infinity"'
    if (usecs, days, months) == (-(2**63), -(2**31), -(2**31)):
        return '"-infinity"'
    sign = -1 if months < 0 else 1
    parts = [
        (sign * (abs(months) // 12), "year"),
        (sign * (abs(months) % 12), "mon"),
        (days, "day"),
    ]
    out: list[str] = []
    minus = False
    for value, unit in parts:
        if value:
            out.append(
                f"{'+' if minus and value > 0 else ''}{value} {unit}{'' if value == 1 else 's'}"
            )
            minus = value < 0
    if usecs or not out:
        out.append(("-" if usecs < 0 else "+" if minus else "") + clock(abs(usecs)))
    return '"' + " ".join(out) + '"'


def inet(data: bytes) -> str:
    if len(data) < 4:
        raise Malformed
    family, bits, is_cidr, size = data[:4]
    if family not in (2, 3) or size != (4 if family == 2 else 16) or len(data) != 4 + size:
        raise Malformed
    text = str(ipaddress.IPv4Address(data[4:])) if family == 2 else ipv6(data[4:])
    return f'"{text}/{bits}"' if is_cidr or bits != 8 * size else f'"{text}"'


def ipv6(data: bytes) -> str:
    words = struct.unpack("!8H", data)
    runs = [
        (length, -start)
        for start in range(8)
        for length in range(2, 9 - start)
        if not any(words[start : start + length])
    ]
    length, start = max(runs, default=(0, 1))
    start = -start
    dotted = start == 0 and (length == 6 or (length == 5 and words[5] == 0xFFFF))
    tail = str(ipaddress.IPv4Address(data[12:]))
    if dotted:
        return "::" + ("ffff:" if length == 5 else "") + tail
    if length == 0:
        return ":".join(f"{word:x}" for word in words)
    left = ":".join(f"{word:x}" for word in words[:start])
    return left + "::" + ":".join(f"{word:x}" for word in words[start + length :])


def bits(data: bytes) -> str:
    if len(data) < 4:
        raise Malformed
    (count,) = struct.unpack("!i", data[:4])
    if count < 0 or (count + 7) // 8 != len(data) - 4:
        raise Malformed
    return '"' + "".join(f"{byte:08b}" for byte in data[4:])[:count] + '"'


def quoted_char(data: bytes) -> str:
    (code,) = fixed(1, data)
    return string(b"" if code == 0 else data if code < 128 else b"\\%03o" % code)


def macaddr(data: bytes) -> str:
    if len(data) not in (6, 8):
        raise Malformed
    return '"' + data.hex(":") + '"'


def jsonb(data: bytes) -> str:
    if data[:1] != b"\x01":
        raise Malformed
    return data[1:].decode()


def boolean(data: bytes) -> str:
    return "true" if fixed(1, data)[0] else "false"


SCALARS: dict[int, Callable[[bytes], str]] = {
    16: boolean,
    17: lambda data: f'"\\\\x{data.hex()}"',
    18: quoted_char,
    19: string, 25: string, 1042: string, 1043: string,
    20: integer("!q"), 21: integer("!h"), 23: integer("!i"),
    26: lambda data: f'"{integer("!I")(data)}"',
    5069: lambda data: f'"{integer("!Q")(data)}"',
    114: bytes.decode, 3802: jsonb,
    700: lambda data: floating(data, 32), 701: lambda data: floating(data, 64),
    774: macaddr, 829: macaddr, 650: inet, 869: inet,
    1082: date, 1083: time, 1266: timetz, 1114: timestamp,
    1184: lambda data: timestamp(data, "+00:00"),
    1186: interval, 1560: bits, 1562: bits, 1700: numeric,
    2950: lambda data: f'"{uuid.UUID(bytes=fixed(16, data))}"',
}  # fmt: skip

ARRAYS = {
    1000: 16, 1001: 17, 1002: 18, 1003: 19, 1009: 25, 1014: 1042, 1015: 1043, 1016: 20, 1005: 21,
    1007: 23, 1028: 26, 199: 114, 3807: 3802, 1021: 700, 1022: 701, 775: 774, 1040: 829, 651: 650,
    1041: 869, 1182: 1082, 1183: 1083, 1270: 1266, 1115: 1114, 1185: 1184, 1187: 1186, 1561: 1560,
    1563: 1562, 1231: 1700, 2951: 2950,
}  # fmt: skip


def encode(oid: int, data: bytes) -> str:
    """JSON of one value; Malformed when the bytes are not of that type."""
    if oid in SCALARS:
        return SCALARS[oid](data)
    return array(ARRAYS[oid], data)


def array(element: int, data: bytes) -> str:
    if len(data) < 12:
        raise Malformed
    (ndim,) = struct.unpack("!i", data[:4])
    if ndim == 0:
        return "[]"
    if not 0 < ndim <= 6 or len(data) < 12 + 8 * ndim:
        raise Malformed
    sizes = [struct.unpack("!i", data[12 + 8 * i : 16 + 8 * i])[0] for i in range(ndim)]
    if min(sizes) < 0:
        raise Malformed
    at = 12 + 8 * ndim

    def dimension(depth: int) -> str:
        nonlocal at
        items = []
        for _ in range(sizes[depth]):
            if depth + 1 < ndim:
                items.append(dimension(depth + 1))
                continue
            if len(data) - at < 4:
                raise Malformed
            (length,) = struct.unpack("!i", data[at : at + 4])
            at += 4
            if length == -1:
                items.append("null")
                continue
            if length < 0 or length > len(data) - at:
                raise Malformed
            items.append(encode(element, data[at : at + length]))
            at += length
        return "[" + ",".join(items) + "]"

    return dimension(0)
