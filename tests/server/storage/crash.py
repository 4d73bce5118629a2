"""Does one thing to a project's storage and dies by SIGKILL at the step it was told.

Run as `python -m tests.server.storage.crash DATA_DIR ACTION STEP`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg

from ichicore.errors import ApiError
from server.storage import control, disk, reconcile, remote, sweep, uploads
from server.storage.database import Database, Statement
from server.storage.inputs import Body as Members
from tests.server.storage import inside


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    setattr(owner, name, die)


def after(owner: Any, name: str) -> None:
    work = getattr(owner, name)
    if asyncio.iscoroutinefunction(work):

        async def one(*given: Any, **named: Any) -> None:
            await work(*given, **named)
            die()

        setattr(owner, name, one)
    else:

        def two(*given: Any, **named: Any) -> None:
            work(*given, **named)
            die()

        setattr(owner, name, two)


def around(statement: Statement, when: str) -> None:
    """Dies before or after one statement of the service."""
    run = Database.rows

    async def rows(self: Database, what: Statement, *params: Any, **named: Any) -> Any:
        if what is statement and when == "before":
            die()
        found = await run(self, what, *params, **named)
        if what is statement:
            die()
        return found

    Database.rows = rows  # type: ignore[method-assign]


STEPS: dict[str, Any] = {
    "upload": {
        "reserved": lambda: around(uploads.RESERVE, "after"),
        "begun": lambda: around(uploads.BEGIN, "after"),
        "first bytes": lambda: after(disk.FileSink, "write"),
        "all bytes": lambda: before(disk.FileSink, "finish"),
        "on the disk": lambda: after(disk.FileSink, "finish"),
        "sent": lambda: after(remote.RemoteStore, "send"),
        "before the record": lambda: around(uploads.FINISH, "before"),
        "recorded": lambda: around(uploads.FINISH, "after"),
    },
    "delete": {
        "before": lambda: around(control.REMOVE, "before"),
        "removed": lambda: around(control.REMOVE, "after"),
    },
    "refused": {
        "the bytes are gone": lambda: around(uploads.ABANDON, "before"),
        "given back": lambda: around(uploads.ABANDON, "after"),
    },
    "mend": {
        "noted": lambda: before(disk.DiskStore, "delete"),
        "before the counters": lambda: before(reconcile, "_count_anew"),
    },
    "move": {"moved": lambda: around(control.MOVE, "after")},
    "sweep": {
        "before the blobs": lambda: around(sweep.GONE, "before"),
        "after the blobs": lambda: around(sweep.GONE, "after"),
    },
}


async def mend(room: Any, tenant: Any) -> None:
    """Of a blob of no file, and of counters that are off."""
    sink = room.store.sink(tenant.project.id, "ab" * 16, 6)
    sink.write([b"orphan"])
    await sink.commit()
    connection = await psycopg.AsyncConnection.connect(
        tenant.project.system_dsn, autocommit=True, cursor_factory=psycopg.AsyncRawCursor
    )
    async with connection:
        await connection.execute("update storage.usage set bytes = bytes + 7")
        await reconcile.reconcile(connection, room.store, tenant.project.id, mend=True)


async def main(data_dir: str, action: str, step: str) -> None:
    async with inside.worker(Path(data_dir)) as (room, tenant):
        STEPS[action][step]()
        if action == "upload":
            minted = await control.get_put_url(room, tenant, Members({
                "bucket": "crash", "path": "new", "content_type": "a/b", "content_length": 200_000,
            }))  # fmt: skip
            token = minted.body.partition(b"/storage/put/")[2].partition(b'"')[0].decode()
            body = inside.Body([b"x" * 100_000, b"y" * 100_000])
            request = inside.put(tenant.project, 200_000, body, **{"content-type": "a/b"})
            await uploads.put_signed(room, tenant, request, token)
        elif action == "refused":
            request = inside.put(tenant.project, 5, inside.Body([b"hello"]), **{
                "content-digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
            })  # fmt: skip
            with contextlib.suppress(ApiError):
                await uploads.put_direct(room, tenant, request, "crash", "new")
        elif action == "mend":
            await mend(room, tenant)
        elif action == "delete":
            await control.delete(room, tenant, Members({"bucket": "crash", "path": "old"}))
        elif action == "move":
            await control.move(
                room, tenant, Members({"bucket": "crash", "from": "old", "to": "to"})
            )
        else:
            pool = tenant.database._pools.system(tenant.project)
            await pool.fetch("update storage.garbage set due_at = now() returning 1")
            await sweep.sweep(room, tenant)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
