"""What happens when something else is away or answers wrongly, and what is swept up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import psycopg
import pytest

from server.auth import housekeeping, mail, room, sms
from server.auth.settings import Smtp
from tests.server.auth.harness import PASSWORD, Worker, run

ANN = "ann@example.com"


def test_a_project_that_sleeps_costs_no_memory(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        room = worker.service.room
        (tenant,) = room.tenants.values()
        project = tenant.project
        room.changed(project, project.slug)
        assert room.tenants
        room.changed(msgspec.structs.replace(project, state="sleeping"), project.slug)
        assert not room.tenants
        assert project.id in room._ready  # its schema is as it was
        assert (await worker.sign_in())["access_token"]

    run(pg_database, work)


def test_what_has_run_out_is_swept_up_and_nothing_else(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        await worker.post("/password-reset/request", {"email": ANN})
        await worker.service.room.settle()
        tables = ("codes", "oauth_flows", "rate_limits", "guesses", "sessions", "audit_events")
        await worker.sql(
            "insert into auth.codes (purpose, address, expires_at)"
            " values ('phone', '+1', now() - interval '1 second')"
        )
        await worker.sql(
            "insert into auth.oauth_flows select decode(h, 'hex'), 'x', 'x', 'x', 'x', 'x', 'x',"
            " null, now() + i from (values ('00', '-1 s'::interval), ('01', '1 min')) v (h, i)"
        )
        await worker.sql(
            "insert into auth.guesses values ('old', 1, now() - interval '3 days', null),"
            " ('new', 1, now(), null)"
        )
        await worker.sql(
            "insert into auth.rate_limits values ('old', now() - interval '1 s', '1 s', '1 s')"
        )
        await worker.sql(
            "insert into auth.sessions (id, user_id, token_hash, family_key, expires_at, ends_at,"
            " methods) select gen_random_uuid(), id, '', '', now(), now() - interval '8 days', '{}'"
            " from auth.users"
        )
        await worker.sql(
            "insert into auth.audit_events (at, event, actor)"
            " values (now() - interval '91 days', 'old', 'user')"
        )
        before = {t: await worker.sql(f"select count(*)::int from auth.{t}") for t in tables}
        (tenant,) = worker.service.room.tenants.values()
        await housekeeping.sweep(tenant)
        for table in tables:
            after = await worker.sql(f"select count(*)::int from auth.{table}")
            gone = int(before[table][0][0] or 0) - int(after[0][0] or 0)
            assert gone >= 1 if table == "rate_limits" else gone == 1, table
        assert await worker.sql("select 1 from auth.rate_limits where key = 'old'") == []
        body = {"token": await worker.link(ANN), "new_password": "another lamp 42"}
        assert (await worker.post("/password-reset/confirm", body)).status == 200
        assert session["access_token"]

    run(pg_database, work)


def test_a_revocation_is_tried_until_the_control_database_is_back(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LONGEST_PAUSE", 0.1)

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        token = session["access_token"]
        claims = worker.claims(token)
        revocations = worker.service.room.context.revocations
        real, failures = revocations.sessions, [1, 2]

        async def flaky(*arguments: Any) -> None:
            if failures:
                failures.pop()
                raise psycopg.OperationalError("away")
            await real(*arguments)

        monkeypatch.setattr(revocations, "sessions", flaky)
        body = {"refresh_token": session["refresh_token"]}
        assert (await worker.post("/logout", body, token=token)).status == 200
        assert not worker.denied
        # The auth endpoints ask the project's database and refuse at once.
        assert (await worker.send("GET", "/me", token=token)).status == 401
        await worker.service.room.settle()
        assert worker.denied.covers(claims, time.time())

    run(pg_database, work)


class Listener:
    """Answers each SMTP or HTTP conversation by the next of some status lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.seen = 0

    async def smtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        while line := await reader.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"MAIL":
                self.seen += 1
                writer.write(f"{self.lines.pop(0)}\r\n".encode())
            elif word == b"DATA":
                writer.write(b"354 x\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 x\r\n")
            else:  # to QUIT, too, though that wants another code
                writer.write(b"250 x\r\n")
            await writer.drain()
        writer.close()

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        await reader.readexactly(length)
        self.seen += 1
        line = self.lines.pop(0)
        writer.write(f"HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    ("lines", "tries"),
    [(("451 later", "421 busy", "250 ok"), 3), (("550 no such user",), 1), (("250 ok",), 1),
     (("451 a", "451 b", "451 c", "451 d"), 4)],
)  # fmt: skip
def test_mail_is_tried_again_unless_it_is_refused_for_good(
    pg_database: str, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], tries: int
) -> None:
    monkeypatch.setattr(mail, "PAUSES", (0.01, 0.01, 0.01))

    async def work(worker: Worker) -> None:
        listener = Listener(*lines)
        server = await asyncio.start_server(listener.smtp, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            smtp = Smtp(host="127.0.0.1", port=port, security="none", sender="x@example.com")
            worker.configure(smtp=msgspec.to_builtins(smtp))
            await worker.sign_up()
            answer = await worker.post("/password-reset/request", {"email": ANN})
            assert answer.status == 202
            await worker.service.room.settle()
        assert listener.seen == tries
        assert await worker.outbox() == []

    run(pg_database, work)


@pytest.mark.parametrize(
    ("lines", "tries"),
    [
        (("500 a", "429 b", "200 ok"), 3),
        (("400 bad",), 1),
        (("302 moved",), 1),
        (("503 a",) * 4, 4),
    ],
)
def test_an_sms_is_tried_again_unless_it_is_refused_for_good(
    pg_database: str, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], tries: int
) -> None:
    monkeypatch.setattr(sms, "PAUSES", (0.01, 0.01, 0.01))

    async def work(worker: Worker) -> None:
        listener = Listener(*lines)
        server = await asyncio.start_server(listener.http, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            hook = {"webhook_url": f"http://127.0.0.1:{port}/", "webhook_secret": "s" * 16}
            worker.configure(phone={"enabled": True, **hook})
            answer = await worker.post("/login/phone/request", {"phone": "+14155551234"})
            assert answer.status == 202
            await worker.service.room.settle()
        assert listener.seen == tries

    run(pg_database, work)


def test_phone_in_production_needs_a_webhook(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.post("/login/phone/request", {"phone": "+14155551234"})
        assert (answer.status, answer.code) == (403, "phone_disabled")

    run(pg_database, work, development=False, phone={"enabled": True})


@pytest.mark.parametrize(
    ("body", "status"),
    [("select null::jsonb", 200), ("select 'null'::jsonb", 200), ("select '{}'::jsonb", 200),
     ("select '[1]'::jsonb", 403), ("select '\"x\"'::jsonb", 403), ("select '1'::jsonb", 403),
     ("select jsonb_build_object('x', repeat('y', 5000))", 403),
     ("select (1 / 0)::text::jsonb", 403), ("select secrets from nowhere", 403)],
)  # fmt: skip
def test_a_claims_hook_that_gives_no_small_object_denies(
    pg_database: str, body: str, status: int
) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.sql(
            f"do $do$ begin set local check_function_bodies = off; execute $x$create function"
            f" public.claims(event jsonb) returns jsonb language sql as $${body}$$$x$; end $do$"
        )
        answer = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        assert answer.status == status, answer
        assert answer.code == (None if status == 200 else "sign_in_denied")

    run(pg_database, work, claims_hook="public.claims")


def test_a_claims_hook_that_does_not_exist_denies(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        answer = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        assert (answer.status, answer.code) == (403, "sign_in_denied")

    run(pg_database, work, claims_hook="Strange.name")


def test_a_database_that_is_away_is_told_as_such(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        away = "postgresql://nobody@127.0.0.1:9/nothing"
        worker.project = msgspec.structs.replace(
            worker.project, system_dsn=away, revision=worker.project.revision + 1
        )
        for method, path, body in (
            ("GET", "/me", None), ("POST", "/login", {"email": ANN, "password": PASSWORD}),
            ("POST", "/refresh", {"refresh_token": session["refresh_token"]}),
        ):  # fmt: skip
            answer = await worker.send(method, path, body, token=session["access_token"])
            assert (answer.status, answer.code) == (503, "unavailable"), path
            assert answer.headers["retry-after"]

    run(pg_database, work)


def test_settings_that_an_older_program_wrote_are_no_fault(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        worker.configure(nonsense=1)
        answer = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        assert (answer.status, answer.code) == (503, "unavailable")

    run(pg_database, work)
