"""The bus and the directory over a real database, through breaks of the connection."""

import asyncio
import json
import os
import signal
from types import SimpleNamespace

import psycopg
import pytest

from server.base import listen
from server.base.bus import RECONNECTED, PgBus
from server.base.directory import ControlDirectory, Source
from server.base.events import Events, Failed, Lost, Regained


async def until(condition, seconds=60.0):
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def kill_backends(dsn):
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = "
            "current_database() and pid <> pg_backend_pid()"
        )


def test_a_server_that_is_silent_counts_as_away(pg_database, monkeypatch):
    monkeypatch.setattr(listen, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(listen, "SILENT_SECONDS", 0.3)

    async def run():
        bus, heard, lost = PgBus(pg_database, Events()), [], []
        bus.events.listeners.append(lambda event: lost.append(isinstance(event, Lost)))
        bus.subscribe("t", heard.append)
        bus.start()
        await bus.connected.wait()
        await asyncio.sleep(0.5)  # it has been asked, and has answered
        assert lost == []
        with psycopg.connect(pg_database, autocommit=True) as admin:
            found = (
                "select pid from pg_stat_activity where application_name = 'ichibase bus' "
                "and datname = current_database()"
            )
            pid = admin.execute(found).fetchone()[0]
            os.kill(pid, signal.SIGSTOP)
            try:
                await until(lambda: lost)
                await bus.connected.wait()  # by another session
            finally:
                os.kill(pid, signal.SIGCONT)
        await bus.publish("t", {"n": 1})
        await until(lambda: heard == [{"n": 1}])
        await bus.stop()

    asyncio.run(run())


def test_messages_reach_all_workers_in_order(pg_database):
    async def run():
        events = Events()
        one, two = PgBus(pg_database, events), PgBus(pg_database, events)
        heard = {"one": [], "two": []}
        one.subscribe("t", heard["one"].append)
        two.subscribe("t", heard["two"].append)
        two.subscribe("other", lambda _: heard["two"].append("no"))
        one.start()
        two.start()
        await one.connected.wait()
        await two.connected.wait()
        for number in range(20):
            await one.publish("t", {"n": number})
        await until(lambda: len(heard["one"]) == len(heard["two"]) == 20)
        assert heard["one"] == heard["two"] == [{"n": n} for n in range(20)]
        with pytest.raises(ValueError, match="7000"):
            await one.publish("t", {"x": "y" * 8000})
        await one.stop()
        await two.stop()

    asyncio.run(run())


def test_a_broken_connection_comes_back(pg_database):
    async def run():
        events, seen, heard = Events(), [], []
        events.listeners.append(seen.append)
        bus = PgBus(pg_database, events)
        bus.subscribe(RECONNECTED, lambda _: heard.append("again"))
        bus.subscribe("t", lambda message: heard.append(message["n"]))
        bus.start()
        await bus.connected.wait()
        await bus.publish("t", {"n": 1})
        await until(lambda: heard == [1])
        await asyncio.to_thread(kill_backends, pg_database)
        await until(lambda: "again" in heard)
        await bus.publish("t", {"n": 2})
        await until(lambda: heard == [1, "again", 2])
        assert [type(e) for e in seen] == [Lost, Regained]
        await bus.stop()

    asyncio.run(run())


def test_a_failing_callback_and_foreign_notices_do_no_harm(pg_database):
    async def run():
        events, seen, heard = Events(), [], []
        events.listeners.append(seen.append)
        bus = PgBus(pg_database, events)
        bus.subscribe("t", lambda message: message["missing"])
        bus.subscribe("t", heard.append)
        bus.start()
        await bus.connected.wait()
        async with await psycopg.AsyncConnection.connect(pg_database, autocommit=True) as other:
            for text in ("", "[]", "{", '{"topic":1}', '{"topic":"t","payload":[]}'):
                await other.execute("select pg_notify('ichibase_bus', %s)", (text,))
        await bus.publish("t", {"n": 1})
        await until(lambda: heard == [{"n": 1}])
        assert [type(e) for e in seen] == [Failed]
        await bus.stop()

    asyncio.run(run())


def test_the_directory_follows_the_table(pg_database):
    source = Source(
        "select body from projects order by slug",
        "select body from projects where slug = $1",
        lambda text: SimpleNamespace(**json.loads(text)),
        "project",
    )

    async def run():
        events, changes = Events(), []
        async with await psycopg.AsyncConnection.connect(pg_database, autocommit=True) as owner:
            await owner.execute("create table projects (slug text primary key, body text)")

            async def put(slug, revision):
                body = json.dumps({"slug": slug, "revision": revision})
                await owner.execute(
                    "insert into projects values (%s, %s) on conflict (slug) do update set "
                    "body = excluded.body", (slug, body),
                )  # fmt: skip

            await put("a", 1)
            bus = PgBus(pg_database, events)
            directory = ControlDirectory(pg_database, source, bus, events)
            directory.on_change(
                lambda project, slug: changes.append((slug, project and project.revision))
            )
            bus.start()
            directory.start()
            await bus.connected.wait()
            await directory.ready.wait()
            assert directory.get("a").revision == 1
            await put("b", 1)
            await bus.publish("project", {"slug": "b", "revision": 1})
            await until(lambda: directory.get("b") is not None)
            await put("a", 2)
            await bus.publish("project", {"slug": "a", "revision": 2})
            await until(lambda: directory.get("a").revision == 2)
            await owner.execute("delete from projects where slug = 'b'")
            await bus.publish("project", {"slug": "b", "revision": 2})
            await until(lambda: directory.get("b") is None)
            assert changes == [("a", 1), ("b", 1), ("a", 2), ("b", None)]
            # what is told during a break is read after it
            await put("c", 1)
            await asyncio.to_thread(kill_others, pg_database, owner.info.backend_pid)
            await until(lambda: directory.get("c") is not None)
            # who looks for one that nobody has told of yet finds it; many share one reading
            assert await directory.look("d") is None
            await put("d", 1)
            assert await directory.look("d") is None  # not again so soon
            await asyncio.sleep(1.1)
            asked = [directory.look("d" if n % 2 else f"none-{n}") for n in range(200)]
            found = await asyncio.wait_for(asyncio.gather(*asked), 1.0)
            assert [one is not None for one in found] == [n % 2 == 1 for n in range(200)]
            await directory.stop()
            await bus.stop()

    asyncio.run(run())


def kill_others(dsn, spared):
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = "
            "current_database() and pid not in (pg_backend_pid(), %s)", (spared,),
        )  # fmt: skip
