"""From a committed row to the frame of a socket, over a whole node."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.process.running import RunningNode
from tests.process.sockets import open_socket, subscribed

RULES = {
    "tables": {
        "public.notes": {"enabled": True, "rule": True},
        "public.own": {"enabled": True, "rule": {"owner": "$auth.role"}},
    },
    "channels": {"room:*": {"subscribe": True}},
}


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder)
    try:
        running.start()
        running.sql("create table notes (id int primary key, body text, at timestamptz)")
        running.sql("create table own (id int primary key, owner text)")
        running.cli("settings", "default", "set", "realtime", json.dumps(RULES))
        yield running
    finally:
        running.end()


def keys(node):
    project = node.project()
    return project["anon_key"], node.data_dir.joinpath("secrets/default_service_key").read_text()


def test_a_row_reaches_those_whom_its_rule_names(node):
    anon, service = keys(node)

    async def work():
        everybody = await subscribed(node.url, anon, "notes", "own")
        all_seeing = await subscribed(node.url, service.strip(), "own")
        await asyncio.to_thread(
            node.sql,
            "begin; insert into own values (1, 'anon'), (2, 'authenticated');"
            "insert into notes values (1, 'é', '2024-07-01 12:00Z');"
            "select realtime.publish('room:1', 'e', '{}'); commit",
        )
        frame = await everybody.next()
        assert (frame["type"], frame["event"], frame["table"]) == ("change", "INSERT", "public.own")
        assert frame["record"] == {"id": 1, "owner": "anon"}
        frame = await everybody.next()
        assert frame["record"] == {"id": 1, "body": "é", "at": "2024-07-01T12:00:00+00:00"}
        assert [(await all_seeing.next())["record"]["id"] for _ in range(2)] == [1, 2]
        everybody.close()
        all_seeing.close()

    asyncio.run(work())


def test_rows_and_messages_of_a_transaction_keep_their_order(node):
    anon, _ = keys(node)

    async def work():
        socket = await subscribed(node.url, anon, "notes")
        socket.send(type="subscribe", ref="b", kind="broadcast", channel="room:1")
        assert (await socket.next())["type"] == "subscribed"
        statements = ["begin"]
        for number in range(10, 60):
            statements.append(f"insert into notes values ({number})")
            statements.append(f"select realtime.publish('room:1', 'e', '{number}')")
        await asyncio.to_thread(node.sql, ";".join([*statements, "commit"]))
        for number in range(10, 60):
            change, message = await socket.next(), await socket.next()
            assert change["record"]["id"] == number
            assert (message["type"], message["payload"]) == ("broadcast", number)
            assert change["position"] < message["position"]
        socket.close()

    asyncio.run(work())


def test_a_table_enabled_later(node):
    anon, _ = keys(node)

    async def work():
        socket = await open_socket(node.url, anon)
        socket.send(type="subscribe", ref="s1", kind="postgres", table="later")
        assert (await socket.next())["code"] == "not_enabled"
        await asyncio.to_thread(node.sql, "create table later (id int primary key)")
        rules = {**RULES, "tables": {**RULES["tables"], "later": {"rule": True}}}
        await asyncio.to_thread(
            node.cli, "settings", "default", "set", "realtime", json.dumps(rules)
        )
        for ref in range(50):
            socket.send(type="subscribe", ref=f"r{ref}", kind="postgres", table="later")
            frame = await socket.next()
            if frame["type"] == "subscribed":
                break
            await asyncio.sleep(0.1)
        await asyncio.to_thread(node.sql, "insert into later values (1)")
        assert (await socket.next())["record"] == {"id": 1}
        socket.close()

    asyncio.run(work())


def test_a_restored_database_is_read_on_and_the_gap_told(node):
    """The slot and the publications are of the database that was replaced."""
    anon, _ = keys(node)

    async def work():
        cli, sql = (lambda *a: asyncio.to_thread(node.cli, *a)), asyncio.to_thread
        await sql(node.sql, "insert into notes values (500)")
        made = json.loads((await cli("backups", "create", "default", "--json")).stdout)
        socket = await subscribed(node.url, anon, "notes", "own")
        await sql(node.sql, "delete from notes; insert into notes values (501)")
        while (frame := await socket.next()).get("record") != {"id": 501, "body": None, "at": None}:
            assert frame["event"] == "DELETE"
        await cli("backups", "restore", made["backup"], "--yes")
        frame = await socket.next(30)
        assert (frame["type"], frame["code"]) == ("error", "feed_gap")
        # No row of the restore itself is told; what comes after it is, once, and by the rules.
        assert await sql(node.sql, "select count(*) from notes where id in (500, 501)") == [[1]]
        late = await subscribed(node.url, anon, "notes")
        await sql(
            node.sql,
            "insert into notes values (502); insert into own values (502, 'authenticated');"
            "insert into own values (503, 'anon'); delete from notes where id = 500",
        )
        told = [await socket.next() for _ in range(3)]
        assert [(f["event"], f["table"]) for f in told] == [
            ("INSERT", "public.notes"), ("INSERT", "public.own"), ("DELETE", "public.notes"),
        ]  # fmt: skip
        assert told[1]["record"]["id"] == 503
        assert [await late.next(), await late.next()] == [told[0], told[2]]
        slots = await sql(node.slots)
        assert len(slots) == 1
        for one in (socket, late):
            one.send(type="ping")
            assert (await one.next())["type"] == "pong"
            one.close()

    asyncio.run(work())
