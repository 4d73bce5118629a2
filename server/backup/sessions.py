"""What a restored database may still let in: sessions and one-time codes of the time of the backup.

A session that was ended since would live again, and a code could be used a second time. So all
sessions end and all codes go, or, where sessions are to be kept, those stay that the database in
use has as well and has not ended.
"""

from __future__ import annotations

from server.control.database import Connection, connect, fetch

REASON = "restored"
THERE = "select pg_catalog.to_regclass('auth.sessions'), pg_catalog.to_regclass('auth.codes')"
LIVE = "select id::text from auth.sessions where revoked_at is null and ends_at > now()"
END = """with ended as (
    update auth.sessions set revoked_at = now(), revoke_reason = $1
    where revoked_at is null and ends_at > now()
      and ($2::text[] is null or id <> all($2::uuid[])) returning 1)
  select count(*) from ended"""


async def live(connection: Connection) -> list[str] | None:
    """Ids of the sessions that are good; None for a database that keeps none."""
    if (await fetch(connection, THERE))[0][0] is None:
        return None
    return [row[0] for row in await fetch(connection, LIVE)]


async def settle(restored: str, kept: list[str] | None) -> int:
    """Ends the sessions but for those in `kept` and removes the codes. restored: dsn of the system
    login. How many sessions were ended."""
    async with await connect(restored) as connection, connection.transaction():
        sessions, codes = (await fetch(connection, THERE))[0]
        if codes is not None:
            await connection.execute("delete from auth.codes")
        if sessions is None:
            return 0
        return int((await fetch(connection, END, (REASON, kept)))[0][0])
