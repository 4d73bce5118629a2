"""Sizes of the projects' documents, as the maintenance asks for them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ichicore.errors import ApiError
from server.mongo import embedded, provision
from server.mongo.address import DocumentServer, stored
from server.mongo.provision import Documents
from tests.server.mongo.conftest import PASSWORD


@contextlib.asynccontextmanager
async def losing(port, *words):
    """A way to a server on which messages with all of these words are lost."""

    async def copy(source, target):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if not all(word in data for word in words):
                    target.write(data)
            target.close()

    async def serve(reader, writer):
        there, sink = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, sink), copy(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def test_a_database_that_says_nothing_keeps_no_other_from_being_measured(
    loop, servers, monkeypatch
):
    monkeypatch.setattr(provision, "LOOK_SECONDS", 1.0)
    kept = [stored("nobody", "", name) for name in ("ichi_silent", "ichi_other")]
    found = []

    async def measure(documents):
        async for one, _ in documents.measure(kept):
            found.append(one)

    async def run():
        held = await servers.all.hold("ichi_measured", make=True)
        async with losing(held.port, b"dbStats", b"ichi_silent") as port:
            url = embedded.admin_url(port, PASSWORD)
            documents = Documents(DocumentServer(kind="external", admin_url=url, address=""))
            with pytest.raises(ApiError, match="does not answer"):
                await asyncio.wait_for(measure(documents), 60)
        servers.all.release(held)

    loop(run())
    assert found == [kept[1]]
