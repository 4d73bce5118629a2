"""Compares what the database says with what the store holds, and mends what differs.

Every step of the service leaves a note before it does what the note is about, so that a crash is
cleaned up by the sweep. What is found here comes from elsewhere: a store or a database restored
from a backup, a disk that lost files, somebody who deleted blobs by hand.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection

from server.storage.stores import Store

BATCH = 1000
SHOWN = 100  # files named in a report
# Rows are not removed when more than this share of a project's files seems to be missing: then
# the store is more likely the wrong one, or away.
MOST_MISSING = 0.1
FEW = 10

SEEN = "create temporary table seen (version text not null, size bigint not null)"
INDEX = "create index on pg_temp.seen (version); analyze pg_temp.seen"
ORPHANS = """select distinct version, size from pg_temp.seen s
where not exists (select from storage.objects o where o.version = s.version)
  and not exists (select from storage.uploads u where u.version = s.version)
  and not exists (select from storage.garbage g where g.version = s.version)"""
MISSING = """select o.id::text, o.bucket, o.path, o.version, o.size from storage.objects o
left join pg_temp.seen s on s.version = o.version and s.size = o.size where s.version is null
order by o.bucket, o.path"""
SIDES = "select (select count(*) from storage.objects), (select count(*) from storage.garbage)"
TOSS = "insert into storage.garbage (version) select unnest($1::text[]) on conflict do nothing"
DUE = "select version from storage.garbage where due_at <= now() limit 500"
GONE = "delete from storage.garbage where version = any ($1::text[])"
REMOVE = "delete from storage.objects where id = $1::uuid and version = $2"
COUNTS = """select u.bytes, u.reserved, u.objects,
  (select coalesce(sum(size), 0)::bigint from storage.objects),
  (select coalesce(sum(reserved), 0)::bigint from storage.uploads),
  (select count(*) from storage.objects)
from storage.usage u"""
COUNT_ANEW = """update storage.usage set
  bytes = (select coalesce(sum(size), 0) from storage.objects),
  reserved = (select coalesce(sum(reserved), 0) from storage.uploads),
  objects = (select count(*) from storage.objects)"""


class Missing(msgspec.Struct):
    """A file whose content the store does not have, or not in its full size."""

    bucket: str
    path: str
    version: str
    size: int


class Report(msgspec.Struct, kw_only=True):
    """files, blobs: what there is on either side. waiting: blobs that are noted for deletion and
    may be there still. orphans: blobs that belong to nothing, with
    their bytes. missing: files without content; the first ones are named. counted, actual: the
    quota's counters and what they should be. mended: whether what was found has been put right.
    note: why something has not."""

    files: int
    blobs: int
    waiting: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing: int = 0
    missing_files: list[Missing] = []
    counted: dict[str, int] = {}
    actual: dict[str, int] = {}
    mended: bool = False
    note: str = ""

    @property
    def clean(self) -> bool:
        return not self.orphans and not self.missing and self.counted == self.actual


async def reconcile(
    connection: AsyncConnection[Any], store: Store, project: str, *, mend: bool, force: bool = False
) -> Report:
    """connection: of the system login, in autocommit mode, with $1 placeholders. May run while the
    project is in use. force: removes files without content however many they are."""
    await connection.execute("select storage.sweep_uploads()")
    await connection.execute(SEEN)
    try:
        blobs = await _list(connection, store, project)
        rows = await _fetch(connection, SIDES)
        report = Report(files=rows[0][0], blobs=blobs, waiting=rows[0][1])
        orphans = await _fetch(connection, ORPHANS)
        report.orphans = len(orphans)
        report.orphan_bytes = sum(size for _, size in orphans)
        missing = [
            row for row in await _fetch(connection, MISSING)
            if await store.size(project, row[3]) != row[4]  # it may have come after the listing
        ]  # fmt: skip
        report.missing = len(missing)
        report.missing_files = [Missing(*row[1:]) for row in missing[:SHOWN]]
        await _count(connection, report)
        if mend:
            await _mend(connection, store, project, report, orphans, missing, force)
        return report
    finally:
        await connection.execute("drop table if exists pg_temp.seen")


async def _list(connection: AsyncConnection[Any], store: Store, project: str) -> int:
    count = 0
    copying = "copy pg_temp.seen (version, size) from stdin"
    async with connection.cursor() as cursor, cursor.copy(copying) as copy:
        async for entry in store.entries(project):
            await copy.write_row((entry.version, entry.size))
            count += 1
    await connection.execute(INDEX)
    return count


async def _mend(
    connection: AsyncConnection[Any], store: Store, project: str, report: Report,
    orphans: list[Any], missing: list[Any], force: bool,
) -> None:  # fmt: skip
    kept = 0
    if missing and not force and len(missing) > max(FEW, MOST_MISSING * report.files):
        report.note = (
            f"{len(missing)} of {report.files} files have no content: is this the right store? "
            "They are removed only when that is forced."
        )
        missing = []
    for row in missing:
        async with connection.transaction():
            await connection.execute("select 1 from storage.usage for update")
            try:
                async with connection.transaction():
                    await connection.execute(REMOVE, (row[0], row[3]))
                    await connection.execute(TOSS, ([row[3]],))  # half of it may be there
            except psycopg.errors.ForeignKeyViolation:
                kept += 1
    if kept:
        report.note = f"{kept} files without content are referred to by rows of the app."
    for start in range(0, len(orphans), BATCH):
        versions = [row[0] for row in orphans[start : start + BATCH]]
        await connection.execute(TOSS, (versions,))
    while due := [row[0] for row in await _fetch(connection, DUE)]:
        await store.delete(project, due)
        await connection.execute(GONE, (due,))
    await _count_anew(connection)
    await _count(connection, report)
    report.mended = not report.note


async def _count_anew(connection: AsyncConnection[Any]) -> None:
    async with connection.transaction():
        await connection.execute("select 1 from storage.usage for update")
        await connection.execute(COUNT_ANEW)


async def _count(connection: AsyncConnection[Any], report: Report) -> None:
    row = (await _fetch(connection, COUNTS))[0]
    names = ("bytes", "reserved", "objects")
    report.counted = dict(zip(names, row[:3], strict=True))
    report.actual = dict(zip(names, row[3:], strict=True))


async def _fetch(connection: AsyncConnection[Any], statement: str) -> list[Any]:
    return await (await connection.execute(statement)).fetchall()
