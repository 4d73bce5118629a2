"""What a peer may cost the compiled socket server: sizes, queues, silence and connections, and
what random bytes do to it. The cases 9 and 10 of the Autobahn test suite."""

import errno
import random
import resource
import socket
import struct
import time

import pytest

from ichicore.live.wire import encode
from tests.core.talk import Echo, Talk, close_talks, closed
from tests.oracle.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Client,
    frame,
)

__all__ = ["close_talks"]


def test_messages_beyond_the_limit_end_the_connection():
    for data in (
        frame(TEXT, b"x" * 1001),
        frame(TEXT, b"x" * 1001)[:8],  # the header tells
        frame(TEXT, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 401),
    ):
        talk = Talk(max_message=1000)
        talk.write(data)
        assert closed(talk.frames()) == 1009
    talk = Talk(max_message=1000)
    talk.write(frame(TEXT, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 400))
    assert talk.frames() == [(TEXT, b"x" * 1000)]


def test_a_flood_of_frames_ends_the_connection():
    talk = Talk(max_frames=50)
    talk.write(frame(PONG) * 50)
    assert talk.frames() == []
    talk.echo.wire.sweep(1, 0.0)
    talk.write(frame(PONG) * 51)
    assert closed(talk.frames()) == 1008


def test_a_peer_that_never_reads_is_told_and_its_queue_is_bounded():
    talk = Talk(max_buffer=100_000)
    big = encode(b"x" * 9_900)
    results = [talk.peer.send(big) for _ in range(100)]
    assert results.count(True) == 10
    assert talk.peer.queued <= 100_000
    while talk.echo.wire.flush():
        pass
    assert talk.echo.slows == [talk.peer]
    assert talk.echo.closes == [1013]


def test_frames_of_a_peer_that_reads_slowly_stay_whole():
    talk = Talk(max_buffer=50 << 20)
    rng = random.Random(3)
    sent = [rng.randbytes(rng.randrange(200_000)) for _ in range(80)]
    for payload in sent:
        assert talk.peer.send(encode(payload, BINARY))
    while talk.peer.queued:
        talk.echo.wire.flush()
        talk.turn()
    assert talk.frames() == [(BINARY, payload) for payload in sent]


def test_a_shortened_queue_still_is_a_stream_of_frames():
    talk = Talk(max_buffer=3 << 20)
    payload = b"y" * 300_000
    while talk.peer.send(encode(payload, BINARY)):
        talk.echo.wire.flush()  # the client reads nothing
    assert talk.echo.wire.flush() is False
    assert talk.echo.slows == [talk.peer]
    talk.turn()
    found = talk.frames()
    assert found[-2:] == [(TEXT, b"last"), (CLOSE, struct.pack(">H", 1013) + b"slow")]
    assert all(f == (BINARY, payload) for f in found[:-2])


def test_one_frame_many_receivers():
    echo = Echo()
    ends = []
    for _ in range(300):
        client, server = socket.socketpair()
        echo.wire.adopt(server.detach())
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        ends.append(Client(client))
    while any(not p.open for p in echo.wire.peers):
        echo.wire.ready()
    for end in ends:
        end.sock.recv(1000)
    shared = encode(b"hello all")
    assert echo.woken == 0  # what is answered at once needs no waking
    assert all(peer.send(shared) for peer in echo.wire.peers)
    assert echo.woken == 1
    rounds = 1
    while echo.wire.flush(100):
        rounds += 1
    assert rounds == 3
    for end in ends:
        assert end.receive(1) == (TEXT, 1, b"hello all")
        end.close()


# connections


def test_silence_is_pinged_and_then_ended():
    talk = Talk(idle_seconds=60)
    talk.echo.wire.sweep(29, 0.0)
    talk.turn()
    assert talk.frames() == []
    talk.echo.wire.sweep(30, 0.0)
    talk.echo.wire.sweep(31, 0.0)
    talk.turn()
    assert talk.frames() == [(PING, b"")]
    talk.write(frame(PONG))
    talk.echo.wire.sweep(90, 0.0)
    assert talk.echo.closes == []
    talk.echo.wire.sweep(91, 0.0)
    assert talk.echo.closes == [1006]
    assert talk.echo.wire.peers == []


def test_expired_peers_are_reported():
    talk = Talk()
    talk.peer.expires = 100.0
    assert talk.echo.wire.sweep(1, 99.5) == []
    assert talk.echo.wire.sweep(2, 100.0) == [talk.peer]


def test_a_request_must_come_soon_and_be_short():
    echo = Echo()
    client, server = socket.socketpair()
    echo.wire.adopt(server.detach())
    client.sendall(b"GET / HTTP/1.1\r\n")
    echo.wire.ready()
    echo.wire.sweep(9, 0.0)
    assert len(echo.wire.peers) == 1
    echo.wire.sweep(10, 0.0)
    assert echo.wire.peers == []
    client.close()

    heads = []
    echo.request = lambda peer, head: (
        heads.append(len(head)),
        peer.refuse(b"HTTP/1.1 431\r\n\r\n"),
    )
    client, server = socket.socketpair()
    echo.wire.adopt(server.detach())
    client.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000)
    for _ in range(5):
        echo.wire.ready()
    assert heads == [16385]
    assert client.recv(100) == b"HTTP/1.1 431\r\n\r\n"
    assert client.recv(100) == b""
    client.close()


def test_frames_sent_with_the_request_are_read():
    echo = Echo()
    client, server = socket.socketpair()
    echo.wire.adopt(server.detach())
    client.sendall(b"GET / HTTP/1.1\r\n\r\n" + frame(TEXT, b"early") + frame(TEXT, b"half")[:7])
    echo.wire.ready()
    client.sendall(frame(TEXT, b"x"))  # garbage to the half frame's mask, but its length fits
    echo.wire.ready()
    assert echo.messages[0] == (b"early", True)
    client.close()


def test_ends_that_vanish_are_noticed_once():
    echo = Echo()
    for abrupt in (True, False):
        client, server = socket.socketpair()
        echo.wire.adopt(server.detach())
        client.sendall(b"GET / HTTP/1.1\r\n\r\n" + frame(TEXT, b"x" * 100)[:50])
        echo.wire.ready()
        if not abrupt:
            client.shutdown(socket.SHUT_WR)
        client.close()
        echo.wire.ready()
    assert echo.closes == [1006, 1006]
    assert echo.wire.peers == []


def test_accepting_takes_what_waits():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    echo = Echo()
    clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
    assert echo.wire.accept(listener.fileno(), 4) == 4
    assert echo.wire.accept(listener.fileno(), 64) == 6
    assert echo.wire.accept(listener.fileno(), 64) == 0
    assert {peer.address for peer in echo.wire.peers} == {"127.0.0.1"}
    assert not any(peer.local for peer in echo.wire.peers)
    echo.wire.close_all()
    for client in clients:
        client.close()
    listener.close()


def test_no_room_for_more_is_an_error_to_wait_after():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    echo = Echo()
    client = socket.create_connection(listener.getsockname())
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, old[1]))
    try:
        with pytest.raises(OSError) as full:
            echo.wire.accept(listener.fileno())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert full.value.errno == errno.EMFILE
    assert echo.wire.accept(listener.fileno()) == 1
    echo.wire.close_all()
    client.close()
    listener.close()


def test_random_bytes_never_break_it():
    rng = random.Random(9)
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < 2:
        talk = Talk(max_message=5000, max_buffer=20_000)
        for _ in range(rng.randrange(1, 8)):
            data = frame(
                rng.choice((0, 1, 2, 8, 9, 10, rng.randrange(16))),
                rng.randbytes(rng.choice((0, 1, 2, 125, rng.randrange(6000)))),
                fin=rng.random() < 0.7, rsv=rng.choice((0, 0, 0, 0, 0, 0, 1)),
                form=8,
            ) if rng.random() < 0.1 else frame(
                rng.choice((0, 1, 2, 8, 9, 10)), rng.randbytes(rng.choice((0, 1, 5, 100))),
                fin=rng.random() < 0.7,
            )  # fmt: skip
            if rng.random() < 0.2:
                data = bytes(b ^ (rng.random() < 0.05) for b in data)
            talk.write(data, rng.choice((None, 1, 5)))
        assert talk.peer.queued <= 20_000
        talk.client.close()
        talk.echo.wire.ready()
        count += 1
    assert count > 100


def test_it_sees_what_its_slow_twin_sees():
    """Streams of mostly good frames, with faults here and there, cut anywhere."""
    from tests.fuzz.sockets import frames

    rng = random.Random(12)
    for _ in range(120):
        stream = b""
        for _ in range(rng.randrange(1, 7)):
            payload = rng.choice(
                (b"", b"a" * rng.randrange(200), "ü€😀".encode(), b"\xff", b"\x03\xe8ok")
            )
            stream += frame(
                rng.choice((0, 0, 1, 1, 2, 8, 9, 10)), payload, fin=rng.random() < 0.7,
                rsv=rng.random() < 0.03, mask=rng.random() < 0.98,
            )  # fmt: skip
        if rng.random() < 0.3:
            stream = stream[: rng.randrange(len(stream))] + rng.randbytes(rng.randrange(20))
        frames(b"\x00" + stream)
