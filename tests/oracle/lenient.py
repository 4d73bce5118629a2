"""What ichicore.http.lenient does with the bytes of a connection, the plain way."""

import re

HEAD = re.compile(rb"([A-Z][^\n ]*) ([^\n]*) (HTTP/1\..)\r\n((?:[^\n]+\r\n)*)\r\n")
LENGTH = re.compile(rb"content-length:[ \t]*([0-9]{1,18})[ \t]*\Z", re.IGNORECASE)
REFUSED = re.compile(rb'["#<>`\x7f-\xff]')


MANY = 64  # headers, from which on none is added
MOST_NAMES = 512  # bytes of the names of encoded headers


class Stream:
    """mark: the header that tells which values are encoded."""

    def __init__(self, mark: bytes):
        self.body: int | None = 0  # bytes of a body still to come; None: nothing is certain
        self.mark = mark

    def feed(self, received: bytes, room: int) -> bytes:
        if self.body is None:
            return received
        if self.body > 0:
            self.body = self.body - len(received) if self.body >= len(received) else None
            return received
        self.body = None
        head = HEAD.match(received)
        if head is None:
            return received
        lengths = []
        said = True
        for line in head[4].split(b"\r\n")[:-1]:
            name = line.lower()
            if name.startswith((b" ", b"\t")):
                return received
            if name.startswith((b"transfer-encoding", b"upgrade")):
                said = False
            if name.startswith(b"content-length"):
                found = LENGTH.match(line)
                if found is None:
                    return received
                lengths.append(int(found[1]))
        if len(lengths) > 1:
            return received
        body = received[head.end() :]
        first, headers = received[: head.start(4)], head[4]
        if said:
            rest = sum(lengths) - len(body)
            self.body = rest if rest >= 0 else None
        target = REFUSED.sub(lambda found: b"%%%02X" % found[0][0], head[2])
        made = received[: head.start(2)] + target + received[head.end(2) : head.start(4)]
        if len(made) + len(received) - len(first) <= room:
            first = made
        if headers.count(b"\r\n") + 2 < MANY:
            made = self.values(headers)
            if len(first) + len(made) + 2 + len(body) <= room:
                headers = made
        return first + headers + b"\r\n" + body

    def values(self, headers: bytes) -> bytes:
        if headers.isascii():
            return headers
        made, names = [], []
        for line in headers.split(b"\r\n")[:-1]:
            name, colon, value = line.partition(b":")
            if colon and name.isascii() and (b"%" in value or not value.isascii()):
                value = re.sub(rb"[%\x80-\xff]", lambda found: b"%%%02X" % found[0][0], value)
                names.append(name)
            made.append(name + colon + value + b"\r\n")
        if len(b",".join(names)) >= MOST_NAMES:
            return headers
        mark = self.mark + b": " + b",".join(names) + b"\r\n" if names else b""
        return b"".join(made) + 2 * mark


def opens_socket(head: bytes) -> bool:
    lines = head.split(b"\r\n")
    if len(head) > 16_384 or not re.match(rb"GET /realtime[? ]", head):
        return False
    if lines[-2:] != [b"", b""] or b"" in lines[:-2]:
        return False
    fields = [line.partition(b":") for line in head.split(b"\n")[1:]]
    names = {name.lower() for name, colon, _ in fields if colon}
    upgrades = [value for name, colon, value in fields if colon and name.lower() == b"upgrade"]
    if names & {b"content-length", b"transfer-encoding"} or not upgrades:
        return False
    return b"websocket" in upgrades[-1].lower()
