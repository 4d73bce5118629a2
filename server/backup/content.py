"""What is in a project's database, in numbers that do not depend on where it lies: rows of each
table and a checksum over them, whatever their order.

Rows are read with COPY of whole tables. A SELECT would run what the owner of a table has written,
with the rights of who asks: casts, functions in indexes, or a view that took the table's place.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import xxhash
from psycopg import sql

from server.control.database import Connection, fetch

# A row's text depends on these.
SETTINGS = (
    "set timezone = 'UTC'", "set datestyle = 'ISO, MDY'", "set intervalstyle = 'postgres'",
    "set bytea_output = 'hex'", "set extra_float_digits = 1", "set search_path = ''",
    "set statement_timeout = 0", "set lock_timeout = '60s'", "set row_security = off",
)  # fmt: skip
# Columns by name, since their order may change when the tables are made anew.
TABLES = """select n.nspname::text, c.relname::text, coalesce(pg_catalog.pg_table_size(c.oid), 0),
    array(select a.attname::text from pg_catalog.pg_attribute a where a.attrelid = c.oid
      and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attname)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_'
    and n.nspname <> 'information_schema'
    and not exists (select from pg_catalog.pg_depend d where d.classid = 1259
      and d.objid = c.oid and d.deptype = 'e')
  order by 1, 2"""

SUMS = "copy"  # how checksums are made; those of older backups cannot be compared


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
    rows = await fetch(connection, TABLES)
    total, done = sum(row[2] for row in rows), 0
    for schema, name, size, columns in rows:
        listed = sql.SQL(", ").join(sql.Identifier(column) for column in columns)
        statement = sql.SQL("copy {} ({}) to stdout" if columns else "copy {} to stdout").format(
            sql.Identifier(schema, name), *([listed] if columns else [])
        )
        count = checksum = 0
        async with connection.cursor() as cursor, cursor.copy(statement) as copy:
            async for row in copy:
                count += 1
                checksum += xxhash.xxh3_64_intdigest(row)
        found[f"{schema}.{name}"] = Table(count, str(checksum))
        done += size
        told(done, total)
    return found


def differences(
    expected: dict[str, Table], found: dict[str, Table], *, values: bool = True
) -> list[str]:
    """What differs, in words; empty when all is the same. values: compare the checksums too."""
    said = []
    for name in sorted(expected.keys() | found.keys()):
        before, now = expected.get(name), found.get(name)
        if before is None:
            said.append(f"{name} was not in the backup")
        elif now is None:
            said.append(f"{name} is missing")
        elif before.rows != now.rows:
            said.append(f"{name} has {now.rows} rows instead of {before.rows}")
        elif values and before.checksum != now.checksum:
            said.append(f"{name} has other values")
    return said
