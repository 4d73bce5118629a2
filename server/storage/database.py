"""Statements of the storage service against one project's database."""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.pg.executor import Statement
from server.base import database
from server.base.database import ISO, TIMEOUT, Row, Rows, ServiceDatabase, Value, statement, sure

__all__ = ("DIGEST", "ISO", "Database", "Row", "Rows", "Value", "refusal", "statement", "sure")

# Of a row of storage.objects: what the ETag is made of.
DIGEST = "coalesce(etag, left(encode(sha256, 'hex'), 32))"
LONG = 60.0  # seconds; of what may touch a whole folder


class Database(ServiceDatabase):
    __slots__ = ()

    async def rows(self, what: Statement, *params: Value, slow: bool = False) -> Rows:
        """Runs one statement in a transaction of its own. slow: it may touch many rows."""
        found = await self.together((what, params), slow=slow, timeout=LONG if slow else TIMEOUT)
        return found[0]

    async def row(self, what: Statement, *params: Value, slow: bool = False) -> Row:
        """The same for a statement that always answers one row."""
        return (await self.rows(what, *params, slow=slow))[0]


def refusal(error: Exception) -> ApiError | None:
    """What a failure of the database means to the client; None when it is a fault of ours."""
    return database.refusal(error, "this file")
