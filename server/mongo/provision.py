"""Makes and removes a project's part of the document server: one database, one login.

Every step may be repeated, so that what was interrupted is finished by running it again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ichicore.errors import ApiError
from server.mongo import address
from server.mongo.address import DocumentServer

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient

WAIT_SECONDS = 30.0  # for a server that is starting


def name_of(project_id: str) -> str:
    """Of the project's database and of its login."""
    return f"ichi_{project_id}"


def new_address(project_id: str, password: str) -> str:
    """What a new project's row keeps."""
    name = name_of(project_id)
    return address.stored(name, password, name)


def away() -> ApiError:
    return ApiError(
        503, "unavailable", "The document server does not answer.",
        headers=(("retry-after", "2"),),
    )  # fmt: skip


class Documents:
    """The document server as its administrator sees it. wait: False for the node's own process,
    in which the server is not up yet: making a project then leaves its login to `ensure`."""

    def __init__(self, server: DocumentServer, *, wait: bool = True) -> None:
        self.server = server
        self.wait = wait

    def wake(self) -> None:
        """Has the node start the embedded server, unless it runs."""
        server = self.server
        if server.folder is None or server.node_pid is None:
            return
        folder = Path(server.folder)
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            os.kill(server.node_pid, signal.SIGUSR1)

    @asynccontextmanager
    async def admin(self, seconds: float = WAIT_SECONDS) -> AsyncIterator[AsyncMongoClient[Any]]:
        """A client of the administrator's login; ApiError 503 when the server is away."""
        from server.mongo import logins  # the driver costs a third of a second of a start

        async with logins.admin(self.server, seconds) as client:
            yield client

    async def provision(self, kept: str | None) -> None:
        """Makes the login that a project's row names, or gives it that password."""
        if kept is None:
            return
        self.wake()
        if self.wait:
            async with self.admin() as client:
                await self._make(client, [kept])

    async def ensure(self, kept: list[str]) -> None:
        """Makes the logins that are missing."""
        if not kept:
            return
        self.wake()
        async with self.admin(120.0) as client:
            await self._make(client, kept)

    async def remove(self, kept: str | None) -> None:
        """Drops the project's database and login."""
        if kept is None:
            return
        if not self.wait:
            raise away()
        self.wake()
        from server.mongo import logins

        async with self.admin() as client:
            await logins.drop(client, kept)
            await logins.journal(client, self.server)

    async def _make(self, client: AsyncMongoClient[Any], kept: list[str]) -> None:
        from server.mongo import logins

        for one in kept:
            await logins.make(client, one)
        await logins.journal(client, self.server)

    @staticmethod
    def database(url: str) -> str:
        """The database that a project's address names."""
        return parts_of(url)[2]


def parts_of(kept: str) -> tuple[str, str, str]:
    """Login, password and database of an address."""
    parts = urlsplit(kept)
    return unquote(parts.username or ""), unquote(parts.password or ""), parts.path.lstrip("/")
