"""How often something may be tried, counted in the project's database.

Every counted endpoint is about to ask that database something anyway, so the counters share the
round trip, hold for all workers of all nodes, and need no memory of ours. They live in unlogged
tables. Refreshes are counted in the session's own row (sessions.py), reading (GET /auth/me) is
left to the gateway's limits.
"""

from __future__ import annotations

import hashlib
import math

from ichicore.errors import ApiError
from server.auth.database import Database, Rows, Value, statement
from server.auth.settings import Limit, Lockout

# `due_at` moves ahead by one step per hit and may be at most one span ahead of the clock (the
# generic cell rate algorithm). A clock set back cannot lock a key for longer than its span.
TAKE = statement(
    """
    with ask as (
      select decode(k, 'hex') as key, make_interval(secs => step) as step,
        make_interval(secs => span) as span
      from unnest($1::text[], $2::float8[], $3::float8[]) as t (k, step, span)
    ), put as (
      insert into auth.rate_limits as l (key, due_at, step, span)
      select key, now() + step, step, span from ask order by key
      on conflict (key) do update
        set due_at = greatest(least(l.due_at, now() + excluded.span), now()) + excluded.step,
          step = excluded.step, span = excluded.span
        where greatest(least(l.due_at, now() + excluded.span), now()) + excluded.step
          <= now() + excluded.span + interval '1 millisecond'
      returning key
    )
    select max(extract(epoch from
      least(l.due_at, now() + a.span) + a.step - a.span - now()))::float8
    from ask a left join auth.rate_limits l on l.key = a.key
    where not exists (select from put where put.key = a.key)
    having count(*) > 0
    """
)

LOCKED = statement(
    """
    select extract(epoch from max(locked_until) filter (where last_at <= now()) - now())::float8
    from auth.guesses where key in ($1, $2) having count(*) > 0
    """
)

FAILED = statement(
    """
    insert into auth.guesses as g (key, failures, last_at, locked_until)
    values ($1, 1, now(), case when 1 >= $2::int then now() + interval '1 second' end)
    on conflict (key) do update set
      failures = case when g.last_at < now() - make_interval(secs => $4::float8) then 1
        else g.failures + 1 end,
      last_at = now(),
      locked_until = case
        when g.last_at < now() - make_interval(secs => $4::float8) then null
        when g.failures + 1 >= $2::int then now() + make_interval(
          secs => least($3::float8, power(2::float8, least(g.failures + 1 - $2::int, 30)::float8)))
      end
    """
)

FORGIVE = statement("delete from auth.guesses where key in ($1, $2)")

Hit = tuple[str, Limit]


def key(*parts: str) -> bytes:
    """What a counter is stored under: addresses are not kept in clear."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def taking(*hits: Hit) -> tuple[object, tuple[Value, ...]]:
    """The step for Database.together that counts; give its rows to `check`."""
    names = [key(name).hex() for name, _ in hits]
    steps = [limit.seconds / limit.count for _, limit in hits]
    spans = [float(limit.seconds) for _, limit in hits]
    return TAKE, (names, steps, spans)


def check(rows: Rows) -> None:
    """ApiError 429 rate_limited with Retry-After when a counter of `taking` was full."""
    if rows:
        raise too_often("rate_limited", "Too many requests; try again later.", rows)


def check_lock(rows: Rows) -> None:
    """ApiError 429 too_many_attempts while wrong passwords have locked the account. rows: of
    LOCKED; empty when no wrong password is remembered."""
    if rows and float(rows[0][0] or b"0") > 0:
        raise too_often("too_many_attempts", "Too many wrong passwords; try again later.", rows)


def too_often(code: str, message: str, rows: Rows) -> ApiError:
    wait = float(rows[0][0] or b"1")
    return ApiError(429, code, message, headers=(("retry-after", str(max(1, math.ceil(wait)))),))


async def take(database: Database, *hits: Hit) -> None:
    """Counts one hit on each key; ApiError 429 when one is full. Keys name limit and subject."""
    names, steps, spans = taking(*hits)[1]
    check(await database.rows(TAKE, names, steps, spans))


def guess_keys(ip: str, email: str) -> tuple[bytes, bytes]:
    """Counters of wrong passwords: from this client for this address, and for the address."""
    return key("guess", email, ip), key("guess", email)


async def failed(database: Database, keys: tuple[bytes, bytes], lockout: Lockout) -> None:
    """Notes one wrong password, whether the address is registered or not."""
    forget = float(lockout.forget_after)
    await database.together(
        (FAILED, (keys[0], lockout.free, float(lockout.longest), forget)),
        (FAILED, (keys[1], lockout.free_per_email, float(lockout.longest_per_email), forget)),
    )
