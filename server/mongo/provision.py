"""Makes and removes a project's part of the document server: one database, one login.

Every step may be repeated, so that what was interrupted is finished by running it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from ichicore.errors import ApiError
from server.base.apart import Apart
from server.mongo import address
from server.mongo.address import DocumentServer
from server.mongo.folders import NEXT, Folders
from server.mongo.lease import Lease, LeaseError, ask

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient

T = TypeVar("T")
WAIT_SECONDS = 30.0  # for a server that is starting
LOOK_SECONDS = 5.0  # the same where it is only to be measured
RETRY = 0.05


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
    async def admin(
        self,
        kept: str,
        seconds: float = WAIT_SECONDS,
        *,
        make: bool = False,
        look: bool = False,
        long: bool = False,
    ) -> AsyncIterator[AsyncMongoClient[Any]]:
        """A client of the administrator's login at the server of the project whose row keeps this.
        make: the server, where each project has its own. look: only to measure it. long: what is
        asked may take any time. ApiError 503 when it is away."""
        from server.mongo import logins  # the driver costs a third of a second of a start

        if self.server.desk is None:
            async with logins.admin(self.server, seconds, long=long) as client:
                yield client
            return
        database = self.database(kept)
        lease = Lease(Path(self.server.desk), database, make=make, look=look)
        try:
            server = self.server.at(await _port(lease, seconds))
            async with logins.admin(server, seconds, long=long) as client:
                yield client
        finally:
            lease.close()

    async def provision(self, kept: str | None) -> None:
        """Makes the login that a project's row names, or gives it that password."""
        if kept is None:
            return
        self.wake()
        if self.wait:
            await self._make(kept, WAIT_SECONDS)

    async def ensure(self, kept: list[str]) -> None:
        """Makes the logins that are missing."""
        if not kept:
            return
        self.wake()
        for one in kept:
            if not self._made(one):
                await self._make(one, 120.0)

    async def remove(self, kept: str | None) -> None:
        """Drops the project's database and login."""
        if kept is None:
            return
        if not self.wait:
            raise away()
        self.wake()
        if self.server.desk is not None:
            database = self.database(kept)
            for name in (NEXT + database, database):  # what was to take its place as well
                await _asked(Path(self.server.desk), do="remove", database=name)
            return
        from server.mongo import logins

        async with self.admin(kept) as client:
            await logins.drop(client, kept)

    @asynccontextmanager
    async def beside(self, kept: str) -> AsyncIterator[Any]:
        """An empty database that is to take the place of a project's, with its login, for a server
        that has one for each project. ApiError 503, PyMongoError."""
        from server.mongo import logins

        where = _next(kept)
        await self.remove(where)
        async with self.admin(where, make=True, long=True) as client:
            await logins.make(client, kept)
            yield client[self.database(kept)]
            await logins.journal(client, self.server)
        self._marked(kept, where)

    async def replace(self, kept: str) -> None:
        """Puts it there, with all that is in it at once; done again, it does nothing."""
        assert self.server.desk is not None
        await _asked(Path(self.server.desk), do="replace", database=self.database(kept))

    async def forget(self, kept: str) -> None:
        """Removes it, where it is not to replace anything."""
        await self.remove(_next(kept))

    async def measure(self, kept: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Of those that may have changed since the last call: what is kept, and the bytes of the
        documents and their indexes. ApiError 503, PyMongoError."""
        if self.server.desk is not None:
            used = set(await _asked(Path(self.server.desk), LOOK_SECONDS, do="used"))
            kept = [one for one in kept if self.database(one) in used]
        apart = Apart()
        for one in kept:
            found: dict[str, Any] | None = None
            with apart:
                async with self.admin(one, LOOK_SECONDS, look=True) as client:
                    found = await client[self.database(one)].command("dbStats")
            if found is not None:
                yield one, int(found.get("dataSize", 0)) + int(found.get("indexSize", 0))
        apart.end()

    async def _make(self, kept: str, seconds: float) -> None:
        from server.mongo import logins

        async with self.admin(kept, seconds, make=True) as client:
            await logins.make(client, kept)
            await logins.journal(client, self.server)
        if self.server.folder is not None:
            self._marked(kept, kept)

    def _marked(self, kept: str, where: str) -> None:
        mark = self._mark(where)
        partial = mark.with_name(f"{mark.name}.new")
        partial.write_text(_digest(kept))
        partial.replace(mark)

    def _made(self, kept: str) -> bool:
        """Whether the embedded server is known to have this very login."""
        if self.server.folder is None:
            return False
        try:
            return self._mark(kept).read_text() == _digest(kept)
        except FileNotFoundError:
            return False

    def _mark(self, kept: str) -> Path:
        assert self.server.folder is not None
        return Folders(Path(self.server.folder)).mark(self.database(kept))

    @staticmethod
    def database(url: str) -> str:
        """The database that a project's address names."""
        return parts_of(url)[2]


def parts_of(kept: str) -> tuple[str, str, str]:
    """Login, password and database of an address."""
    parts = urlsplit(kept)
    return unquote(parts.username or ""), unquote(parts.password or ""), parts.path.lstrip("/")


def _next(kept: str) -> str:
    login, password, database = parts_of(kept)
    return address.stored(login, password, NEXT + database)


def _digest(kept: str) -> str:
    return hashlib.sha256(kept.encode()).hexdigest()


async def _port(lease: Lease, seconds: float) -> int:
    """Of a server, once the manager gives it; ApiError 503 after so many seconds."""
    return await _patiently(lease.port, seconds)


async def _asked(desk: Path, seconds: float = WAIT_SECONDS, **wanted: Any) -> list[str]:
    return await _patiently(lambda: ask(desk, **wanted), seconds)


async def _patiently(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What the manager answers, who may just be starting."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await call()
                except LeaseError as error:
                    if error.code != "away":
                        raise away() from None
                await asyncio.sleep(RETRY)
    except (TimeoutError, OSError):
        raise away() from None
