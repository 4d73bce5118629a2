"""Statements of the auth service against one project's database.

Every function of this package that needs the database states its SQL beside its code as a
`statement`.
"""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.pg.executor import Statement
from server.base import database
from server.base.database import ISO, Rows, ServiceDatabase, Value, statement, sure

__all__ = (
    "ISO", "Database", "Rows", "Value", "octets", "refusal", "statement", "sure", "text",
)  # fmt: skip


class Database(ServiceDatabase):
    __slots__ = ()

    async def rows(self, what: Statement, *params: Value, durable: bool = False) -> Rows:
        """Runs one statement in a transaction of its own. durable: its commit waits for the disk,
        so nothing quick is sent behind it on the same connection."""
        return (await self.together((what, params), slow=durable))[0]


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def octets(value: bytes | None) -> bytes:
    """A bytea column that is not null."""
    assert value is not None
    return bytes.fromhex(value[2:].decode())


def refusal(error: Exception) -> ApiError | None:
    """What a failure of the database means to the client; None when it is a fault of ours."""
    return database.refusal(error, "this user")
