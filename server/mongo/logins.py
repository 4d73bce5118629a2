"""What the administrator of the document server does to databases and logins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pymongo import AsyncMongoClient, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError

from ichicore.errors import ApiError
from server.mongo.address import DocumentServer
from server.mongo.provision import away, parts_of

USER_EXISTS = 51003
USER_UNKNOWN = 11
REFUSED = (13, 18)  # not authorized, authentication failed


@asynccontextmanager
async def admin(
    server: DocumentServer, seconds: float, *, long: bool = False
) -> AsyncIterator[AsyncMongoClient[Any]]:
    """A client of the administrator's login; ApiError 503 when the server is away, or (unless what
    is asked may take long) silent for twice as long as may be waited for it."""
    client: AsyncMongoClient[Any] = AsyncMongoClient(
        server.admin_url,
        appname="ichibase admin",
        serverSelectionTimeoutMS=round(seconds * 1000),
        connectTimeoutMS=5_000,
        socketTimeoutMS=0 if long else round(2 * seconds * 1000),
    )
    try:
        async with client:
            yield client
    except OperationFailure as error:
        if error.code in REFUSED:
            raise ApiError(
                503, "unavailable",
                "The document server does not accept the node's login, or the login may not "
                "make users and databases.",
            ) from None  # fmt: skip
        raise
    except PyMongoError:
        raise away() from None


async def make(client: AsyncMongoClient[Any], kept: str) -> None:
    """Makes the login that an address names, or gives it that password."""
    login, password, database = parts_of(kept)
    given: dict[str, Any] = {"pwd": password, "roles": [{"role": "readWrite", "db": database}]}
    try:
        await client[database].command("createUser", login, **given)
    except OperationFailure as error:
        if error.code != USER_EXISTS:
            raise
        await client[database].command("updateUser", login, **given)


async def drop(client: AsyncMongoClient[Any], kept: str) -> None:
    """Drops the database and the login that an address names."""
    login, _, database = parts_of(kept)
    await client.drop_database(database)
    try:
        await client[database].command("dropUser", login)
    except OperationFailure as error:
        if error.code != USER_UNKNOWN:
            raise


async def journal(client: AsyncMongoClient[Any], server: DocumentServer) -> None:
    """The embedded server answers for a login before that is in its journal; a write that waits
    for the journal takes it along."""
    if server.kind == "embedded":
        collection = client.admin.get_collection(
            "ichibase", write_concern=WriteConcern(w=1, j=True)
        )
        await collection.update_one({"_id": "login"}, {"$inc": {"n": 1}}, upsert=True)
