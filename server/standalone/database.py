"""Settings that live in the database: of the login role, and from the pre-config function."""

# ruff: noqa: S608 - the only name put into a statement is quoted

from __future__ import annotations

from typing import Any

import psycopg

from ichicore.rest.ident import qualify, quote
from server.standalone.config import FROM_DATABASE

PREFIX = "pgrst."


async def read(uri: str, pre_config: str | None) -> dict[str, str]:
    """Settings by name with underscores. psycopg.Error when the database does not answer."""
    names = [PREFIX + name.replace("-", "_") for name in FROM_DATABASE]
    function = ""
    if pre_config:
        schema, dot, name = pre_config.partition(".")
        called = qualify(schema, name) if dot else quote(schema)
        function = (
            " union all select null::oid, n, current_setting(n, true)"
            f" from unnest(%(names)s::text[]) n join {called}() _ on true"
        )
    query = f"""
      with own as (
        select setdatabase, unnest(setconfig) as setting from pg_catalog.pg_db_role_setting
        where setrole = quote_ident(current_user)::regrole::oid and setdatabase in
          (0, (select oid from pg_catalog.pg_database where datname = current_catalog))),
      pairs (database, name, value) as (
        select setdatabase, substr(setting, 1, strpos(setting, '=') - 1),
          substr(setting, strpos(setting, '=') + 1) from own {function})
      select distinct on (name) name, value from pairs
      where name = any(%(names)s::text[]) and value is not null
      order by name, database desc nulls last"""
    connection: Any = await psycopg.AsyncConnection.connect(uri, connect_timeout=10)
    async with connection:
        cursor = await connection.execute(query, {"names": names})
        return {name[len(PREFIX) :]: value for name, value in await cursor.fetchall()}
