"""The root document over a real catalog: what a role sees, and how columns and functions show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from server.postgres import introspect
from server.postgres.pool import Pool
from server.postgres.service import RestEngine, RestRequest
from server.postgres.settings import RestSettings

SQL = """
create role {role} nologin;
create table authors (id int primary key, name varchar(40) not null default 'nobody');
create table books (id bigint primary key, author int references authors, tags text[], data jsonb);
comment on table books is E'All books\\n\\nwith their authors';
create table hidden (id int);
create function search(q text, most int default 5) returns setof books language sql stable
  as 'select * from books limit most';
create function secret() returns int language sql as 'select 1';
revoke execute on function secret() from public;
grant select on authors, books to {role};
"""


@pytest.fixture
def documents(pg_database: str) -> Any:
    role = "reader_" + pg_database.split("dbname=")[1].split()[0]
    with psycopg.connect(pg_database, autocommit=True) as connection:
        connection.execute(SQL.format(role=role).encode())

    async def ask(headers: dict[str, str], **settings: Any) -> Any:
        pool = Pool(pg_database)
        try:
            chosen = RestSettings(**settings)
            engine = RestEngine(chosen, pool)
            engine.use(await introspect.load(pool.fetch, chosen, 1))
            return await engine.handle(RestRequest("GET", "/", b"", headers, b"", role=role,
                                                   base_url="http://api.example:8080"))  # fmt: skip
        finally:
            await pool.close()

    yield lambda headers=None, **settings: asyncio.run(ask(headers or {}, **settings))
    with psycopg.connect(pg_database, autocommit=True) as connection:
        connection.execute(f"drop owned by {role}".encode())
        connection.execute(f"drop role {role}".encode())


def test_a_role_sees_what_it_may_use(documents: Any) -> None:
    answer = documents()
    assert dict(answer.headers)["content-type"] == "application/openapi+json; charset=utf-8"
    spec = json.loads(answer.body)
    assert set(spec["paths"]) == {"/", "/authors", "/books", "/rpc/search"}
    assert (spec["host"], spec["schemes"]) == ("api.example:8080", ["http"])
    everything = json.loads(documents(openapi_mode="ignore-privileges").body)
    assert {"/hidden", "/rpc/secret"} <= set(everything["paths"])


def test_columns_and_arguments_are_described(documents: Any) -> None:
    spec = json.loads(documents().body)
    author = spec["definitions"]["books"]["properties"]["author"]
    assert author["format"] == "int32"
    assert "<fk table='authors' column='id'/>" in author["description"]
    name = spec["definitions"]["authors"]["properties"]["name"]
    assert (name["maxLength"], name["default"]) == (40, "nobody")
    assert spec["definitions"]["authors"]["required"] == ["id", "name"]
    assert spec["definitions"]["books"]["properties"]["tags"]["items"] == {"type": "string"}
    assert "type" not in spec["definitions"]["books"]["properties"]["data"]
    get = spec["paths"]["/rpc/search"]["get"]["parameters"]
    assert [(p["name"], p["required"], p["type"]) for p in get] == [
        ("q", True, "string"), ("most", False, "integer"),
    ]  # fmt: skip
    assert spec["paths"]["/books"]["get"]["summary"] == "All books"
    assert spec["paths"]["/books"]["get"]["description"] == "with their authors"


def test_forms_modes_and_a_proxy(documents: Any) -> None:
    plain = documents({"accept": "application/json"})
    assert dict(plain.headers)["content-type"] == "application/openapi+json; charset=utf-8"
    assert documents({"accept": "text/csv"}).status == 406
    assert documents(openapi_mode="disabled").status == 404
    proxied = json.loads(documents(openapi_server_proxy_uri="https://a.b/c").body)
    assert (proxied["host"], proxied["basePath"], proxied["schemes"]) == (
        "a.b:443",
        "/c",
        ["https"],
    )
    assert "JWT" in json.loads(documents(openapi_security_active=True).body)["securityDefinitions"]
