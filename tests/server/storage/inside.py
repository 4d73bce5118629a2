"""A worker's storage service in this process, over the database and the store of a running node."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from server.base.context import NodeConfig, WorkerContext
from server.base.http import Request
from server.base.project import NOBODY, Project
from server.control import records
from server.gateway import limits
from server.storage.room import Room, Tenant, room_of
from tests.server.auth.harness import LocalBus, LocalDirectory, LocalPools
from tests.server.storage.node import Files


@contextmanager
def environment(files: Files) -> Iterator[None]:
    """The variables by which the node reaches its store."""
    before = dict(os.environ)
    names = ("AWS_", "AZURE_", "GOOGLE_")
    os.environ.update({k: v for k, v in files.environment.items() if k.startswith(names)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def project_of(data_dir: Any) -> tuple[NodeConfig, Project]:
    import psycopg

    text = (data_dir / "run" / "node.json").read_bytes()
    raw = msgspec.json.decode(text)["config"]
    config = msgspec.convert(raw, NodeConfig, dec_hook=lambda kind, value: kind(value))
    with psycopg.connect(config.control_dsn, cursor_factory=psycopg.RawCursor) as control:
        row = control.execute(records.SELECT_ONE, ("default",)).fetchone()
    assert row is not None
    return config, records.decode(row[0], config)


@asynccontextmanager
async def worker(data_dir: Any) -> AsyncIterator[tuple[Room, Tenant]]:
    """The room of a worker that is no part of the node, and the default project."""
    config, project = project_of(data_dir)
    pools = LocalPools()
    context = WorkerContext(config, LocalDirectory(), pools, LocalBus())
    room = room_of(context)
    try:
        yield room, await room.tenant(project)
    finally:
        for stop in context.on_stop:
            await stop()
        await pools.close()


class Body:
    """A request's body as the HTTP server gives it: chunks, and perhaps a client that stalls."""

    def __init__(self, chunks: list[bytes], after: Any = None) -> None:
        self.chunks = chunks
        self.after = after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.after is not None:
            await self.after()


class Put(Request):
    """Whose way of reading its body a test may replace."""


def put(project: Project, length: int, body: Body, **headers: str) -> Put:
    given = {"content-length": str(length), **headers}
    return Put(
        "PUT", "/object", "", given, project=project, identity=NOBODY, base_url=project.url,
        peer="127.0.0.1", id="1", read_body=None,  # type: ignore[arg-type]
        read_stream=lambda limit: limits.read_stream(body, given, limit),
    )  # fmt: skip
