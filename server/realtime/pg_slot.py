"""One feed's replication slot: made, found again, replaced when the server has given it up."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from server.base.changes import SEED

Connection = psycopg.AsyncConnection[Any]

PLUGIN = "pgoutput"
CREATE = "select (lsn - '0/0')::int8 from pg_catalog.pg_create_logical_replication_slot({}, {}, {})"
COPY = "select pg_catalog.pg_copy_logical_replication_slot({}, {}, false)"
FLUSHED = "select (pg_catalog.pg_current_wal_flush_lsn() - '0/0')::int8"
STATE = """
select s.active_pid, s.wal_status = 'lost' or s.plugin <> {}
  or s.database <> pg_catalog.current_database(), (s.confirmed_flush_lsn - '0/0')::int8
from pg_catalog.pg_replication_slots s where s.slot_name = {}
"""
SERVER = """
select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'),
  pg_catalog.current_setting('max_slot_wal_keep_size'),
  (select rolreplication or rolsuper from pg_catalog.pg_roles where rolname = current_user)
"""
TAKE_OVER_TRIES = 100  # tenths of a second


class FeedUnavailable(RuntimeError):
    """There can be no feed from this server; the text says why and what to do."""


class Position(msgspec.Struct, frozen=True):
    """Which log this is, and how far it is on disk. Positions of another log mean nothing."""

    system: str
    timeline: int
    flushed: int


class Slot(msgspec.Struct, frozen=True):
    """A slot that can be read from. made: it is new, so what was before it is not told."""

    name: str
    start: int
    made: bool
    temporary: bool


def parse_lsn(text: str) -> int:
    """16/B374D848 as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def show_lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


async def _row(connection: Connection, query: str, *values: str | bool) -> tuple[Any, ...] | None:
    """Replication connections take only statements without parameters."""
    text = sql.SQL(query).format(*[sql.Literal(value) for value in values])
    cursor = await connection.execute(text.as_bytes(connection))
    return await cursor.fetchone()


async def position(connection: Connection) -> Position:
    """Where the server's log is."""
    cursor = await connection.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    assert row is not None
    return Position(str(row[0]), int(row[1]), parse_lsn(str(row[2])))


async def check_server(connection: Connection) -> bool:
    """Whether the server bounds what a slot keeps. FeedUnavailable when it has no changes for
    us."""
    row = await _row(connection, SERVER)
    assert row is not None
    standby, level, kept, allowed = row
    if level != "logical":
        raise FeedUnavailable(
            f"the database server has wal_level = {level}: set it to logical and restart the server"
        )
    if standby:
        raise FeedUnavailable("the database server is a standby: connect to the primary")
    if not allowed:
        raise FeedUnavailable(
            "the feed's login may not replicate: the node's administrator of the database server "
            "has to be a superuser, or from PostgreSQL 16 on a role with REPLICATION"
        )
    return bool(kept != "-1")


async def acquire(connection: Connection, name: str, *, bounded: bool, flushed: int) -> Slot:
    """The slot of this name, taken over from a dead reader or made.

    bounded: the server limits what a slot keeps; where it does not, the slot lives only as long as
    the connection, so that a node that is gone cannot fill the server's disk. flushed: where an
    existing slot's reader begins who has no position of his own.
    """
    for _ in range(TAKE_OVER_TRIES):
        row = await _row(connection, STATE, PLUGIN, name)
        if row is None:
            made = await _copied(connection, name) if bounded else None
            if made is None:
                made = await _row(connection, CREATE, name, PLUGIN, not bounded)
            assert made is not None
            return Slot(name, made[0], True, not bounded)
        reader, unusable, confirmed = row
        if reader is not None:
            await _row(connection, "select pg_catalog.pg_terminate_backend({})", reader)
            await asyncio.sleep(0.1)
        elif unusable or not bounded or confirmed is None:
            await drop(connection, name)
        else:
            return Slot(name, flushed, False, False)
    raise FeedUnavailable(f"another reader keeps the replication slot {name}")


async def _copied(connection: Connection, name: str) -> tuple[Any, ...] | None:
    """Makes the slot as a copy of the server's own, which need not wait for the transactions that
    are open in its databases. Gives where its reader begins, None where there is nothing to copy
    from."""
    try:
        await _row(connection, COPY, SEED, name)
    except (psycopg.ProgrammingError, psycopg.errors.ObjectNotInPrerequisiteState):
        return None
    except psycopg.OperationalError:
        if connection.closed:
            raise
        return None
    return await _row(connection, FLUSHED)


async def drop(connection: Connection, name: str) -> None:
    """Removes the slot, ending its reader. None is fine too."""
    for _ in range(TAKE_OVER_TRIES):
        row = await _row(connection, STATE, PLUGIN, name)
        if row is None:
            return
        try:
            if row[0] is not None:
                await _row(connection, "select pg_catalog.pg_terminate_backend({})", row[0])
                await asyncio.sleep(0.1)
                continue
            await _row(connection, "select pg_catalog.pg_drop_replication_slot({})", name)
        except psycopg.errors.UndefinedObject:
            return
        except psycopg.errors.ObjectInUse:
            await asyncio.sleep(0.1)
