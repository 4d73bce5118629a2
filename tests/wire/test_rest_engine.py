"""The Postgres REST engine against a real database, without HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.base.http import Response
from server.node.embedded_pg import EmbeddedPostgres
from server.postgres import introspect
from server.postgres.pool import Pool
from server.postgres.service import RestEngine, RestRequest, role_settings
from server.postgres.settings import RestSettings

SCHEMA = (Path(__file__).parent / "sql" / "rest_engine.sql").read_text()


@dataclass
class Answer:
    """A response with its body read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Send = Callable[..., Awaitable[Answer]]


@pytest.fixture(scope="module")
def rest_dsn(pg_cluster: EmbeddedPostgres) -> str:
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute("drop database if exists rest_engine with (force)")
        admin.execute("create database rest_engine")
        for role in ("rest_anon", "rest_user"):
            admin.execute(f"drop role if exists {role}")
            admin.execute(f"create role {role} nologin")
        admin.execute("drop role if exists rest_login")
        admin.execute(
            "create role rest_login login noinherit password 'rest_login' "
            "in role rest_anon, rest_user"
        )
        admin.execute("alter role rest_user set default_transaction_isolation = 'repeatable read'")
    with psycopg.connect(pg_cluster.dsn("rest_engine"), autocommit=True) as owner:
        owner.execute(SCHEMA)
    return pg_cluster.dsn("rest_engine", "rest_login") + " password=rest_login"


def run(dsn: str, test: Callable[[Send, RestEngine], Awaitable[None]], **changes: Any) -> None:
    """Run one test with an engine of its own."""

    async def main() -> None:
        chosen = RestSettings(
            schemas=("api",), anon_role="rest_anon", app_settings=(("app.settings.name", "x"),),
            **changes,
        )  # fmt: skip
        pool = Pool(dsn, max_size=4)
        engine = RestEngine(chosen, pool)
        try:
            catalog = await introspect.load(pool.fetch, chosen, 1)
            engine.use(catalog, roles=await role_settings(pool))

            async def send(
                method: str,
                target: str,
                body: Any = None,
                *,
                role: str = "rest_anon",
                claims: Any = None,
                **headers: str,
            ) -> Answer:
                path, _, query = target.partition("?")
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                response: Response = await engine.handle(
                    RestRequest(
                        method,
                        path,
                        query.encode(),
                        {name.replace("_", "-"): value for name, value in headers.items()},
                        b"" if body is None else raw,
                        role=role,
                        claims_json=json.dumps(claims or {"role": role}).encode(),
                        is_anonymous=role == "rest_anon",
                    )
                )
                content = response.body
                if response.stream is not None:
                    content = b"".join([piece async for piece in response.stream])
                return Answer(response.status, dict(response.headers), content)

            await test(send, engine)
        finally:
            await pool.close()

    asyncio.run(main())


def test_reads_rows_with_their_parents_and_children(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("GET", "/projects?select=name,clients(name)&order=id")
        assert got.status == 200
        assert got.json == [
            {"name": "one", "clients": {"name": "Ada"}},
            {"name": "two", "clients": {"name": "Ada"}},
            {"name": "three", "clients": None},
        ]
        assert got.headers["content-range"] == "0-2/*"
        assert got.headers["content-location"].startswith("/projects?order=id&select=")
        got = await send("GET", "/clients?select=id,projects(id)&order=id&projects.order=id.desc")
        assert got.json == [
            {"id": 1, "projects": [{"id": 2}, {"id": 1}]},
            {"id": 2, "projects": []},
        ]

    run(rest_dsn, test)


def test_a_cached_plan_answers_like_a_new_one(rest_dsn: str) -> None:
    async def test(send: Send, engine: RestEngine) -> None:
        target = "/projects?select=id,clients(name)&id=eq.{}&or=(name.eq.two,id.lt.{})&limit=5"
        first = {n: (await send("GET", target.format(n, n + 1))).body for n in (1, 2, 3)}
        assert engine.generation is not None
        assert len(engine.generation.plans) == 1
        for n, body in first.items():
            assert (await send("GET", target.format(n, n + 1))).body == body
            assert json.loads(body)[0]["id"] == n

    run(rest_dsn, test)


def test_counts_and_pages(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("GET", "/projects?limit=2&order=id", prefer="count=exact")
        assert (got.status, got.headers["content-range"]) == (206, "0-1/3")
        got = await send("GET", "/projects?order=id", prefer="count=exact", range="1-1")
        assert (got.status, got.headers["content-range"]) == (206, "1-1/3")
        assert [row["id"] for row in got.json] == [2]
        got = await send("GET", "/projects?offset=9", prefer="count=exact")
        assert (got.status, got.headers["content-range"]) == (416, "*/3")
        assert got.json["code"] == "PGRST103"
        got = await send("HEAD", "/projects", prefer="count=exact")
        assert (got.status, got.headers["content-range"], got.body) == (200, "0-2/3", b"")
        got = await send("GET", "/projects", range="3-1")
        assert (got.status, got.json["code"]) == (416, "PGRST103")
        got = await send("GET", "/projects?limit=" + "9" * 5000)
        assert got.status == 400

    run(rest_dsn, test)


def test_writes_without_the_right_to_read(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("POST", "/dropbox", {"id": 1, "note": "x"}, prefer="return=minimal")
        assert (got.status, got.body) == (201, b"")
        got = await send("POST", "/dropbox", {"id": 2}, prefer="return=representation")
        assert (got.status, got.json["code"]) == (401, "42501")
        assert got.headers["www-authenticate"] == "Bearer"

    run(rest_dsn, test)


def test_inserts_upserts_updates_and_deletes(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        full = "return=representation"
        got = await send("POST", "/clients", [{"id": 7, "name": "G"}], prefer="return=headers-only")
        assert (got.status, got.headers["location"]) == (201, "/clients?id=eq.7")
        merge = f"{full},resolution=merge-duplicates"
        got = await send("POST", "/clients", {"id": 7, "name": "H"}, prefer=merge)
        assert (got.status, got.json) == (200, [{"id": 7, "name": "H"}])
        got = await send("POST", "/clients", {"id": 8, "name": "I"}, prefer=merge)
        assert got.status == 201
        got = await send("POST", "/clients", {"id": 7, "name": "J"})
        assert (got.status, got.json["code"]) == (409, "23505")
        got = await send("PUT", "/clients?id=eq.9", {"id": 9, "name": "K"}, prefer=full)
        assert got.status == 201
        got = await send("PUT", "/clients?id=eq.9", {"id": 10, "name": "K"})
        assert (got.status, got.json["code"]) == (400, "PGRST115")
        assert (await send("GET", "/clients?id=eq.10")).json == []
        got = await send("PATCH", "/clients?id=gte.7", {"name": "L"}, prefer=full + ",count=exact")
        assert (got.status, len(got.json), got.headers["content-range"]) == (200, 3, "0-2/3")
        strict = "handling=strict,max-affected=2"
        got = await send("DELETE", "/clients?id=gte.7", prefer=strict)
        assert (got.status, got.json["code"]) == (400, "PGRST124")
        one = "application/vnd.pgrst.object+json"
        got = await send("DELETE", "/clients?id=gte.7", accept=one, prefer=full)
        assert (got.status, got.json["code"]) == (406, "PGRST116")
        got = await send("DELETE", "/clients?id=gte.7&select=id", prefer=full)
        assert sorted(row["id"] for row in got.json) == [7, 8, 9]
        got = await send("PATCH", "/clients?id=eq.1", {})
        assert got.status == 204

    run(rest_dsn, test)


def test_a_rolled_back_request_answers_and_leaves_nothing(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send(
            "POST", "/clients", {"id": 50, "name": "x"}, prefer="return=representation,tx=rollback"
        )
        assert (got.status, got.json[0]["id"]) == (201, 50)
        assert got.headers["preference-applied"] == "return=representation, tx=rollback"
        assert (await send("GET", "/clients?id=eq.50")).json == []

    run(rest_dsn, test, tx_end="commit-allow-override")


def test_calls_functions(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        assert (await send("GET", "/rpc/add?a=1&b=2")).body == b"3"
        assert (await send("GET", "/rpc/add?a=5&b=7")).body == b"12"
        assert (await send("POST", "/rpc/add", {"a": 1})).body == b"11"
        got = await send("GET", "/rpc/everyone?select=name&id=eq.2")
        assert got.json == [{"name": "Bob"}]
        got = await send("GET", "/rpc/everyone?limit=1", prefer="count=exact")
        assert (got.status, got.headers["content-range"]) == (206, "0-0/2")
        got = await send("POST", "/rpc/nothing")
        assert (got.status, got.body) == (204, b"")
        got = await send("POST", "/rpc/whole", {"any": [1]}, content_type="application/json")
        assert got.json == {"any": [1]}
        got = await send("GET", "/rpc/nope")
        assert (got.status, got.json["code"]) == (404, "PGRST202")
        got = await send("PATCH", "/rpc/add")
        assert (got.status, got.json["code"]) == (405, "PGRST101")

    run(rest_dsn, test)


def test_what_a_function_sees_and_sets(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        seen = (
            await send(
                "POST", "/rpc/facts", role="rest_user", x_test="h", cookie='a,b={"x"}; c=1; d'
            )
        ).json
        assert seen == {
            "role": "rest_user", "method": "POST", "header": "h", "cookie": "1", "app": "x",
            "isolation": "repeatable read",
        }  # fmt: skip
        own = {"status": "418", "headers": '[{"X-Own": "1"}]'}
        got = await send("POST", "/rpc/answer", own)
        assert (got.status, got.headers["x-own"]) == (418, "1")
        assert (await send("POST", "/rpc/leak")).body == b'""'
        for status, headers, code in (
            ("99", "[]", "PGRST112"),
            ("1000", "[]", "PGRST112"),
            ("101", "[]", "PGRST112"),
            ("abc", "[]", "PGRST112"),
            ("200", "{}", "PGRST111"),
            ("200", '[{"a": "x\\r\\ny"}]', "PGRST111"),
            ("200", '[{"a b": "x"}]', "PGRST111"),
        ):
            got = await send("POST", "/rpc/answer", {"status": status, "headers": headers})
            assert (got.status, got.json["code"]) == (500, code)

    run(rest_dsn, test)


@pytest.mark.parametrize("tx_end", ["commit", "rollback-allow-override"])
def test_what_a_function_sets_for_its_session_ends_with_its_request(
    rest_dsn: str, tx_end: Any
) -> None:
    async def test(send: Send, engine: RestEngine) -> None:
        before = (await send("GET", "/rpc/session_mark")).json
        for accept in ("*/*", "application/vnd.pgrst.object+json"):
            got = await send("POST", "/rpc/mark_session", ["x"], accept=accept,
                             content_type="text/plain", prefer="tx=commit")  # fmt: skip
            assert got.status in (200, 204), got
            assert (await send("GET", "/rpc/session_mark")).json == before
        assert (await send("POST", "/late", {"id": 1})).status == 201
        assert engine.pool.stats()["connections"] == 1

    run(rest_dsn, test, tx_end=tx_end)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/diary"),
        ("POST", "/checked"),
        ("GET", "/watched"),
        ("GET", "/asks?select=id,watched(id)"),
        ("GET", "/indirect"),
        ("GET", "/clients?shout=eq.ADA"),
        ("GET", "/clients?or=(id.eq.9,and(id.eq.1,shout.eq.ADA))"),
        ("GET", "/clients?order=shout"),
        ("GET", "/projects?select=id,clients(id,projects(id,clients(shout)))"),
        ("GET", "/projects?select=id,clients(id)&clients.shout=eq.ADA"),
        ("PATCH", "/clients?shout=eq.ADA"),
    ],
)
def test_code_behind_a_plain_table_leaves_nothing_in_the_session(
    rest_dsn: str, method: str, path: str
) -> None:
    async def test(send: Send, engine: RestEngine) -> None:
        before = (await send("GET", "/rpc/session_mark")).json
        got = await send(method, path, {"id": 1} if method != "GET" else None)
        assert got.status in (200, 201, 204), got
        assert (await send("GET", "/rpc/session_mark")).json == before
        assert engine.pool.stats()["connections"] == 1

    run(rest_dsn, test)


def test_errors_of_the_database(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("POST", "/rpc/complain")
        assert got.status == 402
        assert got.json == {"code": "PT402", "details": None, "hint": "soon", "message": "pay"}
        assert got.headers["proxy-status"] == "PostgREST; error=PT402"
        got = await send("POST", "/rpc/break_later")
        assert (got.status, got.json["code"]) == (409, "23503")
        assert (await send("GET", "/projects?id=eq.1&select=client_id")).json == [{"client_id": 1}]
        got = await send("GET", "/projects?id=eq.x")
        assert (got.status, got.json["code"]) == (400, "22P02")
        got = await send("POST", "/clients", b'{"id": 60, "name": "\\u0000"}')
        assert got.status == 400
        got = await send("POST", "/clients", b'{"id": 61, "name": "\\ud800"}')
        assert got.status == 400
        got = await send("GET", "/nothing_here")
        assert (got.status, got.json["code"]) == (404, "PGRST205")
        got = await send("GET", "/a/b")
        assert (got.status, got.json["code"]) == (404, "PGRST125")
        got = await send("POST", "/clients?id=1", b"{", content_profile="nope")
        assert (got.status, got.json["code"]) == (406, "PGRST106")
        got = await send("POST", "/clients?id=1", b"{")
        assert (got.status, got.json["code"]) == (400, "PGRST100")
        got = await send("PUT", "/clients?name=eq.x", {"none": 1})
        assert (got.status, got.json["code"]) == (405, "PGRST105")

    run(rest_dsn, test)


def test_a_slow_statement_is_stopped(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("POST", "/rpc/nap")
        assert (got.status, got.json["code"]) == (500, "57014")

    run(rest_dsn, test, statement_timeout_ms=200)


def test_policies_follow_each_request(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        async def ids(user: str) -> list[int]:
            got = await send("GET", "/secret?select=id", role="rest_user", claims={"sub": user})
            return [row["id"] for row in got.json]

        answers = await asyncio.gather(*(ids(f"u{1 + n % 2}") for n in range(60)))
        assert answers == [[1 + n % 2] for n in range(60)]
        got = await send("POST", "/secret", {"id": 3}, role="rest_user", claims={"sub": "u1"})
        assert got.status == 201
        got = await send(
            "POST", "/secret", {"id": 4, "owner": "u2"}, role="rest_user", claims={"sub": "u1"}
        )
        assert (got.status, got.json["code"]) == (403, "42501")

    run(rest_dsn, test)


def test_large_bodies_are_what_small_ones_are(rest_dsn: str) -> None:
    undone = "return=representation,tx=rollback"
    many = range(1_000, 11_000)
    rows = [{"id": n, "name": f"number {n}"} for n in many]
    lines = "id,name\n" + "".join(f'{n},"number {n}"\n' for n in many)

    async def test(send: Send, _: RestEngine) -> None:
        got = await send("POST", "/clients?select=id,name", rows, prefer=undone)
        assert (got.status, got.json) == (201, rows)
        body = lines.encode()
        csv = {"content_type": "text/csv", "prefer": undone}
        got = await send("POST", "/clients?select=id,name", body, **csv)
        assert (got.status, got.json) == (201, rows)
        for bad, message in (
            (b'x"' + body, "parse error (Failed reading: a quote inside a value without quotes)"),
            (body + b"1", "All lines must have same number of fields"),
            (body + b"\xff", "The CSV text is not UTF-8"),
        ):
            got = await send("POST", "/clients", bad, **csv)
            assert (got.status, got.json["code"], got.json["message"]) == (400, "PGRST102", message)
        got = await send("POST", "/clients", [*rows, {"id": 1}], prefer=undone)
        assert got.json["message"] == "All object keys must match"
        got = await send("POST", "/clients?columns=id,name", [*rows, {"id": 0}], prefer=undone)
        assert got.json["code"] == "23502"  # not looked into
        form = b"&".join(b"id=1" for _ in range(20_000))
        got = await send("POST", "/clients", form, content_type="application/x-www-form-urlencoded")
        assert (got.status, got.json["code"]) == (400, "PGRST102")

    run(rest_dsn, test, tx_end="commit-allow-override")


def test_other_media_types(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("GET", "/clients?order=id&id=lt.3", accept="text/csv")
        assert got.body == b"id,name\n1,Ada\n2,Bob"
        assert got.headers["content-type"] == "text/csv; charset=utf-8"
        one = "application/vnd.pgrst.object+json"
        assert (await send("GET", "/clients?id=eq.1", accept=one)).json == {"id": 1, "name": "Ada"}
        got = await send("GET", "/clients", accept=one)
        assert (got.status, got.json["code"]) == (406, "PGRST116")
        stripped = "application/vnd.pgrst.array+json;nulls=stripped"
        got = await send("GET", "/projects?id=eq.3&select=id,client_id", accept=stripped)
        assert got.json == [{"id": 3}]
        got = await send("GET", "/clients", accept="image/png")
        assert (got.status, got.json["code"]) == (406, "PGRST107")
        got = await send("GET", "/clients", accept="application/vnd.pgrst.plan+json",
                         accept_profile="api")  # fmt: skip
        assert got.headers["content-profile"] == "api"
        assert got.json[0]["Plan"]["Total Cost"] > 0

    run(rest_dsn, test, plan_enabled=True)


def test_a_large_result_streams(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        got = await send("GET", "/rpc/wide")
        assert got.status == 200
        assert len(got.json) == 3000
        assert got.headers["content-length"] == str(len(got.body))

    run(rest_dsn, test)


def test_a_cancelled_request_ends_its_query(rest_dsn: str) -> None:
    async def test(send: Send, engine: RestEngine) -> None:
        task = asyncio.create_task(send("POST", "/rpc/nap"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)
        rows = await engine.pool.fetch(
            "select count(*) from pg_stat_activity where query like '%nap%' and state = 'active' "
            "and pid <> pg_backend_pid()", ()
        )  # fmt: skip
        assert rows == [("0",)]

    run(rest_dsn, test)


PIECES = st.sampled_from(
    ["select=", "order=", "id=eq.", "name=like.", "or=(", "and=(", "limit=", "offset=", "clients.",
     "projects", "clients(", "*", ",", ")", "(", ".", "not.", "in.(", "is.null", "->", "->>", "::",
     "a", "1", "-", "&", "%", "%00", "%zz", "!inner", "!", "...", "count()", "\"", "\\", "sum()",
     "fts(english).", "desc", "columns=", "on_conflict=", "é", " ", "{", "}", "9" * 21]
)  # fmt: skip


def test_no_query_string_is_the_servers_fault(rest_dsn: str) -> None:
    async def test(send: Send, _: RestEngine) -> None:
        loop = asyncio.get_running_loop()
        calls: list[tuple[str, str, Any]] = []

        @settings(
            max_examples=150,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.sampled_from(["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT"]),
            st.sampled_from(["/projects", "/clients", "/rpc/everyone", "/rpc/add"]),
            st.lists(PIECES, max_size=10).map("".join),
            st.sampled_from([None, b"{}", b"[]", b"[{},{}]", b'{"id":1}', b"{", b"\xff", b"3"]),
        )  # fmt: skip
        def collect(method: str, path: str, query: str, body: bytes | None) -> None:
            calls.append((method, f"{path}?{query}", body))

        await loop.run_in_executor(None, collect)
        for method, target, body in calls:
            got = await send(method, target, body, prefer="tx=rollback")
            assert got.status < 500, (method, target, body, got.body)

    run(rest_dsn, test, tx_end="rollback-allow-override", aggregates_enabled=True)


def test_a_function_that_is_quick_may_share_a_connection(rest_dsn: str) -> None:
    async def test(send: Send, engine: RestEngine) -> None:
        for n in range(2000):  # one that was slow, on a busy machine, costs many quick ones
            assert (await send("GET", f"/rpc/add?a={n}")).body == str(n + 10).encode()
            assert engine.generation is not None
            (plan,) = engine.generation.plans.values()
            if plan.proven_quick:
                break
        assert plan.proven_quick
        assert n >= 19
        plan.took(1.0)
        assert not plan.proven_quick

    run(rest_dsn, test)
