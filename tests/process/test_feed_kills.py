"""kill -9 of the database, of the realtime process and of a gateway worker under clients that come
back: every change committed while a subscription stands is told once, none twice, none across a
rule."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time

import psycopg
import pytest

from tests.process.running import RunningNode
from tests.process.sockets import subscribed

RULES = {"tables": {"public.log": {"rule": {"owner": "$auth.role"}}}}
BACK_OFF = (0.1, 0.2, 0.5, 1.0)  # the SDKs begin with a second; the tests have less time


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder)
    try:
        running.start()
        running.sql("create table log (id int primary key, owner text)")
        running.cli("settings", "default", "set", "realtime", json.dumps(RULES))
        yield running
    finally:
        running.end()


class Client:
    """What an SDK does, and what it was told in each of its sessions."""

    def __init__(self, url, token):
        self.url = url
        self.token = token
        self.sessions = []
        self.ids = []
        self.positions = []

    async def run(self):
        tries = 0
        while True:
            try:
                socket = await subscribed(self.url, self.token, "log")
            except Exception:
                await asyncio.sleep(BACK_OFF[min(tries, len(BACK_OFF) - 1)])
                tries += 1
                continue
            tries = 0
            self.sessions.append({"from": time.monotonic(), "ids": []})
            try:
                await self.listen(socket, self.sessions[-1]["ids"])
            finally:
                socket.close()

    async def listen(self, socket, ids):
        gone = asyncio.ensure_future(socket.gone.wait())
        while not (gone.done() and socket.frames.empty()):
            getter = asyncio.ensure_future(socket.frames.get())
            await asyncio.wait([getter, gone], return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                getter.cancel()
                continue
            _, frame = getter.result()
            assert frame["type"] in ("change", "closing"), frame
            if frame["type"] == "change":
                assert frame["record"]["owner"] == "anon"
                ids.append(frame["record"]["id"])
                self.ids.append(frame["record"]["id"])
                self.positions.append(frame["position"])


class Writer(threading.Thread):
    """A row every few milliseconds, each second one for others' eyes; notes when its commit was
    asked for and answered. One writer: the numbers are in the order of the commits."""

    def __init__(self, dsn, first):
        super().__init__()
        self.dsn = dsn
        self.number = first
        self.rows = []
        self.ending = threading.Event()

    def run(self):
        while not self.ending.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
                    while not self.ending.is_set():
                        self.number += 1
                        began = time.monotonic()
                        owner = "anon" if self.number % 2 else "authenticated"
                        connection.execute("insert into log values (%s, %s)", (self.number, owner))
                        if owner == "anon":
                            self.rows.append((self.number, began, time.monotonic()))
                        time.sleep(0.004)
            except psycopg.Error:
                time.sleep(0.05)


def realtime_url(node):
    return f"http://127.0.0.1:{node.realtime_port}"


def named(node, name):
    return [p for p in node.process_of().children(recursive=True) if p.name() == name]


async def written(writer, count):
    until = len(writer.rows) + count
    deadline = time.monotonic() + 120
    while len(writer.rows) < until:
        assert time.monotonic() < deadline, "the database does not come back"
        await asyncio.sleep(0.05)


async def under_load(node, kill, first, *, kills=2, away=False):
    """Clients and a writer while `kill` is done; then what every client was told is judged. away:
    the clients are cut off by it."""
    project = node.project()
    clients = [Client(url, project["anon_key"]) for url in (node.url, realtime_url(node)) * 2]
    tasks = [asyncio.ensure_future(client.run()) for client in clients]
    writer = Writer(project["database_url"], first)
    try:
        while not all(client.sessions for client in clients):
            await asyncio.sleep(0.02)
        writer.start()
        for _ in range(kills):
            await asyncio.sleep(1)
            sessions = [len(client.sessions) for client in clients]
            kill()
            await asyncio.sleep(0.5)
            await written(writer, 50)  # goes on until everything is up again
            async with asyncio.timeout(120):
                while away and any(
                    len(client.sessions) == before
                    for client, before in zip(clients, sessions, strict=True)
                ):  # who comes back after the last row is never told of one
                    await asyncio.sleep(0.02)
            await written(writer, 50)
    finally:
        writer.ending.set()
        await asyncio.to_thread(writer.join)
    last = writer.rows[-1][0]
    deadline = time.monotonic() + 120
    while not all(client.ids and client.ids[-1] == last for client in clients):
        assert time.monotonic() < deadline, [client.ids[-3:] for client in clients]
        for task in tasks:
            assert not task.done(), task.exception()
        await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.1)  # sockets close
    for client in clients:
        assert len(set(client.ids)) == len(client.ids), "told twice"
        assert client.positions == sorted(set(client.positions))
        for session in client.sessions:
            got = set(session["ids"])
            missing = [
                number
                for number, began, _ in writer.rows
                if began > session["from"] and number < max(got, default=0) and number not in got
            ]
            assert not missing, "lost"
    return clients


def test_the_database_is_killed(node):
    def kill():
        node.postmaster().send_signal(signal.SIGKILL)

    clients = asyncio.run(under_load(node, kill, 0))
    assert all(len(client.sessions) == 1 for client in clients)
    with psycopg.connect(node.project()["database_url"]) as connection:
        rows = connection.execute("select id from log where owner = 'anon' order by id").fetchall()
    for client in clients:
        assert client.ids == [row[0] for row in rows]


def test_the_realtime_process_is_killed(node):
    def kill():
        for process in named(node, "ichibase-rt"):
            process.send_signal(signal.SIGKILL)

    clients = asyncio.run(under_load(node, kill, 1_000_000, away=True))
    assert all(len(client.sessions) > 1 for client in clients)


def test_a_gateway_worker_is_killed(node):
    def kill():
        for process in node.process_of().children():
            if "server.node.gateway_main" in process.cmdline():
                for worker in process.children():
                    os.kill(worker.pid, signal.SIGKILL)

    clients = asyncio.run(under_load(node, kill, 2_000_000, kills=1))
    assert all(len(client.sessions) == 1 for client in clients)  # they were handed over
