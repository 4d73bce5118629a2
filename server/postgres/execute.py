"""Runs a plan: one pipelined group where Postgres alone decides, a transaction of two round trips
where the number of rows decides whether to commit."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import orjson

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError
from ichicore.pg.executor import NONE, VALUES, Group, Result, Statement
from ichicore.rest.ident import qualify, quote
from ichicore.rest.sql import bind
from server.postgres.plan import (
    AFFECTED,
    BODY,
    BYTEA,
    COUNT,
    EXPLAIN,
    FIRST,
    KEYS,
    OBJECT,
    ROWS,
    Plan,
)
from server.postgres.pool import Pool
from server.postgres.settings import RestSettings
from server.postgres.spool import Spool

Setting = tuple[str, str]
Opening = tuple[Statement, tuple[bytes, ...], tuple[bytes, ...]]

READ_BACK = Statement(
    "SELECT nullif(current_setting('response.headers', true), ''), "
    "nullif(current_setting('response.status', true), ''), "
    "nullif(current_setting('ichibase.inserted', true), '')",
    result=VALUES,
    per_role=False,
)
BEGIN = Statement("BEGIN", result=NONE, per_role=False)
CHECK_DEFERRED = Statement("SET CONSTRAINTS ALL IMMEDIATE", result=NONE, per_role=False)
# What SQL of the project's own has set for the session is not to meet the next request.
RESET = Statement("RESET ALL", result=NONE, per_role=False)
COMMIT = Statement("COMMIT", result=NONE, per_role=False)
ROLLBACK = Statement("ROLLBACK", result=NONE, per_role=False)
ISOLATION_LEVELS = frozenset(("read committed", "repeatable read", "serializable"))
ISOLATION = "default_transaction_isolation"

ROLE_SETTINGS = """
select r.rolname, lower(split_part(s.setting, '=', 1)),
       substr(s.setting, strpos(s.setting, '=') + 1)
from pg_catalog.pg_roles r
cross join lateral unnest(r.rolconfig) as s(setting)
where pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')
  and r.rolname <> current_user
  and (lower(split_part(s.setting, '=', 1)) = 'default_transaction_isolation'
       or exists (select from pg_catalog.pg_settings p
                  where lower(p.name) = lower(split_part(s.setting, '=', 1))
                    and p.context = 'user'))
"""


class Caller(Protocol):
    """What the settings of a transaction tell of a request."""

    method: str
    path: str
    headers: dict[str, str]
    role: str
    claims_json: bytes


@dataclass(slots=True)
class Outcome:
    """What came of a plan. rows: of the page, or changed ones. total: without limit, or None.
    body: JSON or what a media handler made. keys: of the one inserted row. headers, status: as
    SQL set them. inserted: by an upsert."""

    rows: int
    total: int | None = None
    body: bytes | Spool = b""
    keys: tuple[str | None, ...] | None = None
    headers: bytes | None = None
    status: bytes | None = None
    inserted: int = 0


def request_headers(headers: dict[str, str]) -> tuple[bytes, bytes]:
    """The settings request.headers and request.cookies."""
    if "cookie" not in headers:
        return orjson.dumps(headers), b"{}"
    rest = {name: value for name, value in headers.items() if name != "cookie"}
    cookies = {}
    for piece in headers["cookie"].split(";"):  # whatever names and values others have set
        name, _, value = piece.partition("=")
        cookies[name.lstrip(" ")] = value
    return orjson.dumps(rest), orjson.dumps(cookies)


def search_path(schema: str, extra: tuple[str, ...]) -> str:
    """The search path of a request to a schema."""
    return ", ".join(quote(name) for name in (schema, *extra))


class Preface:
    """The statement that opens every transaction: role, claims and the other settings.

    Kept per role, function settings and kind of transaction, since its text depends on them.
    """

    def __init__(self, settings: RestSettings, roles: dict[str, tuple[Setting, ...]]) -> None:
        self.settings = settings
        self.roles = roles
        self._made: dict[object, tuple[Statement, tuple[bytes, ...], tuple[bytes, ...]]] = {}
        self.pre_request: Statement | None = None
        if settings.pre_request:
            schema, dot, name = settings.pre_request.partition(".")
            function = qualify(schema, name) if dot else quote(schema)
            self.pre_request = Statement(f"SELECT {function}()", result=VALUES)

    def _make(
        self, role: str, plan: Plan
    ) -> tuple[Statement, tuple[bytes, ...], tuple[bytes, ...]]:
        parts: list[str] = []
        before: list[bytes] = []
        after: list[bytes] = []
        count = 0

        def setting(name: str, values: list[bytes] | None, *texts: str) -> None:
            nonlocal count
            count += 1
            parts.append(f"set_config('{name}', ${count}, true)")
            if values is not None:
                values.extend(text.encode() for text in texts)

        def named(values: list[bytes], name: str, text: str) -> None:
            nonlocal count
            parts.append(f"set_config(${count + 1}, ${count + 2}, true)")
            count += 2
            values.extend((name.encode(), text.encode()))

        path = search_path(plan.schema, self.settings.extra_search_path)
        preset = self.settings.preset
        if ("search_path", path) not in preset:
            setting("search_path", before, path)
        # Before the role, so that settings granted to the login alone can be set too.
        for name, text in self.roles.get(role, ()):
            if name != ISOLATION:
                named(before, name, text)
        for name in ("role", "request.jwt.claims", "request.method", "request.path"):
            setting(name, None)
        setting("request.headers", None)
        setting("request.cookies", None)
        if plan.preferences.timezone is not None:
            setting("timezone", after, plan.preferences.timezone)
        timeout = self.settings.statement_timeout_ms
        if timeout is not None and ("statement_timeout", str(timeout)) not in preset:
            setting("statement_timeout", after, str(timeout))
        for name, text in plan.settings:
            named(after, name, text)
        for name, text in self.settings.app_settings:
            named(after, name, text)
        if plan.needs_gucs:
            parts.append("set_config('response.headers', '', true)")
            parts.append("set_config('response.status', '', true)")
        if plan.inserted:
            parts.append("set_config('ichibase.inserted', '', true)")
        if plan.read_only:
            parts.append("set_config('transaction_read_only', 'on', true)")
        # One number instead of all the values, which nobody reads.
        text = f"SELECT num_nulls({', '.join(parts)})"
        return Statement(text, result=NONE, per_role=False), tuple(before), tuple(after)

    def opening(self, role: str, plan: Plan) -> Opening:
        """The statement with the settings, and its parameters before and after the request's own:
        role, claims, method, path, headers and cookies."""
        key = (
            role if role in self.roles else None,
            plan.schema,
            plan.preferences.timezone,
            plan.settings,
            plan.needs_gucs,
            plan.inserted,
            plan.read_only,
        )
        made = self._made.get(key)
        if made is None:
            if len(self._made) > 1000:
                self._made.clear()
            made = self._made[key] = self._make(role, plan)
        return made

    def add(self, group: Group, plan: Plan, caller: Caller) -> None:
        """Append the settings, and the pre-request call when there is one."""
        role = caller.role
        statement, before, after = self.opening(role, plan)
        headers, cookies = request_headers(caller.headers)
        group.add(
            statement,
            (
                *before,
                role.encode(),
                caller.claims_json,
                caller.method.encode(),
                caller.path.encode(),
                headers,
                cookies,
                *after,
            ),
        )
        if self.pre_request is not None:
            group.add(self.pre_request, ())

    def isolation(self, role: str, plan: Plan) -> str | None:
        """The isolation level the transaction needs, None for the default."""
        level = plan.isolation
        if level is None:
            level = next(
                (text for name, text in self.roles.get(role, ()) if name == ISOLATION), None
            )
        if level is None or level.lower() not in ISOLATION_LEVELS:
            return None
        return level.upper()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _number(value: bytes | None) -> int:
    return int(value) if value else 0


def _whole(body: bytes | Spool) -> bytes:
    return body if isinstance(body, bytes) else body.read()


def _base_body(value: bytes | None, type_oid: bytes | None) -> bytes:
    if value is None:
        return b""
    if _text(type_oid) == BYTEA and value.startswith(b"\\x"):
        return bytes.fromhex(value[2:].decode())
    return value


def ending(plan: Plan) -> tuple[Statement, ...]:
    """What ends an implicit transaction, after the statements that read and write."""
    if not plan.needs_gucs:
        return (READ_BACK,) if plan.inserted else ()
    if plan.read_only:
        return (READ_BACK, RESET)
    return (READ_BACK, CHECK_DEFERRED, RESET)  # checked while the request's settings hold


def main_outcome(plan: Plan, result: Result) -> Outcome:
    """What the main statement of a plan gave."""
    kind = plan.result
    if kind == ROWS:
        return Outcome(result.rows, body=result.body)
    if kind == AFFECTED:
        return Outcome(1 if plan.action == "call" else max(result.affected, 0))
    if kind in (OBJECT, FIRST):
        if result.rows == 0:
            return Outcome(1 if plan.one_row else 0, body=b"null")
        body = result.body
        if result.rows == 1:
            body = _whole(body)[1:-1]
        return Outcome(1 if plan.one_row else result.rows, body=body)
    if kind == EXPLAIN:
        return Outcome(0, body=b"".join((row[0] or b"") + b"\n" for row in result.values))
    if kind == KEYS:
        keys = None
        if len(result.values) == 1:
            keys = tuple(_text(value) for value in result.values[0])
        return Outcome(len(result.values), keys=keys)
    first = result.values[0] if result.values else (None, None, None, None)
    if kind == COUNT:
        return Outcome(1 if plan.one_row else _number(first[0]))
    if kind == BODY:
        outcome = Outcome(1 if plan.one_row else _number(first[1]))
        outcome.body = _base_body(first[0], first[2])
        outcome.total = None if first[3] is None else _number(first[3])
        return outcome
    return Outcome(1, body=first[0] if first[0] is not None else b"null")


def outcome_of(plan: Plan, results: list[Result], first: int, cap: int | None) -> Outcome:
    """What the statements of a plan gave, of which the main one is the result `first`. cap: most
    rows of any answer."""
    outcome = main_outcome(plan, results[first])
    at = first + 1
    if plan.count is not None:
        outcome.total = _number(results[at].values[0][0])
        at += 1
    elif plan.counted and outcome.total is None:
        outcome.total = outcome.rows
    if plan.estimate is not None:
        planned = _planned_rows(results[at])
        at += 1
        if outcome.total is None:
            outcome.total = planned
        elif cap is None or outcome.total > cap:
            outcome.total = max(outcome.total, planned)
    if plan.needs_gucs or plan.inserted:
        headers, status, inserted = results[at].values[0]
        outcome.headers, outcome.status = headers, status
        outcome.inserted = _number(inserted)
    return outcome


def _planned_rows(result: Result) -> int:
    document = orjson.loads(b"\n".join(row[0] or b"" for row in result.values))
    return int(document[0]["Plan"]["Plan Rows"])


def check(plan: Plan, outcome: Outcome) -> None:
    """Conditions that a client puts on the number of rows. Raises ApiError PGRST115, 116, 124."""
    for name in plan.checks:
        if name == "singular" and outcome.rows != 1:
            raise ApiError(
                406,
                "PGRST116",
                "Cannot coerce the result to a single JSON object",
                details=f"The result contains {outcome.rows} rows",
            )
        if name == "put" and outcome.rows != 1:
            raise ApiError(
                400, "PGRST115", "Payload values do not match URL in primary key column(s)"
            )
        limit = plan.preferences.max_affected
        if name == "max-affected" and limit is not None and outcome.rows > limit:
            raise ApiError(
                400,
                "PGRST124",
                "Query result exceeds max-affected preference constraint",
                details=f"The query affects {outcome.rows} rows",
            )


class Runner:
    """Runs plans on a pool."""

    def __init__(self, pool: Pool, settings: RestSettings, preface: Preface) -> None:
        self.pool = pool
        self.settings = settings
        self.preface = preface

    async def run(
        self,
        plan: Plan,
        caller: Caller,
        values: list[bytes],
        body: bytes | None,
        limit: int | None,
        offset: int,
    ) -> Outcome:
        """One request. Raises PgError, the pool's errors, and ApiError for failed conditions."""
        isolation = self.preface.isolation(caller.role, plan)
        undone = bool(plan.checks) and not (plan.read_only or plan.settled)
        explicit = plan.rollback or isolation is not None or undone
        group = Group(caller.role)
        if explicit:
            group.add(BEGIN if isolation is None else _begin(isolation), ())
        self.preface.add(group, plan, caller)
        first = len(group)
        group.add(plan.main, bind(plan.layout, values, body, limit, offset))
        if plan.count is not None:
            group.add(plan.count[0], bind(plan.count[1], values, body, limit, offset))
        if plan.estimate is not None:
            group.add(plan.estimate[0], bind(plan.estimate[1], values, body, limit, offset))
        group.main = first
        if explicit:
            if plan.needs_gucs or plan.inserted:
                group.add(READ_BACK, ())
            return await self._transaction(plan, group, first)
        for statement in ending(plan):
            group.add(statement, ())
        if plan.quick:
            results = await self.pool.run(group)
        else:
            began = perf_counter()
            results = await self.pool.run(group, slow=not plan.proven_quick)
            plan.took(perf_counter() - began)
        outcome = outcome_of(plan, results, first, self.settings.max_rows)
        if plan.checks:
            check(plan, outcome)
        return outcome

    async def _transaction(self, plan: Plan, group: Group, first: int) -> Outcome:
        async with self.pool.session() as session:
            if plan.rollback:
                group.add(CHECK_DEFERRED, ())
                if not plan.checks:
                    group.add(ROLLBACK, ())
            try:
                results = await session.run(group)
                outcome = outcome_of(plan, results, first, self.settings.max_rows)
                check(plan, outcome)
            except (PgError, ApiError):
                await session.run(_alone(ROLLBACK))
                raise
            if plan.checks or not plan.rollback:
                ending = _alone(ROLLBACK if plan.rollback else COMMIT)
                if plan.needs_gucs and not plan.rollback:
                    ending.add(RESET, ())
                await session.run(ending)
            return outcome


_begins: dict[str, Statement] = {}


def _begin(isolation: str) -> Statement:
    made = _begins.get(isolation)
    if made is None:
        made = _begins[isolation] = Statement(
            f"BEGIN ISOLATION LEVEL {isolation}", result=NONE, per_role=False
        )
    return made


def _alone(statement: Statement) -> Group:
    group = Group("")
    group.add(statement, ())
    return group
