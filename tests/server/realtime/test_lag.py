"""Receivers that take what they are sent more slowly than it comes, and changes that are large."""

import asyncio
import socket
import threading
import time

import pytest

from ichicore.live.change import Change
from tests.process.running import wait_until
from tests.server.realtime.world import SECRET, project

RULES = {"tables": {"t": {"rule": True}}, "collections": {"c": {"rule": True}}}
BUFFER = 300_000


def row(number, size):
    text = b'{"id":' + str(number).encode() + b',"t":"' + b"x" * size + b'"}'
    return Change("postgres", "public.t", "INSERT", record_json=text)


def bring(one, changes):
    """As a feed does: while there is room. Gives, once all is queued, the most that waited, in
    bytes."""

    async def work():
        most = 0
        for change in changes:
            while not one.process.has_room("p1"):
                await asyncio.sleep(0.001)
            one.process.change("p1", change)
            most = max(most, one.process.tenants["p1"].hub.weight)
        while one.process.tenants["p1"].hub.behind:
            await asyncio.sleep(0.001)
        return most

    return asyncio.run_coroutine_threadsafe(work(), one.loop)


def be_patient(one, seconds, rate=0.0):
    """Sets how long changes wait in all."""

    def change():
        patience = one.process.tenants["p1"].patience
        patience.burst = patience.left = seconds
        patience.rate = rate

    one.call(change)


def watching(one, kind="postgres", small=True, **source):
    client = one.connect()
    if small:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    answer = client.ask(type="subscribe", ref="1", kind=kind, **(source or {"table": "t"}))
    assert answer["type"] == "subscribed"
    return client


def test_a_burst_waits_for_those_who_take_it(world):
    """8 MB for clients that may have 0.3 MB waiting: one is quick, one takes 6 MB a second."""
    one = world(project(SECRET, RULES), max_buffer=BUFFER)
    quick, slow = watching(one), watching(one)
    be_patient(one, 120.0)  # the machine may be slower than the clients mean to be
    got = {}

    def read(client, pause):
        got[client] = []
        while len(got[client]) < 400:
            got[client].append(client.hear(20)["record"]["id"])
            time.sleep(pause)

    threads = [threading.Thread(target=read, args=each) for each in ((quick, 0), (slow, 0.001))]
    for thread in threads:
        thread.start()
    most = bring(one, [row(number, 20_000) for number in range(400)]).result(60)
    for thread in threads:
        thread.join(60)
    assert got == {client: list(range(400)) for client in (quick, slow)}
    assert most < 9 << 20
    queued = one.call(lambda: sum(peer.queued for peer in one.process.wire.peers))
    assert queued == 0


def test_nobody_waits_long_for_one_who_takes_nothing(world):
    one = world(project(SECRET, RULES), max_buffer=BUFFER, close_seconds=60)
    lazy, brisk = watching(one), watching(one)
    began = time.monotonic()
    done = bring(one, [row(number, 2_000) for number in range(3000)])
    assert [brisk.hear(10)["record"]["id"] for _ in range(3000)] == list(range(3000))
    assert time.monotonic() - began < 15
    assert done.result(10) <= 9 << 20
    brisk.silent()
    while isinstance(found := lazy.hear(), dict):
        last = found
    assert (last["reason"], found) == ("slow_consumer", ("close", 1013))


def test_patience_ends(world):
    """A client that keeps taking just enough cannot slow the others for good."""
    one = world(project(SECRET, RULES), max_buffer=BUFFER)
    client = watching(one)
    be_patient(one, 0.3)
    over = threading.Event()

    def read():
        while client.sock.recv(40_000) and not over.wait(0.1):
            pass

    thread = threading.Thread(target=read)
    thread.start()
    began = time.monotonic()
    try:
        bring(one, [row(number, 20_000) for number in range(800)]).result(30)
        assert time.monotonic() - began < 20, "it would take forty seconds"
        sessions = one.process.tenants["p1"].sessions
        assert wait_until(lambda: one.call(lambda: not sessions))  # it was let go
    finally:
        over.set()
        thread.join()


def test_changes_of_almost_a_megabyte_come_whole(world):
    one = world(project(SECRET, RULES))
    client = watching(one, small=False)
    be_patient(one, 120.0)
    done = bring(one, [row(number, 1_000_000) for number in range(8)])
    for number in range(8):
        frame = client.hear(10)
        assert "record" in frame, frame
        assert (frame["record"]["id"], len(frame["record"]["t"])) == (number, 1_000_000)
        assert "truncated" not in frame
    assert done.result(10) <= 9 << 20
    client.silent()


@pytest.mark.parametrize("kind", ["postgres", "mongo"])
def test_larger_ones_come_without_their_long_values(world, kind):
    one = world(project(SECRET, RULES))
    source = {"table": "t"} if kind == "postgres" else {"collection": "c"}
    client = watching(one, kind, False, **source)
    name, event = ("public.t", "UPDATE") if kind == "postgres" else ("c", "update")
    long, short = "ü" * 1_200_000, "s" * 900
    many = {f"c{number}": "v" * 900 for number in range(1600)}
    records = [
        {"id": 1, "long": long, "short": short}, {"id": 2, **many}, {"id": 3, "long": [long]},
        {"id": 4, "t": "x"},
    ]  # fmt: skip
    for record in records:
        one.call(lambda record=record: one.process.change("p1", Change(
            kind, name, event, record=record, old={"id": record["id"], "long": long},
            position="7")))  # fmt: skip
    frames = [client.hear(10) for _ in range(4)]
    client.silent()
    assert [frame["record"] for frame in frames] == [
        {"id": 1, "short": short}, {"id": 2}, {"id": 3}, {"id": 4, "t": "x"},
    ]  # fmt: skip
    assert [frame["old"] for frame in frames] == [{"id": number} for number in (1, 2, 3, 4)]
    assert all(frame["truncated"] is True and frame["position"] == "7" for frame in frames)
