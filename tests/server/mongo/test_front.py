"""The port behind which all projects' document servers are, as drivers and strangers see it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import bson
import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from server.base import unix
from server.base.ports import free_port
from server.mongo import address, embedded, logins
from server.mongo.desk import Desk
from server.mongo.front import Front
from server.mongo.lease import Lease, LeaseError, Share, ask
from server.mongo.store import Store
from tests.server.mongo.conftest import PASSWORD

HEAD = struct.Struct("<iiii")


async def make_login(servers, name, password):
    """A project with a login of its name; what its row would keep."""
    kept = address.stored(name, password, name)
    held = await servers.all.hold(name, make=True)
    async with AsyncMongoClient(embedded.admin_url(held.port, PASSWORD)) as root:
        await logins.make(root, kept)
    servers.all.release(held)
    return kept


async def open_desk(servers, folder):
    desk, path = Desk(servers.all), folder / "documents.sock"
    await desk.start(unix.listen(path))
    return desk, path


@pytest.fixture(scope="module")
def front(loop, servers, template):
    """The port, with two projects whose logins have the names of their databases."""

    async def make():
        made = Front(servers.all, (template / embedded.HELLO_FILE).read_bytes())
        port = free_port()
        await made.start(socket.create_server(("127.0.0.1", port)))
        for name in ("ichi_one", "ichi_two"):
            await make_login(servers, name, f"of {name}")
        made.port = port
        return made

    made = loop(make())
    yield made
    made.stop()


def url(front, name, password=None, source=None):
    kept = address.stored(name, password or f"of {name}", name)
    found = address.of_project(kept, embedded.address(front.port))
    return found.replace(f"authSource={name}", f"authSource={source or name}")


def test_a_driver_reaches_its_own_project(loop, front, servers):
    async def run():
        async with (
            AsyncMongoClient(url(front, "ichi_one")) as one,
            AsyncMongoClient(url(front, "ichi_two")) as two,
        ):
            await one.ichi_one.things.insert_one({"_id": "one"})
            await two.ichi_two.things.insert_one({"_id": "two"})
            assert await one.ichi_one.things.find_one() == {"_id": "one"}
            assert await two.ichi_two.things.find_one() == {"_id": "two"}
            for refused in (one.ichi_two.things.find_one(), one.admin.command("usersInfo", 1)):
                with pytest.raises(OperationFailure, match="not authorized"):
                    await refused
            large = [{"_id": n, "text": "x" * 1_000_000} for n in range(40)]
            await one.ichi_one.large.insert_many(large)
            assert await one.ichi_one.large.find().to_list() == large
            await asyncio.sleep(0.8)
            assert "ichi_one" in servers.all.running  # a connection is a hold
        await asyncio.sleep(2.0)
        assert "ichi_one" not in servers.all.running

    loop(run())


def test_a_wrong_password_and_an_unknown_project_are_told_alike(loop, front):
    async def code(given):
        async with AsyncMongoClient(given, serverSelectionTimeoutMS=5000) as one:
            with pytest.raises(OperationFailure) as refused:
                await one.ichi_one.things.find_one()
            return refused.value.code

    async def run():
        for given in (
            url(front, "ichi_one", "wrong"), url(front, "ichi_none"),
            url(front, "ichi_one", source="admin"), url(front, "ichi_one", source="ichi_two"),
            url(front, embedded.LOGIN, PASSWORD, "admin"),
        ):  # fmt: skip
            assert await code(given) == 18

    loop(run())


class Raw:
    """A connection without a driver."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, front):
        return cls(*await asyncio.open_connection("127.0.0.1", front.port))

    async def ask(self, command):
        body = bson.encode(command)
        self.writer.write(HEAD.pack(21 + len(body), 7, 0, 2013) + b"\0\0\0\0\0" + body)
        return await self.answer(21)

    async def query(self, command):
        body = bson.encode(command)
        head = struct.pack("<i", 0) + b"admin.$cmd\0" + struct.pack("<ii", 0, -1)
        self.writer.write(HEAD.pack(16 + len(head) + len(body), 7, 0, 2004) + head + body)
        return await self.answer(36)

    async def answer(self, begin, number=7):
        length = int.from_bytes(head := await self.reader.readexactly(4), "little")
        message = head + await self.reader.readexactly(length - 4)
        assert int.from_bytes(message[8:12], "little") == number
        return bson.decode(message[begin:])

    async def ended(self):
        async with asyncio.timeout(5):
            return await self.reader.read() == b""

    def close(self):
        self.writer.close()


def test_before_a_login_it_says_what_it_is_and_nothing_else(loop, front):
    async def run():
        raw = await Raw.connect(front)
        for answer in (
            await raw.ask({"hello": 1, "$db": "admin"}), await raw.query({"isMaster": 1}),
            await raw.query({"ismaster": 1, "helloOk": True}),
        ):  # fmt: skip
            assert answer["ok"] == 1
            assert answer["maxWireVersion"] > 20
            assert "topologyVersion" not in answer
        assert (await raw.ask({"ping": 1, "$db": "admin"}))["ok"] == 1
        for command in (
            {"listDatabases": 1, "$db": "admin"}, {"find": "things", "$db": "ichi_one"},
            {"serverStatus": 1, "$db": "admin"}, {"x" * 500: 1, "$db": "admin"}, {},
        ):  # fmt: skip
            answer = await raw.ask(command)
            assert (answer["ok"], answer["code"]) == (0, 13)
            assert len(answer["errmsg"]) < 100
        start = {"saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": b"n,,n=a,r=b"}
        for name in ("ichi_none", "../ichi_one", "", "admin", "$external"):
            assert (await raw.ask({**start, "$db": name}))["code"] == 18
        answer = await raw.ask({**start, "$db": "ichi_one"})  # from here on it is the server's
        assert "$clusterTime" in answer
        raw.close()

    loop(run())


def nested(levels):
    """A message whose document has others in it, so many levels deep."""
    document = b"\5\0\0\0\0"
    for _ in range(levels):
        document = struct.pack("<i", len(document) + 7) + b"\3\0" + document + b"\0"
    return HEAD.pack(21 + len(document), 1, 0, 2013) + b"\0\0\0\0\0" + document


@pytest.mark.parametrize("given", [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", HEAD.pack(1 << 30, 1, 0, 2013),
    HEAD.pack(16, 1, 0, 2013), HEAD.pack(21, 1, 0, 2013) + b"\0\0\0\0\1", HEAD.pack(-5, 1, 0, 2013),
    HEAD.pack(30, 1, 0, 2013) + b"\0\0\0\0\0" + b"\xff" * 9,
    HEAD.pack(30, 1, 0, 2004) + b"\0" * 14, HEAD.pack(24, 1, 0, 2012) + b"\0" * 8,
    HEAD.pack(26, 1, 0, 2013) + b"\0\0\0\0\0" + b"\5\0\0\0\0" + b"",
    HEAD.pack(40, 1, 0, 2004) + b"\1" * 24, nested(9000),
])  # fmt: skip
def test_what_is_not_the_protocol_ends_the_connection(loop, front, given):
    told = []

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
        raw = await Raw.connect(front)
        raw.writer.write(given)
        if given[16:21] == b"\0\0\0\0\0" and given[21:] == b"\5\0\0\0\0":
            assert (await raw.answer(21, 1))["code"] == 13
        else:
            assert await raw.ended()
        raw.close()
        asyncio.get_running_loop().set_exception_handler(None)

    loop(run())
    assert not told  # nobody fills the log with it


def test_who_reads_no_answers_asks_no_more(loop, servers, template):
    """Else the answers would take as much memory as a stranger likes."""

    async def run():
        front = Front(servers.all, (template / embedded.HELLO_FILE).read_bytes())
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await front.start(listener)
        body = bson.encode({"hello": 1, "$db": "admin"})
        asked = (HEAD.pack(21 + len(body), 7, 0, 2013) + b"\0\0\0\0\0" + body) * 500
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_connect(peer, listener.getsockname())
            taken = 0
            with contextlib.suppress(TimeoutError):
                while taken < 8 << 20:
                    async with asyncio.timeout(1.0):
                        await asyncio.get_running_loop().sock_sendall(peer, asked)
                    taken += len(asked)
            assert taken < 8 << 20
        front.stop()

    loop(run())


def test_who_does_not_use_its_place_gives_it_to_others(loop, servers, template, tmp_path):
    """As many as may run are held by stores, one of which is in use."""

    async def run():
        desk, path = await open_desk(servers, tmp_path)
        stores = []
        for name in ("ichi_x", "ichi_y", "ichi_z"):
            kept = await make_login(servers, name, "secret")
            url = address.of_project(kept, embedded.address(1))
            stores.append(Store(url, 2, lease=Lease(path, name)))
        ping = bson.encode({"ping": 1, "$db": "admin"})
        for store in stores:
            await store.run(ping, 5.0)

        async def use():
            while True:
                await stores[0].run(ping, 5.0)
                await asyncio.sleep(0.05)

        using = asyncio.create_task(use())
        await asyncio.sleep(1.2)
        other = await servers.all.hold("ichi_w", make=True)
        assert "ichi_x" in servers.all.running
        assert len(servers.all.running) <= 3
        servers.all.release(other)
        for store in stores[1:]:  # they come back
            await store.run(ping, 5.0)
        using.cancel()
        for store in stores:
            await store.close()
        desk.stop()

    loop(run())


def test_a_lease_keeps_a_server_and_finds_it_again(loop, servers, front, tmp_path):
    async def run():
        desk, path = await open_desk(servers, tmp_path)
        lease = Lease(path, "ichi_one", Share(50, 0))
        port = await lease.port()
        assert await lease.port() == port
        held = servers.all.running["ichi_one"]
        assert (held.port, held.holders) == (port, 1)
        lease.weigh(Share(10, 500 << 20))
        assert "ichi_one" in await ask(path, do="used")
        assert servers.all.shares["ichi_one"] == Share(10, 500 << 20)
        await servers.all.end("ichi_one")
        again = await lease.port()
        assert again == servers.all.running["ichi_one"].port
        assert servers.all.shares["ichi_one"] == Share(10, 500 << 20)
        lease.close()
        await asyncio.sleep(0.1)
        assert servers.all.running["ichi_one"].holders == 0
        for name, code in (("ichi_none", "missing"), ("../x", "missing")):
            with pytest.raises(LeaseError) as refused:
                await Lease(path, name).port()
            assert refused.value.code == code
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"nonsense\n")
        assert await reader.read() == b""
        writer.close()
        desk.stop()
        path.unlink()
        with pytest.raises(LeaseError) as refused:
            await lease.port()
        assert refused.value.code == "away"

    loop(run())


def test_a_lease_whose_connection_broke_is_taken_anew(loop, tmp_path):
    """As when the manager is killed before it has read what was sent to it."""

    async def run():
        listener = unix.listen(tmp_path / "documents.sock")
        listener.setblocking(False)
        running = asyncio.get_running_loop()

        async def give(port):
            peer, _ = await running.sock_accept(listener)
            await running.sock_recv(peer, 4096)
            await running.sock_sendall(peer, b'{"port": %d, "process": 1}\n' % port)
            return peer

        lease = Lease(tmp_path / "documents.sock", "ichi_one")
        lease.on_need = lambda: None
        first = asyncio.create_task(give(1))
        assert await lease.port() == 1
        lease.weigh(Share(10, 0))
        await asyncio.sleep(0.05)
        (await first).close()
        await asyncio.sleep(0.05)
        second = asyncio.create_task(give(2))
        async with asyncio.timeout(5):
            assert await lease.port() == 2
        lease.close()
        (await second).close()
        listener.close()

    loop(run())


def test_a_store_that_is_closed_while_its_server_starts_does_not_hold_it(loop, servers, tmp_path):
    async def run():
        desk, path = await open_desk(servers, tmp_path)
        kept = await make_login(servers, "ichi_x", "secret")
        await servers.all.end("ichi_x")
        store = Store(address.of_project(kept, embedded.address(1)), 2, lease=Lease(path, "ichi_x"))
        ping = bson.encode({"ping": 1, "$db": "admin"})
        asked = asyncio.create_task(store.run(ping, 5.0))
        while not servers.all._starting:
            await asyncio.sleep(0.001)
        await store.close()
        await asyncio.wait([asked])
        asked.exception()
        async with asyncio.timeout(10):
            while (held := servers.all.running.get("ichi_x")) is not None and held.holders:
                await asyncio.sleep(0.02)
        desk.stop()

    loop(run())
