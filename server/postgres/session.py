"""A connection of one's own, for explicit transactions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ichicore.pg.executor import Group, Result

if TYPE_CHECKING:
    from server.postgres.connect import Link
    from server.postgres.pool import Pool

# Statements that leave nothing behind once their transaction has ended. Anything else (SET, LISTEN,
# PREPARE, temporary tables) makes the connection unfit for others.
_CLEAN = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|savepoint|release|select|with|insert|update"
    r"|delete|merge|values|explain|call|table|set\s+(local|transaction|constraints))\b",
    re.IGNORECASE,
)


class Session:
    """Groups run one after the other on one connection; each still ends with a sync, which
    commits it unless a transaction block is open."""

    def __init__(self, pool: Pool, link: Link) -> None:
        self._pool = pool
        self._link = link
        self.doubt = False

    async def run(self, group: Group, *, timeout: float | None = None) -> list[Result]:
        """As Pool.run. Nothing is run again on this connection: an error is the caller's."""
        for statement in group.statements:
            if not _CLEAN.match(statement.sql):
                self.doubt = True
        group.in_session = True
        return await self._pool.run_on(self._link, group, timeout)
