"""What is in a project's database, in numbers that do not depend on where it lies: rows of each
table and a checksum over them, whatever their order."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from psycopg import sql

from server.control.database import Connection, fetch

# A row's text depends on these.
SETTINGS = (
    "set timezone = 'UTC'", "set datestyle = 'ISO, MDY'", "set intervalstyle = 'postgres'",
    "set bytea_output = 'hex'", "set extra_float_digits = 1", "set search_path = ''",
    "set statement_timeout = 0", "set lock_timeout = '60s'", "set row_security = off",
)  # fmt: skip
TABLES = """select n.nspname::text, c.relname::text, pg_catalog.pg_table_size(c.oid)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_'
    and n.nspname <> 'information_schema'
    and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_class'::regclass
      and d.objid = c.oid and d.deptype = 'e')
  order by 1, 2"""


class Table(msgspec.Struct, frozen=True):
    """checksum: sum over a hash of each row's text, as a decimal number."""

    rows: int
    checksum: str


Told = Callable[[int, int], None]  # done, total


async def prepare(connection: Connection) -> None:
    """Makes the session write values as the checksums are made of."""
    for statement in SETTINGS:
        await connection.execute(statement)


async def tables(connection: Connection, told: Told = lambda done, total: None) -> dict[str, Table]:
    """All tables by schema.name; the session is prepared. Tables of extensions are left out."""
    found: dict[str, Table] = {}
    rows = await fetch(connection, TABLES.replace("'pg_class'::regclass", "1259"))
    total, done = sum(size for _, _, size in rows), 0
    for schema, name, size in rows:
        # The alias is no column's name, so it stands for the whole row.
        statement = sql.SQL(
            'select count(*), coalesce(sum(pg_catalog.hashtextextended("ichibase row"::text, 0)'
            '::numeric), 0)::text from only {} as "ichibase row"'
        ).format(sql.Identifier(schema, name))
        text = statement.as_bytes(connection)
        count, checksum = (await (await connection.execute(text)).fetchall())[0]
        found[f"{schema}.{name}"] = Table(count, checksum)
        done += size
        told(done, total)
    return found


def differences(expected: dict[str, Table], found: dict[str, Table]) -> list[str]:
    """What differs, in words; empty when all is the same."""
    said = []
    for name in sorted(expected.keys() | found.keys()):
        before, now = expected.get(name), found.get(name)
        if before is None:
            said.append(f"{name} was not in the backup")
        elif now is None:
            said.append(f"{name} is missing")
        elif before.rows != now.rows:
            said.append(f"{name} has {now.rows} rows instead of {before.rows}")
        elif before.checksum != now.checksum:
            said.append(f"{name} has other values")
    return said
