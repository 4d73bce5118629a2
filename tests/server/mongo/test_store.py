"""Connections of a worker to document servers: shared, bounded, made again."""

from __future__ import annotations

import asyncio
import struct

import bson
import pytest

from ichicore.errors import ApiError
from server.mongo import store as module
from server.mongo.address import AddressError, of_project, stored, without_login
from server.mongo.store import Budget, Store

OK = bson.encode({"ok": 1.0})


class FakeServer:
    """Answers each command with `answer` after `pause` seconds; counts connections."""

    def __init__(self):
        self.open = self.most = self.commands = 0
        self.writers = set()
        self.pause = 0.0
        self.answer = OK
        self.garbage = None
        self.pieces = 0  # bytes sent at once, 0 for all

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        self.writers.add(writer)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while True:
                head = await reader.readexactly(16)
                length, number = struct.unpack("<ii8x", head)
                body = await reader.readexactly(length - 16)
                if b"hello" in body:
                    answer = OK
                else:
                    self.commands += 1
                    await asyncio.sleep(self.pause)
                    if self.garbage is not None:
                        writer.write(self.garbage)
                        continue
                    answer = self.answer
                whole = struct.pack("<iiiiiB", 21 + len(answer), 1, number, 2013, 0, 0) + answer
                step = self.pieces or len(whole)
                for place in range(0, len(whole), step):
                    writer.write(whole[place : place + step])
                    if self.pieces:
                        await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.close()


def url(port, name="db"):
    return f"mongodb://127.0.0.1:{port}/{name}?directConnection=true"


COMMAND = bson.encode({"ping": 1, "$db": "db"})


def run(test):
    async def main():
        server = FakeServer()
        port = await server.start()
        try:
            await test(server, port)
        finally:
            server.server.close()

    asyncio.run(main())


def test_connections_are_shared_and_bounded():
    async def test(server, port):
        server.pause = 0.005
        one = Store(url(port), 3)
        answers = await asyncio.gather(*(one.run(COMMAND, 5) for _ in range(30)))
        assert answers == [OK] * 30
        assert server.most <= 3
        assert one.connections <= 3
        await one.close()
        async with asyncio.timeout(60):
            while server.open:
                await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize(("size", "pieces"), [(10, 1), (10, 7), (500_000, 30_011), (5_000_000, 0)])
def test_answers_and_commands_come_in_pieces(size, pieces):
    async def test(server, port):
        server.pieces = pieces
        one = Store(url(port), 1)
        for fill in ("a", "b"):
            server.answer = bson.encode({"ok": 1.0, "text": fill * size})
            command = bson.encode({"ping": 1, "text": fill * size, "$db": "db"})
            assert await one.run(command, 20) == server.answer
        assert server.most == 1
        await one.close()

    run(test)


def test_projects_share_one_budget_and_idle_ones_give_way():
    async def test(server, port):
        budget = Budget(4)
        stores = [Store(url(port, f"db{n}"), 4, budget) for n in range(5)]
        for store in stores:
            assert await store.run(COMMAND, 5) == OK
        server.pause = 0.005
        await asyncio.gather(*(store.run(COMMAND, 5) for store in stores for _ in range(6)))
        assert budget.taken <= 4
        async with asyncio.timeout(60):
            while server.open > 4:
                await asyncio.sleep(0.01)
        for store in stores:
            await store.close()
        assert budget.taken == 0

    run(test)


def test_a_caller_that_leaves_gives_its_turn_to_the_next(monkeypatch):
    async def test(server, port):
        server.pause = 0.2
        one = Store(url(port), 1)
        first = asyncio.ensure_future(one.run(COMMAND, 5))
        await asyncio.sleep(0.05)
        left = asyncio.ensure_future(one.run(COMMAND, 5))
        last = asyncio.ensure_future(one.run(COMMAND, 5))
        await asyncio.sleep(0.05)
        left.cancel()
        assert await first == OK
        assert await asyncio.wait_for(last, 20) == OK
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
        slow = asyncio.ensure_future(one.run(COMMAND, 5))
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as refused:
            await one.run(COMMAND, 5)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert await slow == OK
        await one.close()

    run(test)


def test_a_cancelled_or_late_command_ends_its_connection(monkeypatch):
    async def test(server, port):
        monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
        server.pause = 1.0
        one = Store(url(port), 2)
        with pytest.raises(ApiError) as refused:
            await one.run(COMMAND, 0.05)
        assert refused.value.status == 504
        gone = asyncio.ensure_future(one.run(COMMAND, 5))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        assert one.connections == 0
        assert one.busy == 0
        await one.close()

    run(test)


@pytest.mark.parametrize("garbage", [
    struct.pack("<i", 5) + b"x" * 40, struct.pack("<i", 2**30) + b"x" * 40,
    struct.pack("<iiiiiB", 26, 1, 0, 2012, 0, 0) + b"\x05\0\0\0\0",
    struct.pack("<iiiiiB", 26, 1, 0, 2013, 2, 0) + b"\x05\0\0\0\0",
    struct.pack("<iiiiiB", 26, 1, 0, 2013, 0, 1) + b"\x05\0\0\0\0",
    struct.pack("<iiiiiB", 26, 1, 0, 2013, 0, 0) + b"\x05\0\0\0\0" + b"more",
])  # fmt: skip
def test_what_is_not_the_protocol_ends_the_connection(garbage):
    async def test(server, port):
        server.garbage = garbage
        one = Store(url(port), 2)
        with pytest.raises(ApiError) as refused:
            await one.run(COMMAND, 1)
        assert refused.value.status == 503
        server.garbage = None
        assert await one.run(COMMAND, 1) == OK
        await one.close()

    run(test)


def test_a_server_that_restarts_costs_no_read():
    async def test(server, port):
        one = Store(url(port), 2)
        assert await one.run(COMMAND, 5) == OK
        server.server.close()
        for writer in list(server.writers):
            writer.transport.abort()
        await asyncio.sleep(0.05)
        server.server = await asyncio.start_server(server._serve, "127.0.0.1", port)
        assert await one.run(COMMAND, 5) == OK
        await one.close()

    run(test)


def test_addresses():
    kept = stored("ichi_x", "p:w/@", "ichi_x")
    there = without_login("mongodb://root:secret@a,b:27018/admin?replicaSet=rs&authSource=admin")
    assert there == "mongodb://a,b:27018/?replicaSet=rs"
    assert of_project(kept, there) == (
        "mongodb://ichi_x:p%3Aw%2F%40@a,b:27018/ichi_x?replicaSet=rs&authSource=ichi_x"
    )
    assert of_project(None, there) is None
    assert of_project(kept, None) is None
    srv = without_login("mongodb+srv://u:p@cluster.example/?retryWrites=true")
    assert of_project(kept, srv).startswith("mongodb+srv://ichi_x:")
    for bad in ("postgres://x", "mongodb://", "mongodb://u:p@/x"):
        with pytest.raises(AddressError):
            without_login(bad)


def test_scram_refuses_a_server_that_does_not_know_the_password():
    from server.mongo.scram import Exchange, Keys, ScramError

    one = Exchange(Keys("u", "pencil"))
    one.first()
    nonce = one.nonce + b"server"
    one.second(b"r=" + nonce + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    with pytest.raises(ScramError):
        one.verify(b"v=AAAA")
    for answer in (b"r=other,s=W22Z,i=4096", b"x", b"r=" + nonce + b",s=W22Z,i=1",
                   b"r=" + nonce + b",s=W22Z,i=99999999"):  # fmt: skip
        with pytest.raises(ScramError):
            Exchange(Keys("u", "pencil")).second(answer)


def test_scram_proves_as_rfc_7677_does():
    """The example of RFC 7677, section 3."""
    from server.mongo.scram import Exchange, Keys

    one = Exchange(Keys("user", "pencil"))
    one.nonce = b"rOprNGfwEbeRWgbNEkqO"
    one._bare = b"n=user,r=" + one.nonce
    answer = (b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
              b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")  # fmt: skip
    assert one.second(answer).endswith(b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    one.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
