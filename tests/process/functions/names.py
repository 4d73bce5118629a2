"""A name server whose answers change: for a node in a mount namespace with an /etc/resolv.conf of
its own. Names that it does not own are asked for where the machine asks."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import threading
from pathlib import Path

from tests.process.running import RunningNode

ADDRESS = "127.53.53.53"  # of the name server, on port 53
PUBLIC = "11.77.53.1"  # nobody answers there
ZONE = ".rebind.test"
A, CNAME, AAAA = 1, 5, 28


def packed(name):
    return b"".join(bytes((len(part),)) + part.encode() for part in name.split(".")) + b"\0"


class Names:
    """asked: (name, type) of every question in ZONE, in their order. Answers by the first label:

    once: PUBLIC the first time, then 127.0.0.1. turns: in turn. both, late: two addresses at once.
    alias: another name for localhost. meta: the metadata service. zero: 0.0.0.0. six: only IPv6.
    """

    def __init__(self):
        self.asked = []
        self.counts = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ADDRESS, 53))
        found = re.search(r"^nameserver\s+([0-9.]+)", Path("/etc/resolv.conf").read_text(), re.M)
        self.elsewhere = found and found[1]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while True:
            data, client = self.socket.recvfrom(4096)
            if not data:
                return
            labels, at = [], 12
            while data[at]:
                labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
                at += 1 + data[at]
            name, kind = ".".join(labels).lower(), struct.unpack(">H", data[at + 1 : at + 3])[0]
            if name.endswith(ZONE):
                self.socket.sendto(self._answer(data, at + 5, name, kind), client)
            elif self.elsewhere:
                threading.Thread(target=self._pass, args=(data, client), daemon=True).start()

    def _pass(self, data, client):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.settimeout(5)
            other.sendto(data, (self.elsewhere, 53))
            try:
                self.socket.sendto(other.recv(4096), client)
            except OSError:
                return

    def _answer(self, data, end, name, kind):
        self.asked.append((name, kind))
        first = name.partition(".")[0]
        found = []
        if kind == A:
            count = self.counts[name] = self.counts.get(name, 0) + 1
            inside = "127.0.0.1"
            found = {
                "once": [PUBLIC if count == 1 else inside],
                "turns": [PUBLIC if count % 2 else inside],
                "both": [PUBLIC, inside], "late": [inside, PUBLIC], "alias": [inside],
                "meta": ["169.254.169.254"], "zero": ["0.0.0.0"],
            }.get(first, [])  # fmt: skip
        records = [(A, socket.inet_aton(address)) for address in found]
        if kind == A and first == "alias":
            records = [(CNAME, packed("localhost")), *records]
        if kind == AAAA and first == "six":
            six = ("::1", "::ffff:127.0.0.1", "fd00:ec2::254")
            records = [(AAAA, socket.inet_pton(socket.AF_INET6, address)) for address in six]
        body = b""
        for number, (type_, raw) in enumerate(records):
            owner = packed("localhost") if first == "alias" and number else b"\xc0\x0c"
            body += owner + struct.pack(">HHIH", type_, 1, 0, len(raw)) + raw
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
        return head + data[12:end] + body

    def close(self):
        self.socket.sendto(b"", (ADDRESS, 53))
        self.thread.join()
        self.socket.close()


class NamedNode(RunningNode):
    """A node that asks Names."""

    def command(self, *arguments):
        given = super().command(*arguments)
        if arguments[0] == "serve":
            made = self.folder / "resolv.conf"
            made.write_text(f"nameserver {ADDRESS}\noptions timeout:2 attempts:2\n")
            mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
            within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
            given["args"] = [*within, str(made), *given["args"]]
        return given


def usable():
    """Whether a node can have a resolv.conf of its own here."""
    if os.geteuid() != 0:
        return False
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return done.returncode == 0
