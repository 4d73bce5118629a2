"""Peers that vanish without a word: no FIN, no RST, nothing is taken and nothing answered."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time

import orjson
import pytest

from server.base import unix
from server.base.limits import DEFAULT_TIERS
from server.realtime import relay
from server.realtime.intake import Intake
from server.realtime.pace import Paces
from tests.oracle.websocket import PING, PONG, TEXT
from tests.server.realtime.world import SECRET, key, project, token

RULES = {"channels": {"*": {"subscribe": True, "send": True, "presence": True}}}
IDLE = 2  # seconds; a ping is sent after half of them


class Hole:
    """A way to a port that, once shut, forwards nothing and closes nothing."""

    def __init__(self, port):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target = port
        self.shut = threading.Event()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        near, _ = self.listener.accept()
        far = socket.create_connection(("127.0.0.1", self.target))
        with near, far:
            while not self.shut.is_set():
                for source in select.select([near, far], [], [], 0.02)[0]:
                    data = source.recv(65536)
                    (far if source is near else near).sendall(data)
            self.done.wait(60)

    def end(self):
        self.shut.set()
        self.done.set()
        self.thread.join()
        self.listener.close()


@pytest.fixture
def one(world):
    return world(project(SECRET, RULES), idle_seconds=IDLE)


def join(client):
    answer = client.ask(type="subscribe", ref="1", kind="broadcast", channel="c", presence=True)
    assert answer["type"] == "subscribed"
    return client.hear()


def gone_after(client, uid):
    """Seconds until this user leaves, while the client does what clients do: it answers pings."""
    began = time.monotonic()
    while time.monotonic() - began < 20:
        opcode, _, payload = client.receive(20)
        if opcode == PING:
            client.send(PONG, payload)
        elif opcode == TEXT:
            frame = orjson.loads(payload)
            leaves = frame.get("leaves", {}).values()
            if any(one["uid"] == uid for one in leaves):
                return time.monotonic() - began
    raise AssertionError("it never left")


@pytest.mark.parametrize("sending", [False, True], ids=["silent", "with messages on their way"])
def test_who_vanishes_is_closed_and_leaves(one, sending):
    there = one.connect(token("u1"))
    join(there)
    hole = Hole(one.port)
    try:
        lost = type(there).connect(
            "127.0.0.1", hole.port, f"/realtime?token={token('u2')}"
        )  # fmt: skip
        assert len(join(lost)["presences"]) == 2
        assert len(there.hear()["joins"]) == 1
        hole.shut.set()
        if sending:
            for _ in range(5):
                one.publish("c", payload=b'"' + b"x" * 100_000 + b'"')
        assert IDLE - 1.1 < gone_after(there, "u2") < IDLE + 2.5
        assert one.call(lambda: len(one.process.wire.peers)) == 1
        assert one.call(lambda: len(one.process.tenants["p1"].sessions)) == 1
        there.silent()
        lost.close()
    finally:
        hole.end()


class Quiet:
    """What a worker holds of a client that is gone: it is sent to and never heard of."""

    def __init__(self):
        self.sent = []
        self.closed = []

    async def accept(self):
        return self

    async def receive(self):
        await asyncio.sleep(3600)

    async def send_str(self, text):
        self.sent.append(orjson.loads(text))

    def close(self, status):
        self.closed.append(status)


def test_who_vanishes_behind_a_worker_is_closed(one, tmp_path):
    path = tmp_path / "ws.sock"
    one.call(lambda: one.process.listen(unix.listen(path)))
    there = one.connect(token("u1"))
    join(there)
    quiet = Quiet()

    class Request:
        headers = {"host": "localhost"}
        query = "token=" + key()
        client = "127.0.0.1:1"
        project = one.directory.get("default")

    assert Request.project.limits == DEFAULT_TIERS["business"]

    async def work():
        began = time.monotonic()
        await asyncio.wait_for(relay.relay(path, Request, quiet, Paces(), Intake()), 20)
        return time.monotonic() - began

    handed_on = asyncio.run_coroutine_threadsafe(work(), one.loop)
    while not handed_on.done():
        opcode, _, payload = there.receive(20)
        if opcode == PING:
            there.send(PONG, payload)
            if handed_on.done():
                break
        time.sleep(0.01)
    assert IDLE - 1.1 < handed_on.result() < IDLE + 2.5
    assert quiet.closed == [None]
    there.silent()
