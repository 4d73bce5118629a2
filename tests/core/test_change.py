"""Changes as the hub reads them."""

from __future__ import annotations

from ichicore.live.change import Change, Publish


def test_values_given_as_they_are() -> None:
    change = Change("mongo", "orders", "update", record={"_id": "1"}, old=None, position="7")
    assert (change.kind, change.source, change.event) == ("mongo", "orders", "update")
    assert change.record == {"_id": "1"}
    assert change.old is None
    assert change.record_json is None
    assert change.position == "7"
    assert not change.partial


def test_values_read_from_their_json() -> None:
    change = Change(
        "postgres", "public.t", "UPDATE", record_json=b'{"id":12345678901234567890123,"s":"x"}',
        old_json=b'{"id":1}', position="a",
    )  # fmt: skip
    assert change.record is not None
    assert change.record["s"] == "x"
    assert change.record is change.record
    assert change.old == {"id": 1}


def test_json_that_only_some_parsers_take() -> None:
    lone = Change("postgres", "t", "INSERT", record_json=b'{"j":"\\ud800","n":1e999}')
    assert lone.record == {"j": "\ud800", "n": float("inf")}
    deep = b'{"j":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert Change("postgres", "t", "INSERT", record_json=deep).record is None


def test_a_message() -> None:
    message = Publish("room:1", "chat", b'{"a":1}', "p")
    assert (message.channel, message.event, message.payload_json, message.position) == (
        "room:1", "chat", b'{"a":1}', "p",
    )  # fmt: skip
