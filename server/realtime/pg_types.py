"""Tells a decoder what the types of one database look like as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from ichicore.live.pgtypes import HSTORE, Types

# Of each type: what it is, what it consists of, and whether it is an hstore, whose cast to json
# to_json uses. Other casts to json are functions of the app's that only the server could call.
DESCRIBE = """
select t.oid::int8, t.typtype::text, t.typdelim::text, t.typbasetype::int8,
  case when t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
    then t.typelem::int8 else 0 end,
  case when t.typtype = 'c' then array(
    select a.attname::text from pg_catalog.pg_attribute a where a.attrelid = t.typrelid
    and a.attnum > 0 and not a.attisdropped order by a.attnum) end,
  case when t.typtype = 'c' then array(
    select a.atttypid::int8 from pg_catalog.pg_attribute a where a.attrelid = t.typrelid
    and a.attnum > 0 and not a.attisdropped order by a.attnum) end,
  exists (select from pg_catalog.pg_cast c join pg_catalog.pg_proc p on p.oid = c.castfunc
    where c.castsource = t.oid and c.casttarget = 'pg_catalog.json'::regtype
    and p.proname = 'hstore_to_json')
from pg_catalog.pg_type t where t.oid = any ('{%s}'::oid[])
"""
PUBLISHED = """
select distinct a.atttypid::int8 from pg_catalog.pg_publication_rel r
join pg_catalog.pg_publication p on p.oid = r.prpubid
join pg_catalog.pg_attribute a on a.attrelid = r.prrelid
where p.pubname in ('ichibase_realtime', 'ichibase_realtime_inserts')
and a.attnum > 0 and not a.attisdropped
"""

Connection = psycopg.AsyncConnection[Any]


async def of_published(connection: Connection) -> list[int]:
    """Types of the columns of all published tables."""
    cursor = await connection.execute(PUBLISHED)
    return [row[0] for row in await cursor.fetchall()]


async def learn(connection: Connection, types: Types, oids: Iterable[int]) -> None:
    """Adds these types and those they consist of. A type that is gone is shown as its text."""
    found: dict[int, tuple[Any, ...]] = {}
    wanted = {oid for oid in oids if not types.knows(oid)}
    asked = set(wanted)
    while wanted:
        cursor = await connection.execute((DESCRIBE % ",".join(map(str, wanted))).encode())
        rows = await cursor.fetchall()
        found.update((row[0], row) for row in rows)
        parts = {part for row in rows for part in _parts(row)}
        wanted = {oid for oid in parts if oid not in asked and not types.knows(oid)}
        asked |= wanted
    for oid in asked:
        _add(types, found, oid)


def _parts(row: tuple[Any, ...]) -> list[int]:
    _, kind, _, base, element, _, attributes, _ = row
    if kind == "d":
        return [base]
    return [element] if element else list(attributes or ())


def _add(types: Types, found: dict[int, tuple[Any, ...]], oid: int) -> None:
    if types.knows(oid):
        return
    row = found.get(oid)
    if row is None:
        types.add_simple(oid)
        return
    _, kind, delimiter, base, element, names, attributes, is_hstore = row
    for part in _parts(row):
        _add(types, found, part)
    if kind == "d":
        types.add_alias(oid, base)
    elif element:
        types.add_array(oid, element, delimiter)
    elif kind == "c":
        types.add_record(oid, tuple(names), tuple(attributes))
    elif is_hstore:
        types.add_simple(oid, HSTORE)
    else:
        types.add_simple(oid)
