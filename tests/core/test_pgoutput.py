"""The decoder of the change stream against its slow twin, over random streams and broken ones."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.live.change import Change
from ichicore.live.pgoutput import DecodeError, Decoder
from ichicore.live.pgtypes import HSTORE, Types
from tests.oracle import pgoutput as oracle

PAIR, PAIRS, STORE, NESTED = 70_000, 70_001, 70_002, 70_003
PAIR_KIND = oracle.Record(("a", 23), ('b"', 25))
KINDS = {
    PAIR: PAIR_KIND, PAIRS: oracle.Array(PAIR_KIND), STORE: oracle.HSTORE,
    NESTED: oracle.Record(("p", PAIR_KIND), ("list", oracle.Array(PAIR_KIND)), ("t", 1184)),
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


def known() -> Types:
    types = Types()
    types.add_record(PAIR, ("a", 'b"'), (23, 25))
    types.add_array(PAIRS, PAIR)
    types.add_simple(STORE, HSTORE)
    types.add_record(NESTED, ("p", "list", "t"), (PAIR, PAIRS, 1184))
    return types


def array_text(values: list[str | None]) -> str:
    """As array_out writes it."""
    shown = []
    for value in values:
        if value is None:
            shown.append("NULL")
        elif value == "" or value.upper() == "NULL" or any(c in '{},"\\ \t\n\r\v\f' for c in value):
            shown.append('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
        else:
            shown.append(value)
    return "{" + ",".join(shown) + "}"


def record_text(values: list[str | None]) -> str:
    """As record_out writes it."""
    shown = []
    for value in values:
        if value is None:
            shown.append("")
        elif value == "" or any(c in '(),"\\ \t\n\r\v\f' for c in value):
            shown.append('"' + value.replace("\\", "\\\\").replace('"', '""') + '"')
        else:
            shown.append(value)
    return "(" + ",".join(shown) + ")"


def hstore_text(value: dict[str, str | None]) -> str:
    def escaped(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(
        f"{escaped(key)}=>{'NULL' if item is None else escaped(item)}"
        for key, item in value.items()
    )


NUMBER = st.integers(-(2**31), 2**31 - 1).map(str)
PAIR_TEXT = st.tuples(st.none() | NUMBER, st.none() | TEXT).map(lambda v: record_text(list(v)))
STAMP = st.sampled_from(
    ["2024-07-01 12:00:00+00", "0044-03-15 00:00:00.5+00 BC", "infinity", "-infinity",
     "2024-07-01 12:00:00.123456+05:30", "1890-01-01 00:00:00-04:56:02"]
)  # fmt: skip
VALUES: dict[int, st.SearchStrategy[str]] = {
    16: st.sampled_from(["t", "f"]),
    20: NUMBER,
    701: st.sampled_from(["NaN", "Infinity", "-Infinity", "1e+300", "-0", "0.1"]),
    1700: st.sampled_from(["NaN", "12.50", "-0.001", "12345678901234567890123"]),
    25: TEXT,
    3802: st.sampled_from(['{"a": [1, null]}', '"é"', "null"]),
    1114: st.sampled_from(["2024-07-01 12:00:00", "infinity", "0001-01-01 00:00:00 BC"]),
    1184: STAMP,
    1007: st.lists(st.none() | NUMBER, max_size=4).map(array_text),
    1009: st.lists(st.none() | TEXT, max_size=4).map(array_text),
    1185: st.lists(STAMP, max_size=3).map(array_text),
    22: st.lists(st.integers(0, 9).map(str), max_size=3).map(" ".join),
    PAIR: PAIR_TEXT,
    PAIRS: st.lists(st.none() | PAIR_TEXT, max_size=3).map(array_text),
    STORE: st.dictionaries(TEXT, st.none() | TEXT, max_size=3).map(hstore_text),
    NESTED: st.tuples(
        st.none() | PAIR_TEXT, st.lists(PAIR_TEXT, max_size=2).map(array_text), STAMP
    ).map(lambda v: record_text(list(v))),
}


def framed(body: bytes) -> bytes:
    return b"w" + struct.pack(">QQQ", 1, 2, 3) + body


def relation(oid: int, name: str, identity: bytes, columns: list[tuple[str, int, bool]]) -> bytes:
    body = b"R" + struct.pack(">I", oid) + b"public\0" + name.encode() + b"\0" + identity
    body += struct.pack(">H", len(columns))
    for column, kind, key in columns:
        body += bytes([key]) + column.encode() + b"\0" + struct.pack(">Ii", kind, -1)
    return framed(body)


def row(values: list[Any]) -> bytes:
    out = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            out += b"n"
        elif value is ...:
            out += b"u"
        else:
            out += b"t" + struct.pack(">I", len(value.encode())) + value.encode()
    return out


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The messages of some transactions over some tables."""
    tables = []
    for oid in range(draw(st.integers(1, 3))):
        kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6))
        identity = draw(st.sampled_from([b"d", b"f", b"n", b"i"]))
        keys = identity in (b"d", b"i")
        columns = [
            (draw(st.sampled_from(["", "ü", 'q"'])) + f"c{i}", kind, (keys and i == 0) or
             identity == b"f")
            for i, kind in enumerate(kinds)
        ]  # fmt: skip
        tables.append((oid, identity, columns))

    def values(columns: Any, unchanged: bool, all_null_but_key: bool = False) -> list[Any]:
        found: list[Any] = []
        for _, kind, key in columns:
            if all_null_but_key and not key:
                found.append(None)
            elif unchanged and draw(st.integers(0, 4)) == 0:
                found.append(...)
            else:
                found.append(draw(st.none() | VALUES[kind]))
        return found

    out: list[bytes] = []
    lsn = 100
    for _ in range(draw(st.integers(1, 4))):
        lsn += draw(st.integers(1, 1000))
        out.append(framed(b"B" + struct.pack(">QQI", lsn, 0, 1)))
        for oid, identity, columns in tables:
            out.append(relation(oid, f"t{oid}", identity, columns))
        for _ in range(draw(st.integers(0, 5))):
            oid, identity, columns = draw(st.sampled_from(tables))
            head = struct.pack(">I", oid)
            what = draw(st.sampled_from("IUUDTM"))
            full = identity == b"f"
            if what == "I":
                out.append(framed(b"I" + head + b"N" + row(values(columns, False))))
            elif what == "U":
                old = b""
                if full or draw(st.booleans()):
                    old = (b"O" if full else b"K") + row(values(columns, False, not full))
                out.append(framed(b"U" + head + old + b"N" + row(values(columns, True))))
            elif what == "D":
                old = (b"O" if full else b"K") + row(values(columns, False, not full))
                out.append(framed(b"D" + head + old))
            elif what == "T":
                out.append(framed(b"T" + struct.pack(">IB", 1, 0) + head))
            else:
                content = b'room:1\nevent\n{"a":1}'
                prefix = draw(st.sampled_from([b"ichibase", b"other"]))
                flags = draw(st.integers(0, 1))
                out.append(framed(b"M" + struct.pack(">BQ", flags, 7) + prefix + b"\0" +
                                  struct.pack(">I", len(content)) + content))  # fmt: skip
        out.append(framed(b"C" + struct.pack(">BQQQ", 0, lsn, lsn + 8, 0)))
    return out


def plain(items: list[Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for item in items:
        if isinstance(item, Change):
            found.append((item.source, item.event, item.record_json, item.old_json, item.position))
        else:
            found.append((item.channel, item.event, item.payload_json, item.position))
    return found


@settings(max_examples=150, deadline=None)
@given(streams())
def test_equal_to_the_twin(messages: list[bytes]) -> None:
    decoder, twin = Decoder(known()), oracle.Decoder(KINDS)
    for message in messages:
        decoder.feed(message)
        twin.feed(message)
    found = decoder.take()
    assert plain(found) == twin.found
    for item in found:
        if isinstance(item, Change) and item.record_json is not None:
            json.loads(item.record_json)


@settings(max_examples=100, deadline=None)
@given(streams(), st.data())
def test_after_a_break_nothing_is_missing_or_given_twice(
    messages: list[bytes], data: st.DataObject
) -> None:
    """The server begins anew at the start of a transaction that was not confirmed."""
    decoder, twin = Decoder(known()), oracle.Decoder(KINDS)
    for message in messages:
        twin.feed(message)
    starts = [i for i, message in enumerate(messages) if message[25:26] == b"B"]
    at = 0
    for _ in range(data.draw(st.integers(0, 3))):
        until = data.draw(st.integers(at, len(messages)))
        for message in messages[at:until]:
            decoder.feed(message)
        at = data.draw(st.sampled_from([start for start in starts if start <= until]))
        decoder.reset()
    for message in messages[at:]:
        decoder.feed(message)
    assert plain(decoder.take()) == twin.found


@settings(max_examples=200, deadline=None)
@given(streams(), st.data())
def test_broken_messages_are_refused(messages: list[bytes], data: st.DataObject) -> None:
    decoder = Decoder(known())
    for message in messages:
        if data.draw(st.integers(0, 3)) == 0:
            broken = bytearray(message)
            for _ in range(data.draw(st.integers(1, 4))):
                broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
            message = bytes(broken[: data.draw(st.integers(1, len(broken)))])
        try:
            decoder.feed(message)
        except (DecodeError, UnicodeDecodeError):
            decoder.reset()
        if decoder.missing:
            decoder.reset()
    decoder.take()


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([1007, 1009, 22, PAIR, PAIRS, STORE, NESTED, 16, 20, 701, 1114, 1184]),
       st.text(st.sampled_from('{}(),"\\ :=>tNUL1a'), max_size=14))  # fmt: skip
def test_text_that_is_no_value(kind: int, text: str) -> None:
    """What it becomes is JSON all the same."""
    decoder = Decoder(known())
    for message in (
        framed(b"B" + struct.pack(">QQI", 9, 0, 1)),
        relation(1, "t", b"d", [("c", kind, True)]),
        framed(b"I" + struct.pack(">I", 1) + b"N" + row([text])),
    ):
        decoder.feed(message)
    (change,) = decoder.take()
    assert isinstance(change, Change)
    assert change.record_json is not None
    json.loads(change.record_json)


def test_types_that_are_asked_for() -> None:
    decoder = Decoder(Types())
    decoder.feed(framed(b"B" + struct.pack(">QQI", 9, 0, 1)))
    decoder.feed(relation(1, "t", b"d", [("c", PAIR, True), ("d", 90_000, False)]))
    assert decoder.missing == (PAIR, 90_000)
    decoder.types.add_record(PAIR, ("a",), (23,))
    decoder.types.add_simple(90_000)
    decoder.resume()
    assert decoder.missing == ()
    insert = framed(b"I" + struct.pack(">I", 1) + b"N" + row(["(1)", "x"]))
    decoder.feed(insert)
    assert plain(decoder.take())[0][2] == b'{"c":{"a":1},"d":"x"}'
    ddl = framed(b"M" + struct.pack(">BQ", 1, 7) + b"ichibase_ddl\0" + struct.pack(">I", 0))
    decoder.feed(ddl)
    assert decoder.schema_changed
    decoder.feed(insert)
    assert decoder.missing == (PAIR, 90_000)
    assert decoder.take() == []
    decoder.types.add_record(PAIR, ("z",), (23,))
    decoder.types.add_simple(90_000)
    decoder.resume()
    assert plain(decoder.take())[0][2] == b'{"c":{"z":1},"d":"x"}'
    decoder.feed(framed(b"I" + struct.pack(">I", 1) + b"N" + row(["(1,2)", "x"])))
    assert plain(decoder.take())[0][2] == b'{"c":"(1,2)","d":"x"}'
    decoder.feed(insert)
    assert decoder.missing == (PAIR, 90_000)


def test_only_wanted_tables_but_the_same_positions() -> None:
    def positions(wanted: frozenset[str] | None) -> list[str]:
        decoder = Decoder(Types(), wanted)
        decoder.feed(framed(b"B" + struct.pack(">QQI", 9, 0, 1)))
        for oid in (1, 2):
            decoder.feed(relation(oid, f"t{oid}", b"d", [("c", 23, True)]))
        for oid in (1, 2, 1, 2):
            decoder.feed(framed(b"I" + struct.pack(">I", oid) + b"N" + row(["1"])))
        return [item.position for item in decoder.take()]

    assert positions(frozenset({"public.t2"})) == positions(None)[1::2]


def test_what_other_databases_write_may_be_forgotten() -> None:
    def alive(lsn: int) -> bytes:
        return b"k" + struct.pack(">QQB", lsn, 0, 0)

    decoder = Decoder(Types())
    decoder.begin_at(50)
    decoder.feed(alive(70))
    assert decoder.end_lsn == 70
    decoder.feed(framed(b"B" + struct.pack(">QQI", 90, 0, 1)))
    decoder.feed(alive(95))  # the transaction is needed again until it is whole
    assert decoder.end_lsn == 70
    decoder.feed(framed(b"C" + struct.pack(">BQQQ", 0, 90, 98, 0)))
    assert decoder.end_lsn == 98
    decoder.feed(alive(97))
    assert decoder.end_lsn == 98


@pytest.mark.parametrize("message", [b"", b"x", b"w" + bytes(24), framed(b"?"), framed(b"C")])
def test_no_messages_of_the_protocol(message: bytes) -> None:
    with pytest.raises(DecodeError):
        Decoder(Types()).feed(message)
