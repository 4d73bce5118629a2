"""Arbitrary bytes at the WebSocket parser and at the frames of the realtime protocol."""

from __future__ import annotations

import socket

from ichicore.live.wire import Wire, encode
from server.realtime import messages
from server.realtime.messages import BadFrameError
from tests.oracle.websocket import frame, receive

LIMIT = 2_000


class Ends:
    def __init__(self) -> None:
        self.wire = Wire(self, max_message=LIMIT, max_buffer=1 << 20, max_frames=10**6)
        self.seen: list[object] = []

    def request(self, peer, head):  # type: ignore[no-untyped-def]
        peer.upgrade(b"", None)

    def message(self, peer, data, text):  # type: ignore[no-untyped-def]
        self.seen.append((data, text))
        peer.send(encode(data, 1 if text else 2))

    def closed(self, peer, code):  # type: ignore[no-untyped-def]
        self.seen.append(code)

    def slow(self, peer):  # type: ignore[no-untyped-def]
        pass

    def wake(self):  # type: ignore[no-untyped-def]
        pass


def frames(data: bytes) -> None:
    """What the parser sees does not depend on how the bytes arrive, and is what its twin sees. The
    first byte says how many frames are well-formed; the rest is raw."""
    good, raw = (data[0] % 4, data[1:]) if data else (0, b"")
    stream = b""
    for at in range(min(good, len(raw))):
        payload = raw[at + 1 : at + 1 + raw[at] % 40]
        stream += frame(raw[at] & 15, payload, fin=raw[at] < 200, key=b"\x01\x02\x80\xff")
    stream += raw
    expected = receive(stream, LIMIT)
    for step in (len(stream) or 1, 1, 3):
        ends = Ends()
        client, server = socket.socketpair()
        server.setblocking(False)
        ends.wire.adopt(server.detach())
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        ends.wire.ready()
        for at in range(0, len(stream), step):
            try:
                client.sendall(stream[at : at + step])
            except OSError:
                break
            ends.wire.ready()
        found = list(ends.seen)
        ends.wire.close_all()
        client.close()
        if found != expected:
            raise AssertionError(f"{stream!r} by {step}: {found!r} is not {expected!r}")


def realtime_message(data: bytes) -> None:
    """A frame of the realtime protocol is taken or refused, never a fault."""
    try:
        messages.decode(data)
    except BadFrameError as error:
        assert messages.error(error.code, error.detail, error.ref)


SEEDS = {
    "frames": (
        b"\0" + frame(1, b"hello", fin=False) + frame(9, b"p") + frame(0, "ü".encode()),
        b"\0" + frame(2, b"\xff" * 130) + frame(8, b"\x03\xe8bye"),
        b"\3\x81\x05hello\x09\x88",
    ),
    "message": (
        b'{"type":"subscribe","ref":"s1","kind":"postgres","table":"m","filter":{"id":1}}',
        b'{"type":"broadcast","channel":"room:1","event":"e","payload":{"a":[1,null]}}',
        b'{"type":"token","token":"x"}',
    ),
}
TARGETS = {"frames": frames, "message": realtime_message}
