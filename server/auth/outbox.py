"""Messages that were not sent because the node runs in development without a mail server.

They are kept in the project's database, the newest `KEPT`, and shown by `ichibase outbox` and on
the admin port.
"""

from __future__ import annotations

from server.auth.database import ISO, Database, statement

KEPT = 500

PUT = statement(
    f"""
    with put as (
      insert into auth.outbox (channel, kind, recipient, subject, body_text, body_html)
      values ($1, $2, $3, $4, $5, $6) returning id
    )
    delete from auth.outbox where id <= (select id from put) - {KEPT}
    """
)

# Plain SQL for the admin server, which has no pool: newest first, one JSON object a row.
LIST = f"""
select json_build_object('id', id, 'at', {ISO.format("at")}, 'channel', channel, 'kind', kind,
  'to', recipient, 'subject', subject, 'text', body_text, 'html', body_html)::text
from auth.outbox where $1::text is null or recipient = $1 order by id desc limit $2
"""
CLEAR = "delete from auth.outbox"


async def put(
    database: Database,
    channel: str,
    kind: str,
    recipient: str,
    subject: str | None,
    text: str,
    html: str | None = None,
) -> None:
    """channel: "email" or "sms"."""
    await database.rows(PUT, channel, kind, recipient, subject, text, html)
