"""The cases of the Autobahn test suite (framing, pings, reserved bits, opcodes, fragmentation,
UTF-8, closing), each against an echo server, with frames cut at different places.
Compression (12, 13) is not offered by the server, so its bit must be refused like any other."""

import random
import struct

import pytest

from ichicore.live.wire import encode
from tests.core.talk import CHOPS, Talk, close_talks, closed
from tests.oracle.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    frame,
)

__all__ = ["close_talks"]


# 1: framing


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_messages_of_all_sizes_come_back(opcode, size):
    payload = b"*" * size if opcode == TEXT else random.Random(size).randbytes(size)
    for chop in CHOPS if size < 1000 else (None, 997):
        talk = Talk()
        talk.write(frame(opcode, payload, key=b"\x00\xff\x13\x77"), chop)
        assert talk.frames() == [(opcode, payload)]


# 2: pings and pongs


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff\xfe\xfd", b"\xfe" * 125])
def test_pings_are_answered_with_their_payload(payload):
    for chop in CHOPS:
        talk = Talk()
        talk.write(frame(PING, payload), chop)
        assert talk.frames() == [(PONG, payload)]


def test_a_ping_of_126_bytes_ends_the_connection():
    talk = Talk()
    talk.write(frame(PING, b"\xfe" * 126))
    assert closed(talk.frames()) == 1002


def test_pongs_that_nobody_asked_for_are_ignored():
    talk = Talk()
    talk.write(frame(PONG) + frame(PONG, b"x") + frame(PING, b"y"))
    assert talk.frames() == [(PONG, b"y")]


def test_ten_pings_get_ten_pongs_in_order():
    for chop in CHOPS:
        talk = Talk()
        talk.write(b"".join(frame(PING, b"%d" % n) for n in range(10)), chop)
        assert talk.frames() == [(PONG, b"%d" % n) for n in range(10)]


# 3: reserved bits, 4: opcodes


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_reserved_bits_end_the_connection(opcode, rsv):
    for chop in CHOPS:
        talk = Talk()
        talk.write(frame(TEXT, b"first") + frame(opcode, b"", rsv=rsv) + frame(PING), chop)
        assert talk.frames()[0] == (TEXT, b"first")
        assert closed(talk.frames()) == 1002
        assert talk.ended or talk.echo.closes == [1002]


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_unknown_opcodes_end_the_connection(opcode):
    for payload in (b"", b"x"):
        talk = Talk()
        talk.write(frame(TEXT, b"first") + frame(opcode, payload) + frame(PING))
        assert talk.frames()[0] == (TEXT, b"first")
        assert closed(talk.frames()) == 1002


def test_frames_must_be_masked():
    talk = Talk()
    talk.write(frame(TEXT, b"hello", mask=False))
    assert closed(talk.frames()) == 1002


@pytest.mark.parametrize(("size", "form"), [(5, 2), (5, 8), (125, 2), (126, 8), (65535, 8)])
def test_lengths_must_have_their_shortest_form(size, form):
    talk = Talk()
    talk.write(frame(BINARY, b"x" * size, form=form))
    assert closed(talk.frames()) == 1002


def test_a_length_of_64_bits_is_refused():
    talk = Talk()
    talk.write(b"\x82\xff" + b"\x80" + b"\x00" * 7 + b"abcd")
    assert closed(talk.frames()) == 1002


# 5: fragmentation


def test_fragments_are_joined_with_pings_between_them():
    for chop in CHOPS:
        talk = Talk()
        talk.write(
            frame(TEXT, b"one", fin=False) + frame(PING, b"!") + frame(CONTINUATION, b"two"), chop
        )
        assert talk.frames() == [(PONG, b"!"), (TEXT, b"onetwo")]


def test_fragments_may_be_empty():
    for chop in CHOPS:
        talk = Talk()
        talk.write(
            frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False)
            + frame(CONTINUATION, b"") + frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"x"),
            chop,
        )  # fmt: skip
        assert talk.frames() == [(TEXT, b""), (TEXT, b"x")]


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_control_frames_must_not_be_fragmented(opcode):
    talk = Talk()
    talk.write(frame(opcode, b"a", fin=False) + frame(CONTINUATION, b"b"))
    assert closed(talk.frames()) == 1002


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_needs_a_beginning(fin):
    talk = Talk()
    talk.write(frame(CONTINUATION, b"x", fin=fin) + frame(TEXT, b"later"))
    assert closed(talk.frames()) == 1002
    # also after a message that was complete
    talk = Talk()
    talk.write(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b") + frame(CONTINUATION, b"c"))
    assert talk.frames()[0] == (TEXT, b"ab")
    assert closed(talk.frames()) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_must_end_before_the_next(opcode):
    talk = Talk()
    talk.write(frame(TEXT, b"a", fin=False) + frame(opcode, b"b"))
    assert closed(talk.frames()) == 1002


def test_many_fragments_of_many_sizes():
    rng = random.Random(5)
    for _ in range(60):
        payload = rng.randbytes(rng.randrange(3000))
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.randrange(9)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        data = b""
        for number, part in enumerate(parts):
            data += frame(
                CONTINUATION if number else BINARY, part, fin=number == len(parts) - 1
            ) + (frame(PING, b"p") if rng.random() < 0.3 else b"")
        talk = Talk()
        talk.write(data, rng.choice((None, 1, 3, 64)))
        assert [f for f in talk.frames() if f[0] != PONG] == [(BINARY, payload)]


# 6: UTF-8

GOOD = [
    "", "Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\x00", "\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff",
    "\ue000", "\ufffd", "\uffff", "\ufffe", "\U00010000", "\U0010ffff", "\U0001fffe", "\ufdd0",
]  # fmt: skip
BAD = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"\x80", b"\xbf",
    b"\x80\xbf" * 3, b"\xc0 \xc1 ", b"\xe0 ", b"\xf0 \xf1 ", b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80", b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80",
    b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfe", b"\xff",
    b"\xfe\xfe\xff\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xc1\xbf",
    b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xad\xbf",
    b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf",
    b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"12345678\x80", b"1234567890123456\xc3",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good_text_passes(text):
    payload = text.encode()
    for chop in CHOPS:
        for pieces in (1, 2, len(payload) or 1):
            step = max(1, -(-len(payload) // pieces))
            parts = [payload[i : i + step] for i in range(0, len(payload), step)] or [b""]
            data = b"".join(
                frame(CONTINUATION if n else TEXT, part, fin=n == len(parts) - 1)
                for n, part in enumerate(parts)
            )
            talk = Talk()
            talk.write(data, chop)
            assert talk.frames() == [(TEXT, payload)]


@pytest.mark.parametrize("payload", BAD)
def test_bad_text_ends_the_connection(payload):
    for chop in CHOPS:
        for data in (
            frame(TEXT, payload),
            b"".join(
                frame(CONTINUATION if n else TEXT, payload[n : n + 1], fin=n == len(payload) - 1)
                for n in range(len(payload))
            ),
        ):
            talk = Talk()
            talk.write(data, chop)
            assert closed(talk.frames()) == 1007
            assert talk.echo.messages == []


def test_bad_text_is_noticed_before_the_message_is_whole():
    bad = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited"
    talk = Talk()
    talk.write(frame(TEXT, bad[:12], fin=False))
    assert talk.frames() == []  # this much could still become a text
    talk.write(frame(CONTINUATION, bad[12:13], fin=False))
    assert closed(talk.frames()) == 1007
    talk = Talk()  # within a frame that has not come whole
    talk.write(frame(TEXT, bad)[: 6 + 14])
    assert closed(talk.frames()) == 1007


def test_validation_agrees_with_python():
    rng = random.Random(6)
    pieces = [*(t.encode() for t in GOOD), *BAD, b"a" * 9, b"x"]
    for _ in range(3000):
        payload = b"".join(rng.choices(pieces, k=rng.randrange(1, 5)))
        try:
            payload.decode()
            good = True
        except UnicodeDecodeError:
            good = False
        echo = Talk()
        cut = rng.randrange(len(payload) + 1)
        echo.write(frame(TEXT, payload[:cut], fin=False) + frame(CONTINUATION, payload[cut:]))
        assert (echo.frames()[0][0] == TEXT) is good


def test_binary_messages_are_not_text():
    talk = Talk()
    talk.write(frame(BINARY, b"\xff\xfe\x80"))
    assert talk.frames() == [(BINARY, b"\xff\xfe\x80")]


# 7: closing


def test_a_close_is_answered_and_ends_what_follows():
    talk = Talk()
    talk.write(frame(TEXT, b"a") + frame(CLOSE, struct.pack(">H", 1000)) + frame(TEXT, b"b"))
    assert talk.frames() == [(TEXT, b"a"), (CLOSE, struct.pack(">H", 1000))]
    assert talk.ended
    assert talk.echo.closes == [1000]
    talk.client.close()
    talk.echo.wire.ready()
    assert talk.echo.wire.peers == []
    assert talk.echo.closes == [1000]


def test_a_close_may_be_empty():
    talk = Talk()
    talk.write(frame(CLOSE) + frame(PING))
    assert talk.frames() == [(CLOSE, b"")]
    assert talk.echo.closes == [1005]


def test_a_close_with_a_long_reason():
    talk = Talk()
    talk.write(frame(CLOSE, struct.pack(">H", 1000) + b"*" * 123))
    assert closed(talk.frames()) == 1000
    talk = Talk()
    talk.write(frame(CLOSE, struct.pack(">H", 1000) + b"*" * 124))
    assert closed(talk.frames()) == 1002


def test_a_close_of_one_byte_is_wrong():
    talk = Talk()
    talk.write(frame(CLOSE, b"\x03"))
    assert closed(talk.frames()) == 1002


def test_a_reason_must_be_text():
    talk = Talk()
    talk.write(frame(CLOSE, struct.pack(">H", 1000) + b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"))
    assert closed(talk.frames()) == 1007


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
def test_good_close_codes_are_echoed(code):
    talk = Talk()
    talk.write(frame(CLOSE, struct.pack(">H", code)))
    assert closed(talk.frames()) == code


@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
)
def test_bad_close_codes_are_refused(code):
    talk = Talk()
    talk.write(frame(CLOSE, struct.pack(">H", code)))
    assert closed(talk.frames()) == 1002


def test_the_server_closes_and_waits_for_the_answer():
    talk = Talk()
    talk.peer.close(4001, b"bye", encode(b"last"))
    assert talk.echo.closes == [4001]
    assert not talk.peer.send(encode(b"more"))
    talk.write(frame(TEXT, b"crossing") + frame(PING))
    assert talk.frames() == [(TEXT, b"last"), (CLOSE, struct.pack(">H", 4001) + b"bye")]
    assert not talk.ended
    talk.write(frame(CLOSE, struct.pack(">H", 4001)))
    assert talk.ended
    assert talk.echo.closes == [4001]


def test_who_does_not_answer_a_close_is_cut_off():
    talk = Talk()
    talk.peer.close(1000)
    talk.echo.wire.sweep(4, 0.0)
    assert len(talk.echo.wire.peers) == 1
    talk.echo.wire.sweep(5, 0.0)
    assert talk.echo.wire.peers == []
