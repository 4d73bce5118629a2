"""RFC 6455 framing, plainly: a client's frames out, a server's frames in."""

from __future__ import annotations

import codecs
import os
import socket
import struct
import time

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=True, form=None, key=None):
    """A client's frame. form: bytes of the extended length (0, 2, 8), the shortest by default."""
    size = len(payload)
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if form == 0:
        head += bytes([bit | size])
    elif form == 2:
        head += bytes([bit | 126]) + struct.pack(">H", size)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", size)
    if not mask:
        return head + payload
    key = os.urandom(4) if key is None else key
    return head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


def parse(data):
    """[(opcode, fin, payload)] and the rest of a server's stream."""
    found = []
    while len(data) >= 2:
        size, at = data[1] & 127, 2
        assert not data[1] & 0x80, "a server does not mask"
        assert not data[0] & 0x70
        if size == 126:
            if len(data) < 4:
                break
            size, at = struct.unpack(">H", data[2:4])[0], 4
            assert size >= 126
        elif size == 127:
            if len(data) < 10:
                break
            size, at = struct.unpack(">Q", data[2:10])[0], 10
            assert size >= 65536
        if len(data) < at + size:
            break
        found.append((data[0] & 15, data[0] >> 7, bytes(data[at : at + size])))
        data = data[at + size :]
    return found, data


class Client:
    """A blocking connection after its handshake."""

    def __init__(self, sock: socket.socket, rest: bytes = b"") -> None:
        self.sock = sock
        self.rest = rest
        self.frames: list[tuple[int, int, bytes]] = []

    @classmethod
    def connect(cls, host, port, path, headers=(), pieces=False):
        """Upgrades; ConnectionRefusedError(status, head) when that is refused. pieces: the request
        does not come all at once."""
        if host is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(port)
        else:
            sock = socket.create_connection((host, port))
        lines = [
            f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]  # fmt: skip
        names = {name.lower() for name, _ in headers}
        lines = [line for line in lines if line.split(":")[0].lower() not in names]
        lines += [f"{name}: {value}" for name, value in headers if value is not None]
        sock.settimeout(10)
        request = "\r\n".join([*lines, "", ""]).encode()
        if pieces:
            sock.sendall(request[:-2])
            time.sleep(0.1)
        sock.sendall(request[-2:] if pieces else request)
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(4096)
            if not more:
                break
            head += more
        head, _, rest = head.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1]) if head else 0
        if status != 101:
            sock.close()
            raise ConnectionRefusedError(status, head + b"\r\n\r\n" + rest)
        return cls(sock, rest)

    def send(self, opcode, payload=b"", **how):
        self.sock.sendall(frame(opcode, payload, **how))

    def receive(self, timeout=10.0):
        """The next frame, or None at the end of the stream."""
        self.sock.settimeout(timeout)
        while not self.frames:
            self.frames, self.rest = parse(self.rest)
            if self.frames:
                break
            try:
                more = self.sock.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self.rest += more
        return self.frames.pop(0)

    def close(self):
        self.sock.close()


def receive(stream, limit):
    """What a server is told by this stream of a client: (data, whether text) of each message and,
    last, the code of a close or of a broken rule. Plainly, frame by frame."""
    told, opcode, parts = [], 0, b""
    at = 0
    while True:
        if len(stream) - at < 2:
            break
        first, second = stream[at], stream[at + 1]
        code, fin, size = first & 15, first >> 7, second & 127
        if first & 0x70 or not second & 128 or code in (3, 4, 5, 6, 7) or code > 10:
            return [*told, 1002]
        if code >= 8 and (not fin or size > 125):
            return [*told, 1002]
        if (code == 0) != (opcode != 0) and code < 8:
            return [*told, 1002]
        head = 2 + {126: 2, 127: 8}.get(size, 0)
        if len(stream) - at < head + 4:
            break
        if size > 125:
            size = int.from_bytes(stream[at + 2 : at + head], "big")
            if size < (126 if head == 4 else 65536) or size >> 63:
                return [*told, 1002]
        if code < 8 and size + len(parts) > limit:
            return [*told, 1009]
        key = stream[at + head : at + head + 4]
        body = stream[at + head + 4 : at + head + 4 + size]
        whole = len(body) == size
        body = bytes(b ^ key[i % 4] for i, b in enumerate(body))
        if code < 8:
            kind = code or opcode
            if kind == TEXT and not _may_become_text(parts + body, whole and fin):
                return [*told, 1007]
            if not whole:
                break
            parts += body
            opcode = 0 if fin else kind
            if fin:
                told.append((parts, kind == TEXT))
                parts = b""
        elif not whole:
            break
        elif code == CLOSE:
            return [*told, _closed(body)]
        at += head + 4 + size
    return told


def _may_become_text(data, ended):
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, ended)
    except UnicodeDecodeError:
        return False
    return True


def _closed(body):
    if not body:
        return 1005
    if len(body) == 1:
        return 1002
    code = int.from_bytes(body[:2], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return 1002
    return code if _may_become_text(body[2:], True) else 1007
