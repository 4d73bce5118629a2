"""What ichicore.http.lenient does with the bytes of a connection, the plain way."""

import re

HEAD = re.compile(rb"([A-Z][^\n ]*) ([^\n]*) (HTTP/1\..)\r\n((?:[^\n]+\r\n)*)\r\n")
LENGTH = re.compile(rb"content-length:[ \t]*([0-9]{1,18})[ \t]*\Z", re.IGNORECASE)
REFUSED = re.compile(rb'["#<>`\x7f-\xff]')


class Stream:
    def __init__(self):
        self.body: int | None = 0  # bytes of a body still to come; None: nothing is certain

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
        for line in head[4].split(b"\r\n")[:-1]:
            name = line.lower()
            if name.startswith((b" ", b"\t", b"transfer-encoding", b"upgrade")):
                return received
            if name.startswith(b"content-length"):
                found = LENGTH.match(line)
                if found is None:
                    return received
                lengths.append(int(found[1]))
        if len(lengths) > 1:
            return received
        rest = sum(lengths) - (len(received) - head.end())
        self.body = rest if rest >= 0 else None
        target = REFUSED.sub(lambda found: b"%%%02X" % found[0][0], head[2])
        made = received[: head.start(2)] + target + received[head.end(2) :]
        return made if len(made) <= room else received


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
