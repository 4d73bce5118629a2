"""A client of the compiled socket server, and the server's end of its connection."""

import socket
import struct

import pytest

from ichicore.live.wire import Wire, encode
from tests.oracle.websocket import (
    BINARY,
    CLOSE,
    TEXT,
    parse,
)


class Echo:
    def __init__(self, **options):
        self.options = {"max_message": 16 << 20, "max_buffer": 64 << 20, "max_frames": 10**6}
        self.wire = Wire(self, **{**self.options, **options})
        self.messages = []
        self.closes = []
        self.slows = []
        self.woken = 0

    def request(self, peer, head):
        peer.upgrade(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", self)

    def message(self, peer, data, text):
        self.messages.append((data, text))
        peer.send(encode(data, TEXT if text else BINARY))

    def closed(self, peer, code):
        self.closes.append(code)

    def slow(self, peer):
        self.slows.append(peer)
        peer.close(1013, b"slow", encode(b"last"))

    def wake(self):
        self.woken += 1


class Talk:
    """A client and the server's end of its connection, both in this thread."""

    def __init__(self, **options):
        self.echo = Echo(**options)
        self.client, server = socket.socketpair()
        for end in (self.client, server):
            end.setblocking(False)
        self.peer = self.echo.wire.adopt(server.detach())
        self.received = b""
        self.ended = False
        TALKS.append(self)
        self.write(b"GET / HTTP/1.1\r\n\r\n")
        assert self.received.startswith(b"HTTP/1.1 101")
        self.received = self.received.partition(b"\r\n\r\n")[2]

    def write(self, data, chop=None):
        while data:
            size = chop or 1 << 16
            try:
                sent = self.client.send(data[:size])
            except BlockingIOError:
                sent = 0
            except (BrokenPipeError, ConnectionResetError):
                break
            data = data[sent:]
            self.turn()
        self.turn()

    def turn(self):
        for _ in range(100):
            self.echo.wire.ready()
            while self.echo.wire.flush():
                pass
            while not self.ended:
                try:
                    more = self.client.recv(1 << 20)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    more = b""
                if not more:
                    self.ended = True
                self.received += more
            if not self.peer.queued:
                break

    def frames(self):
        found, rest = parse(self.received)
        assert not rest
        return [(opcode, payload) for opcode, fin, payload in found if fin or pytest.fail("open")]


CHOPS = (None, 1, 7)
TALKS: list[Talk] = []


@pytest.fixture(autouse=True)
def close_talks():
    yield
    while TALKS:
        talk = TALKS.pop()
        talk.client.close()
        talk.echo.wire.close_all()


def closed(frames):
    """The close code that the server sent, and that nothing follows it."""
    assert frames
    opcode, payload = frames[-1]
    assert opcode == CLOSE
    assert all(op != CLOSE for op, _ in frames[:-1])
    return struct.unpack(">H", payload[:2])[0] if payload else None
