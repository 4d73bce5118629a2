"""Makes and removes a project's part of the document server: one database, one login.

Every step may be repeated, so that what was interrupted is finished by running it again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pymongo import AsyncMongoClient, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError

from ichicore.errors import ApiError
from server.mongo import address
from server.mongo.address import DocumentServer

WAIT_SECONDS = 30.0  # for a server that is starting
USER_EXISTS = 51003
USER_UNKNOWN = 11


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
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            self.server.admin_url,
            appname="ichibase admin",
            serverSelectionTimeoutMS=round(seconds * 1000),
            connectTimeoutMS=5_000,
        )
        try:
            async with client:
                yield client
        except OperationFailure as error:
            if error.code in (13, 18):  # not authorized, authentication failed
                raise ApiError(
                    503, "unavailable",
                    "The document server does not accept the node's login, or the login may not "
                    "make users and databases.",
                ) from None  # fmt: skip
            raise
        except PyMongoError:
            raise away() from None

    async def provision(self, kept: str | None) -> None:
        """Makes the login that a project's row names, or gives it that password."""
        if kept is None:
            return
        self.wake()
        if self.wait:
            async with self.admin() as client:
                await self._login(client, kept)
                await self._journal(client)

    async def ensure(self, kept: list[str]) -> None:
        """Makes the logins that are missing."""
        if not kept:
            return
        self.wake()
        async with self.admin(120.0) as client:
            for one in kept:
                await self._login(client, one)
            await self._journal(client)

    async def remove(self, kept: str | None) -> None:
        """Drops the project's database and login."""
        if kept is None:
            return
        if not self.wait:
            raise away()
        self.wake()
        login, _, database = _parts(kept)
        async with self.admin() as client:
            await client.drop_database(database)
            try:
                await client[database].command("dropUser", login)
            except OperationFailure as error:
                if error.code != USER_UNKNOWN:
                    raise
            await self._journal(client)

    @staticmethod
    def database(url: str) -> str:
        """The database that a project's address names."""
        return _parts(url)[2]

    async def _login(self, client: AsyncMongoClient[Any], kept: str) -> None:
        login, password, database = _parts(kept)
        given: dict[str, Any] = {"pwd": password, "roles": [{"role": "readWrite", "db": database}]}
        try:
            await client[database].command("createUser", login, **given)
        except OperationFailure as error:
            if error.code != USER_EXISTS:
                raise
            await client[database].command("updateUser", login, **given)

    async def _journal(self, client: AsyncMongoClient[Any]) -> None:
        """The embedded server answers for a login before that is in its journal; a write that
        waits for the journal takes it along."""
        if self.server.kind == "embedded":
            collection = client.admin.get_collection(
                "ichibase", write_concern=WriteConcern(w=1, j=True)
            )
            await collection.update_one({"_id": "login"}, {"$inc": {"n": 1}}, upsert=True)


def _parts(kept: str) -> tuple[str, str, str]:
    """Login, password and database of an address."""
    parts = urlsplit(kept)
    return unquote(parts.username or ""), unquote(parts.password or ""), parts.path.lstrip("/")
