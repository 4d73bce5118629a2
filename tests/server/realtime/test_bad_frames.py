"""What a frame gets that is bad, too much, or random."""

import os
import random
import time

import orjson
import pytest

from tests.oracle.websocket import BINARY, TEXT, frame
from tests.server.realtime.frames import RULES, join, row
from tests.server.realtime.world import SECRET, project, token


@pytest.fixture
def one(world):
    return world(project(SECRET, RULES))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "bad_frame"), (b"{", "bad_frame"), (b"[]", "bad_frame"), (b"1", "bad_frame"),
        (b'"x"', "bad_frame"), (b"{}", "unknown_type"), (b'{"type":5}', "unknown_type"),
        (b'{"type":"nope","ref":"r"}', "unknown_type"), (b'{"type":"subscribe"}', "bad_frame"),
        (b'{"type":"subscribe","ref":"r","kind":"x"}', "bad_frame"),
        (b'{"type":"subscribe","ref":"r","kind":"postgres"}', "bad_frame"),
        (b'{"type":"subscribe","ref":"","kind":"mongo","collection":"a"}', "bad_frame"),
        (b'{"type":"subscribe","ref":7,"kind":"mongo","collection":"a"}', "bad_frame"),
        (b'{"type":"subscribe","ref":"' + b"r" * 65 + b'","kind":"mongo","collection":"a"}',
         "bad_frame"),
        (b'{"type":"subscribe","ref":"r","kind":"broadcast","channel":7}', "bad_frame"),
        (b'{"type":"subscribe","ref":"r","kind":"broadcast"}', "bad_channel"),
        (b'{"type":"unsubscribe","ref":"r"}', "unknown_ref"),
        (b'{"type":"broadcast"}', "bad_frame"),
        (b'{"type":"token"}', "bad_frame"), (b'{"type":"token","token":"x"}', "invalid_token"),
        (b'{"type":"ping"} x', "bad_frame"), (b'{"type":"ping","a":"\x01"}', "bad_frame"),
        (b'{"type":"ping","a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "bad_frame"),
        (b'{"type":"broadcast","channel":"room:1","payload":' + b"[" * 900 + b"]" * 900 + b"}",
         "broadcast_denied"),
        (b'{"type":"broadcast","channel":"room:1","payload":nul}', "bad_frame"),
        (b'{"type":"subscribe","ref":"r","kind":"postgres","table":"' + b"x" * 300 + b'"}',
         "bad_frame"),
    ],
)  # fmt: skip
def test_bad_frames_get_an_error_and_keep_the_socket(one, data, code):
    client = one.connect()
    client.send(TEXT, data)
    answer = client.hear()
    assert (answer["type"], answer["code"]) == ("error", code)
    if b'"ref":"r"' in data:
        assert answer["ref"] == "r"
    client.silent()


def test_binary_frames_get_an_error(one):
    client = one.connect()
    client.send(BINARY, b'{"type":"ping"}')
    assert client.hear()["code"] == "bad_frame"
    client.silent()


def test_a_ref_is_taken_once(one):
    client = one.connect()
    join(client)
    answer = client.ask(type="subscribe", ref="c1", kind="broadcast", channel="room:2")
    assert (answer["code"], answer["ref"]) == ("duplicate_ref", "c1")


def test_limits_of_a_connection(one):
    client = one.connect(token("u1"))
    for number in range(100):
        join(client, f"room:{number}", f"r{number}")
    answer = client.ask(type="subscribe", ref="more", kind="broadcast", channel="room:x")
    assert (answer["code"], answer["ref"]) == ("subscription_limit", "more")
    big = "x" * 32_767
    assert client.ask(type="broadcast", channel="room:1", payload=big)["code"] == (
        "payload_too_large"
    )
    answer = client.ask(type="broadcast", channel="room:1", event="e" * 129, payload=1)
    assert answer["code"] == "bad_frame"
    client.ask(type="unsubscribe", ref="r1")
    answer = client.ask(
        type="subscribe", ref="p", kind="broadcast", channel="room:1", presence=True,
        state="x" * 4_095,
    )  # fmt: skip
    assert (answer["code"], answer["ref"]) == ("state_too_large", "p")


def test_too_many_frames_are_ignored_and_far_too_many_end_the_connection(one):
    client = one.connect()
    client.sock.sendall(frame(TEXT, b'{"type":"ping"}') * 200)  # at once: the rate is by the second
    answers = [client.hear() for _ in range(151)]
    assert answers[:150] == [{"type": "pong"}] * 150
    assert answers[150]["code"] == "rate_limited"
    time.sleep(0.3)
    client.silent()
    flood = one.connect()
    flood.sock.sendall(frame(TEXT, b'{"type":"ping"}') * 600)
    found = {}
    while isinstance(found, dict):
        found = flood.hear()
    assert found == ("close", 1008)


def test_frames_that_are_too_large_end_the_connection(one):
    client = one.connect()
    client.send(TEXT, b'{"type":"ping","x":"' + b"x" * 65_536 + b'"}')
    assert client.hear() == ("close", 1009)


def test_text_that_is_not_utf8_ends_the_connection(one):
    client = one.connect()
    client.send(TEXT, b'{"type":"ping","x":"\xff"}')
    assert client.hear() == ("close", 1007)


def test_whatever_comes_never_breaks_the_process(one):
    """Objects of random members, each answered or ignored, none a fault."""
    rng = random.Random(11)
    values = [
        None, True, 0, -1, 1e300, "", "s1", "room:1", "messages", [], {}, ["INSERT", 5, None],
        {"a": {"$gt": None}}, {"$or": []}, "x" * 300, {"user_id": "u1"}, "\u0000", "\U0001f600",
    ]  # fmt: skip
    names = [
        "ref", "kind", "table", "collection", "channel", "events", "filter", "presence", "state",
        "self", "payload", "event", "token",
    ]  # fmt: skip
    kinds = ["subscribe", "unsubscribe", "broadcast", "presence", "ping", "token"]
    for number in range(40):
        client = one.connect(token(f"u{number % 3}"))
        for _ in range(100):
            frame = {name: rng.choice(values) for name in names if rng.random() < 0.5}
            frame["type"] = rng.choice(kinds)
            if rng.random() < 0.7:
                frame["kind"] = rng.choice(("postgres", "mongo", "broadcast"))
                frame["ref"] = f"s{rng.randrange(5)}"
                frame["channel"] = "room:1"
                frame["table"] = "messages"
            client.send(TEXT, orjson.dumps(frame))
        client.say(type="ping")
        while client.hear() != {"type": "pong"}:
            pass
        one.change(row(record={"sender": f"u{number % 3}", "a": os.urandom(2).hex()}))
