"""The hub without sockets: what a change costs when it concerns one of many subscribers."""

from __future__ import annotations

import socket
import statistics
import time

import orjson

from bench.fanout_sides import RULES
from ichicore.live.change import Change
from ichicore.live.hub import Hub, event_bits
from ichicore.live.wire import Wire
from server.base.project import Identity
from server.realtime import settings
from server.realtime.rules import ProjectRules
from tests.oracle.hub import Ends


def own_rows(subscribers: int, table: str, changes: int = 2_000) -> float:
    """Median microseconds from a change's arrival to the frame in its receiver's queue. A few
    connections stand for all subscribers: the index sees as many users."""
    wire = Wire(Ends(), max_buffer=1 << 30)
    pairs = [socket.socketpair() for _ in range(16)]
    for client, server in pairs:
        server.setblocking(False)
        wire.adopt(server.detach())
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wire.ready()
    rule = ProjectRules(settings.parse(RULES)).tables[table]
    hub = Hub()
    source = hub.source("postgres", table)
    bits = event_bits(("INSERT",))
    for number in range(subscribers):
        identity = Identity("authenticated", f"u{number}", {"sub": f"u{number}"})
        audience = rule.audience(identity)
        source.add(
            wire.peers[number % 16], (audience.key, number), bits, audience.rule, None, False,
            audience.terms,
        )  # fmt: skip
    spent = []
    for number in range(changes):
        user = f"u{number * 7919 % subscribers}"
        row = {"id": number, "user_id": user, "sender": "nobody", "recipient": user, "t": "b" * 100}
        change = Change("postgres", table, "INSERT", record_json=orjson.dumps(row))
        before = hub.delivered
        began = time.perf_counter()
        hub.put(change)
        hub.pump()
        spent.append(time.perf_counter() - began)
        assert hub.delivered == before + 1
    for client, _ in pairs:
        client.close()
    wire.close_all()
    return statistics.median(spent) * 1e6
