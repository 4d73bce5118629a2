"""Does one thing to a project's storage and dies by SIGKILL at the step it was told.

Run as `python -m tests.server.storage.crash DATA_DIR ACTION STEP`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from server.storage import control, disk, remote, sweep, uploads
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
    "move": {"moved": lambda: around(control.MOVE, "after")},
    "sweep": {
        "before the blobs": lambda: around(sweep.GONE, "before"),
        "after the blobs": lambda: around(sweep.GONE, "after"),
    },
}


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
