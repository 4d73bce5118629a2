"""The encoder against its slow twin, over bytes that need not be a value of the type at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ichicore.rest.rows import RowFormat, TypeTable, json_string
from tests.oracle import rows as oracle

WIDTHS = {
    16: 1, 18: 1, 20: 8, 21: 2, 23: 4, 26: 4, 5069: 8, 700: 4, 701: 8, 774: 8, 829: 6, 1082: 4,
    1083: 8, 1114: 8, 1184: 8, 1186: 16, 1266: 12, 2950: 16,
}  # fmt: skip
TEXTS = (19, 25, 1042, 1043)
DAY = 86_400_000_000
types = TypeTable()


def check(oid: int, data: bytes) -> None:
    try:
        expected = oracle.encode(oid, data)
    except oracle.Malformed:
        with pytest.raises(ValueError, match="malformed"):
            types.encode(oid, data)
    else:
        assert types.encode(oid, data).decode() == expected


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(sorted(WIDTHS)).flatmap(
        lambda oid: st.tuples(st.just(oid), st.binary(min_size=WIDTHS[oid], max_size=WIDTHS[oid]))
    )
)
def test_fixed_width(case: tuple[int, bytes]) -> None:
    check(*case)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        sorted(
            {*oracle.SCALARS, *oracle.ARRAYS}
            - {*TEXTS, 114, 3802, 199, 3807, 1003, 1009, 1014, 1015}
        )
    ),
    st.binary(max_size=40),
)
def test_any_bytes(oid: int, data: bytes) -> None:
    check(oid, data)


@settings(max_examples=300, deadline=None)
@given(st.floats(width=64))
@example(1e23).via("a border of the interval")
@example(9007199254740993.0)
@example(5e-324)
@example(2.2250738585072014e-308)
@example(1.7976931348623157e308)
@example(123456789012345.0)
@example(1234567890123456.0)
@example(0.0001)
@example(0.00001)
def test_float8(value: float) -> None:
    check(701, struct.pack("!d", value))


@settings(max_examples=300, deadline=None)
@given(st.integers(-64, 64), st.integers(-1074, 1023))
def test_float8_near_powers_of_two(offset: int, exponent: int) -> None:
    raw = struct.unpack("!q", struct.pack("!d", 2.0**exponent))[0] + offset
    check(701, struct.pack("!q", max(raw, 0)))


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32))
def test_float4(value: float) -> None:
    check(700, struct.pack("!f", value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_text(text: str) -> None:
    check(25, text.encode())
    assert json_string(text.encode()).decode() == oracle.string(text.encode())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 70), st.sampled_from('"\\\n\x01\x1f/\x7f'), st.integers(0, 70))
def test_text_escape_at_any_offset(before: int, char: str, after: int) -> None:
    check(25, b"x" * before + char.encode() + "é".encode() * after)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 9999), max_size=8),
    st.integers(-12, 12),
    st.sampled_from([0, 0x4000, 0xC000, 0xD000, 0xF000]),
    st.integers(0, 40),
)
def test_numeric(groups: list[int], weight: int, sign: int, scale: int) -> None:
    if groups and groups[0] == 0:
        groups = groups[1:]
    data = struct.pack("!HhHH", len(groups), weight if groups else 0, sign, scale)
    check(1700, data + struct.pack(f"!{len(groups)}H", *groups))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, DAY), st.integers(-57599, 57599))
def test_times(usecs: int, west: int) -> None:
    check(1083, struct.pack("!q", usecs))
    check(1266, struct.pack("!qi", usecs, west))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([650, 869]),
    st.sampled_from([2, 3]),
    st.integers(0, 128),
    st.lists(st.sampled_from([0, 0, 0, 1, 0xFFFF, 0xABCD]), min_size=8, max_size=8),
)
def test_addresses(oid: int, family: int, bits: int, words: list[int]) -> None:
    address = struct.pack("!8H", *words)[-4 if family == 2 else 0 :]
    check(oid, bytes([family, bits, oid == 650, len(address)]) + address)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).flatmap(
        lambda dims: (
            st.tuples(
                st.just(dims),
                st.lists(
                    st.none() | st.integers(-(2**31), 2**31 - 1), min_size=3**6, max_size=3**6
                ),
            )
            if len(dims) < 3
            else st.tuples(st.just(dims), st.just([7] * 729))
        )
    )
)
def test_arrays(case: tuple[list[int], list[int | None]]) -> None:
    dims, values = case
    count = 1
    for size in dims:
        count *= size
    data = struct.pack("!iii", len(dims), 1, 23)
    data += b"".join(struct.pack("!ii", size, -3) for size in dims)
    for value in values[:count]:
        data += struct.pack("!i", -1) if value is None else struct.pack("!ii", 4, value)
    check(1007, data)
    check(1007, data[:-1])


def test_types_made_at_run_time() -> None:
    table = TypeTable()
    assert not table.knows(70000)
    table.add_text(70000)
    table.add_array(70001, 70000)
    table.add_foreign(70002)
    table.add_array(70003, 70002)
    array = struct.pack("!iiiiii", 1, 0, 70000, 1, 1, 1) + b"x"
    assert table.encode(70001, array) == b'["x"]'
    assert table.needs(70002) == table.needs(70003) == -1
    with pytest.raises(LookupError):
        table.encode(70003, array)
    with pytest.raises(LookupError):
        RowFormat(("a",), (70002,), table)
