"""The very statements with which the server answers a request, as text for pgbench."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson

from ichicore.http import accept, prefer
from ichicore.pg.executor import Statement
from ichicore.rest import query as queries
from ichicore.rest.sql import bind
from server.postgres import introspect, payloads
from server.postgres.execute import Preface, search_path
from server.postgres.planning import Payload, Plan, Planner
from server.postgres.pool import Pool
from server.postgres.settings import RestSettings

PLACE = re.compile(r"\$(\d+)")
SETTINGS = RestSettings(
    concatenate_order=True,
    preset=(("search_path", search_path("public", ("public",))),),
)


async def _catalog(dsn: str) -> Any:
    pool = Pool(dsn)
    try:
        return await introspect.load(pool.fetch, SETTINGS, 1)
    finally:
        await pool.close()


def _filled(sql: str, values: tuple[bytes | None, ...], variables: dict[bytes, str]) -> str:
    """SQL with its parameters written out; a value that is a variable's becomes that variable."""

    def text(found: re.Match[str]) -> str:
        value = values[int(found[1]) - 1]
        if value is None:
            return "null"
        if value in variables:
            return variables[value]
        return "'" + value.decode().replace("'", "''") + "'"

    return PLACE.sub(text, sql) + ";"


def planned(
    dsn: str,
    method: str,
    name: str,
    query: str,
    headers: dict[str, str],
    claims: dict[str, Any],
    *,
    body: bytes = b"",
) -> list[tuple[Statement, tuple[bytes | None, ...]]]:
    """The statement with the settings and the main one, each with its values, of a GET or POST of a
    table by a signed-in user."""
    catalog = asyncio.run(_catalog(dsn))
    planner = Planner(catalog, SETTINGS)
    accepted = tuple(accept.parse(None))
    preferred = prefer.parse(headers.get("prefer"), catalog.timezones)
    parsed = queries.parse(query.encode(), rpc=False, mutation=method != "GET",
                           concatenate_order=True)  # fmt: skip
    plan: Plan
    if method == "GET":
        plan = planner.read("public", name, parsed, accepted, preferred, head=False, ranged=False)
    else:
        given = payloads.read(body, "application/json", None, rpc=False)
        payload = Payload(given.names, given.is_object)
        plan = planner.mutate("public", name, "insert", parsed, payload, accepted, preferred)
    opening, before, after = Preface(SETTINGS, {}).opening("authenticated", plan)
    own = (b"authenticated", orjson.dumps(claims), method.encode(), f"/{name}".encode(),
           orjson.dumps(headers), b"{}")  # fmt: skip
    values = [value.encode() for value in parsed.values]
    return [
        (opening, (*before, *own, *after)),
        (plan.main, tuple(bind(plan.layout, values, body or None, None, 0))),
    ]


def of_request(
    dsn: str,
    method: str,
    name: str,
    query: str,
    headers: dict[str, str],
    claims: dict[str, Any],
    *,
    body: bytes = b"",
    variables: dict[str, str] | None = None,
) -> tuple[str, str]:
    """(the statement with the settings, the main statement) of such a request, as text. variables:
    pgbench's, by the text of the value that stands for each."""
    places = {value.encode(): place for value, place in (variables or {}).items()}
    (opening, own), (main, values) = planned(dsn, method, name, query, headers, claims, body=body)
    return _filled(opening.sql, own, {}), _filled(main.sql, values, places)
