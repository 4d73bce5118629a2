"""What goes wrong inside an upload: slow clients, a store or a database that fails."""

from __future__ import annotations

import asyncio
import errno
import time

import msgspec
import pytest

from ichicore.errors import ApiError
from ichicore.pg.errors import PgUnavailable
from server.gateway.gathering import Gathered
from server.storage import receive, uploads
from server.storage.database import Database
from server.storage.stores import StoreError
from server.storage.sweep import sweep
from tests.server.storage import inside
from tests.server.test_gathering import Server as HttpServer
from tests.timing import within


def run(files, work):
    async def main():
        async with inside.worker(files.data_dir) as (room, tenant):
            await work(room, tenant)

    with inside.environment(files):
        asyncio.run(main())


OF = "select 1 from storage.{} where bucket = 'inside' and path = $1"


async def nothing_left(tenant, room, path):
    pool = tenant.database._pools.system(tenant.project)
    # what other tests replaced may fall due at any moment, also right after the sweep
    now = (await pool.fetch("select now()::text"))[0][0]
    await sweep(room, tenant)
    assert await pool.fetch(OF.format("uploads"), (path,)) == []
    assert await pool.fetch(OF.format("objects"), (path,)) == []
    due = "select 1 from storage.garbage where due_at <= $1::timestamptz"
    assert await pool.fetch(due, (now,)) == []


async def refused(room, tenant, request, path, status, code):
    with pytest.raises(ApiError) as caught:
        await uploads.put_direct(room, tenant, request, "inside", path)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert (room.uploads, tenant.uploads) == (0, 0)
    await nothing_left(tenant, room, path)


@pytest.mark.parametrize("how", ["by the server", "any stream"])
def test_a_slow_loris_upload_that_stalls(files, monkeypatch, how):
    monkeypatch.setattr(receive, "IDLE", 0.2)

    async def work(room, tenant):
        body = inside.Body([b"x" * 10], lambda: asyncio.sleep(30))
        began = time.monotonic()
        request = inside.put(tenant.project, 20, body)
        if how == "by the server":
            request.read_batches = lambda: Gathered(HttpServer([b"x" * 10, None]), 20)
        await refused(room, tenant, request, "stalls", 408, "upload_timeout")
        assert within(time.monotonic() - began, 5)

    run(files, work)


def test_many_slow_uploads_do_not_keep_a_brisk_one_waiting(files, monkeypatch):
    """More than there are turns, each with a byte now and then."""
    monkeypatch.setattr(receive, "TURNS", 2)

    class Trickle:
        async def __aiter__(self):
            for _ in range(100):
                await asyncio.sleep(0.02)
                yield b"x"

    class Brisk:
        async def __aiter__(self):
            for _ in range(40):
                await asyncio.sleep(0)
                yield b"y" * 100_000

    async def work(room, tenant):
        room.turns = receive.Turns()

        async def put(name, size, body):
            request = inside.put(tenant.project, size, body)
            return await uploads.put_direct(room, tenant, request, "inside", name)

        slow = [asyncio.ensure_future(put(f"slow{n}", 100, Trickle())) for n in range(6)]
        await asyncio.sleep(0.1)
        brisk = [put(f"brisk{n}", 4_000_000, Brisk()) for n in range(4)]
        for answer in await asyncio.gather(*brisk):
            assert answer.status == 200
        assert not any(task.done() for task in slow)
        for answer in await asyncio.gather(*slow):
            assert answer.status == 200
        assert room.turns.under_way == 0

    run(files, work)
    for name, body in (("slow5", b"x" * 100), ("brisk3", b"y" * 4_000_000)):
        assert files.send("GET", files.signed("inside", name)).body == body


def test_a_slow_loris_upload_that_trickles(files, monkeypatch):
    """Never silent for long, yet slower than any honest one."""
    monkeypatch.setattr(receive, "START", 0.3)

    class Trickle:
        async def __aiter__(self):
            while True:
                await asyncio.sleep(0.02)
                yield b"x"

    async def work(room, tenant):
        request = inside.put(tenant.project, 1000, Trickle())
        began = time.monotonic()
        await refused(room, tenant, request, "trickles", 408, "upload_timeout")
        assert within(time.monotonic() - began, 5)

    run(files, work)


def test_a_long_upload_keeps_its_place(files, monkeypatch):
    """It says that it is under way: it outlives its lease, and a dead one does not."""
    monkeypatch.setattr(uploads, "BEAT", 0.3)
    monkeypatch.setattr(uploads, "LEASE", 2.0)

    class Slow:
        async def __aiter__(self):
            for _ in range(26):
                await asyncio.sleep(0.1)
                yield b"x"

    async def work(room, tenant):
        request = inside.put(tenant.project, 26, Slow())
        task = asyncio.ensure_future(uploads.put_direct(room, tenant, request, "inside", "long"))
        while not task.done():
            await sweep(room, tenant)
            await asyncio.sleep(0.2)
        assert (await task).status == 200
        await uploads.reserve(tenant, "inside", "dead", 5, "a/b", None, None, version="0" * 32)
        await asyncio.sleep(2.1)
        await nothing_left(tenant, room, "dead")

    run(files, work)


def test_a_body_that_ends_early(files):
    async def work(room, tenant):
        for chunks in ([b"x" * 10], [], [b"", b""]):
            request = inside.put(tenant.project, 20, inside.Body(chunks))
            await refused(room, tenant, request, "early", 400, "bad_request")

    run(files, work)


def test_a_body_that_goes_on(files):
    async def work(room, tenant):
        request = inside.put(tenant.project, 20, inside.Body([b"x" * 15, b"x" * 15]))
        await refused(room, tenant, request, "on", 413, "payload_too_large")

    run(files, work)


@pytest.mark.parametrize(("failure", "status", "code"), [
    (OSError(errno.ENOSPC, "No space left on device"), 507, "insufficient_storage"),
    (OSError(errno.EIO, "Input/output error"), 503, "unavailable"),
    (StoreError("the object store said no"), 503, "unavailable"),
])  # fmt: skip
@pytest.mark.parametrize("step", ["write", "commit"])
def test_a_store_that_fails(files, monkeypatch, failure, status, code, step):
    async def work(room, tenant):
        kind = type(room.store.sink(tenant.project.id, "0" * 32, 1))
        if step == "write":
            monkeypatch.setattr(kind, "write", lambda self, parts: fail())
        else:
            monkeypatch.setattr(kind, "commit", lambda self: later())

        def fail():
            raise failure

        async def later():
            raise failure

        request = inside.put(tenant.project, 5, inside.Body([b"hello"]))
        await refused(room, tenant, request, "fails", status, code)

    run(files, work)


def test_an_answer_of_the_database_that_is_lost(files, monkeypatch):
    """The record was made but the answer did not come: the content stays."""

    async def work(room, tenant):
        rows = Database.rows

        async def lossy(self, what, *params, **named):
            found = await rows(self, what, *params, **named)
            if what is uploads.FINISH:
                raise PgUnavailable("the connection broke")
            return found

        monkeypatch.setattr(Database, "rows", lossy)
        request = inside.put(tenant.project, 5, inside.Body([b"hello"]))
        with pytest.raises(PgUnavailable):
            await uploads.put_direct(room, tenant, request, "inside", "lossy")
        monkeypatch.undo()
        pool = tenant.database._pools.system(tenant.project)
        await pool.fetch("update storage.garbage set due_at = now() returning 1")
        await sweep(room, tenant)
        entry = await room.find(tenant, "inside", "lossy")
        assert await room.store.read(tenant.project.id, entry.version, 0, 5) == b"hello"

    run(files, work)
    assert files.send("GET", files.signed("inside", "lossy")).body == b"hello"


def test_a_client_that_leaves(files):
    async def work(room, tenant):
        body = inside.Body([b"x" * 100_000], lambda: asyncio.sleep(30))
        request = inside.put(tenant.project, 200_000, body)
        task = asyncio.ensure_future(uploads.put_direct(room, tenant, request, "inside", "leaves"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait(set(room._tasks), timeout=5)
        await nothing_left(tenant, room, "leaves")

    run(files, work)


def test_a_client_that_leaves_while_its_file_is_stored(files, monkeypatch):
    """The store may be at it still: nothing is left when it has ended."""

    async def work(room, tenant):
        kind = type(room.store.sink(tenant.project.id, "0" * 32, 1))
        commit, began, versions = kind.commit, asyncio.Event(), []

        async def late(self):
            began.set()
            await asyncio.sleep(0.5)
            await commit(self)

        sink = room.store.sink
        monkeypatch.setattr(kind, "commit", late)
        monkeypatch.setattr(
            room.store, "sink", lambda p, v, n: (versions.append(v), sink(p, v, n))[1]
        )
        request = inside.put(tenant.project, 5, inside.Body([b"hello"]))
        task = asyncio.ensure_future(uploads.put_direct(room, tenant, request, "inside", "late"))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while room._tasks:
            await asyncio.wait(set(room._tasks), timeout=5)
        await nothing_left(tenant, room, "late")
        assert await room.store.size(tenant.project.id, versions[0]) is None

    run(files, work)


def test_too_many_uploads_wait_their_turn(files, monkeypatch):
    monkeypatch.setattr(uploads, "UPLOADS_OF_PROJECT", 1)

    async def work(room, tenant):
        gate = asyncio.Event()
        slow = inside.put(tenant.project, 5, inside.Body([b"hello"], gate.wait))
        first = asyncio.ensure_future(uploads.put_direct(room, tenant, slow, "inside", "first"))
        await asyncio.sleep(0.2)
        request = inside.put(tenant.project, 5, inside.Body([b"hello"]))
        with pytest.raises(ApiError) as caught:
            await uploads.put_direct(room, tenant, request, "inside", "second")
        assert caught.value.status == 503
        gate.set()
        assert (await first).status == 200

    run(files, work)


def test_quota_races_are_decided_once(files):
    """Many at once for room that only some can have: never more than fits."""

    async def work(room, tenant):
        import msgspec

        used = (await tenant.database._pools.system(tenant.project).fetch(
            "select bytes + reserved from storage.usage"))[0][0]  # fmt: skip
        limits = msgspec.structs.replace(tenant.project.limits, storage_bytes=int(used) + 55)
        tenant.project = msgspec.structs.replace(tenant.project, limits=limits)

        async def one(number):
            request = inside.put(tenant.project, 10, inside.Body([b"0123456789"]))
            try:
                await uploads.put_direct(room, tenant, request, "race", f"f{number}")
            except ApiError as error:
                return error.code
            return "stored"

        outcomes = await asyncio.gather(*(one(number) for number in range(12)))
        assert sorted(outcomes) == ["storage_quota_exceeded"] * 7 + ["stored"] * 5

    run(files, work)


def test_uploads_to_one_path_at_once_end_as_one_of_them(files):
    from concurrent.futures import ThreadPoolExecutor

    before = files.used()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(
            lambda n: files.upload("one", "path", bytes([n]) * (1000 + n)), range(16)
        ))  # fmt: skip
    assert {answer.status for answer in answers} == {200}
    body = files.send("GET", files.signed("one", "path")).body
    assert body == bytes([body[0]]) * (1000 + body[0])
    after = files.used()
    assert after["bytes"] - before["bytes"] == len(body)
    assert after["objects"] - before["objects"] == 1


def test_a_project_that_sleeps_costs_no_memory(files):
    async def work(room, tenant):
        project = tenant.project
        asleep = msgspec.structs.replace(project, state="sleeping")
        room._changed(project, project.slug)
        assert room.tenants == {project.slug: tenant}
        tenant.uploads = 1  # it goes on for a moment
        room._changed(asleep, project.slug)
        assert room.tenants == {project.slug: tenant}
        tenant.uploads = 0
        room._changed(asleep, project.slug)
        assert room.tenants == {}
        assert (await room.tenant(project)).dirty

    run(files, work)
