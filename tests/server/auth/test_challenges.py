"""Codes and links by mail and SMS: passwordless, two steps, phones, templates, the outbox."""

from __future__ import annotations

import asyncio
import hmac
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import orjson
import pytest
from aiosmtpd.smtp import SMTP

from tests.server.auth.harness import PASSWORD, Worker, run

ANN = "ann@example.com"


@pytest.mark.parametrize("mode", ["otp", "magic", "both"])
def test_passwordless_makes_the_account_on_the_first_verify(pg_database: str, mode: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.post("/login/passwordless/request", {"email": ANN})
        assert (answer.status, answer.json) == (202, {"sent": True})
        message = (await worker.outbox(ANN))[0]
        assert ("Code:" in message["text"]) == (mode != "magic")
        assert ("Link:" in message["text"]) == (mode != "otp")
        assert await worker.sql("select 1 from auth.users") == []
        if mode == "magic":
            done = await worker.post("/login/magic", {"token": await worker.link(ANN)})
        else:
            body = {"email": ANN, "code": await worker.code(ANN)}
            done = await worker.post("/login/passwordless/verify", body)
        assert done.status == 200, done
        assert done.json["user"]["email"] == ANN
        me = await worker.send("GET", "/me", token=done.json["access_token"])
        assert me.json["verified_at"] is not None
        if mode == "both":  # the link of the same message is spent with the code
            again = await worker.post("/login/magic", {"token": await worker.link(ANN)})
            assert (again.status, again.code) == (400, "expired_token")

    run(pg_database, work, passwordless=mode)


def test_passwordless_that_is_off_says_so(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        for path, body in (
            ("request", {"email": ANN}),
            ("verify", {"email": ANN, "code": "123456"}),
        ):
            answer = await worker.post(f"/login/passwordless/{path}", body)
            assert (answer.status, answer.code) == (403, "passwordless_disabled")

    run(pg_database, work)


def test_production_without_a_mail_server_refuses_what_needs_one(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.post("/login/passwordless/request", {"email": ANN})
        assert (answer.status, answer.code) == (403, "passwordless_disabled")

    run(pg_database, work, passwordless="otp", development=False)


@pytest.mark.parametrize("mode", ["otp", "magic", "both"])
def test_the_second_step_follows_a_right_password(pg_database: str, mode: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        challenge = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        wanted = ["otp", "magic"] if mode == "both" else [mode]
        assert (challenge.status, challenge.json) == (
            200,
            {"twofa_required": True, "methods": wanted},
        )
        if mode == "otp":
            body = {"email": ANN, "code": await worker.code(ANN)}
            done = await worker.post("/login/2fa/verify", body)
        else:
            done = await worker.post("/login/2fa/magic", {"token": await worker.link(ANN)})
        assert done.status == 200, done
        assert done.json["refresh_token"]

    run(pg_database, work, twofa=mode)


def test_a_password_reset_ends_a_pending_second_step(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.post("/login", {"email": ANN, "password": PASSWORD})
        code = await worker.code(ANN)
        await worker.post("/password-reset/request", {"email": ANN})
        token = await worker.link(ANN)
        body = {"token": token, "new_password": "another lamp 42"}
        assert (await worker.post("/password-reset/confirm", body)).status == 200
        answer = await worker.post("/login/2fa/verify", {"email": ANN, "code": code})
        assert (answer.status, answer.code) == (400, "invalid_code")

    run(pg_database, work, twofa="otp")


def test_phone_is_an_identity_of_its_own(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        body = {"phone": "+14155551234"}
        answer = await worker.post("/login/phone/request", body)
        assert (answer.status, answer.json) == (202, {"sent": True})
        code = await worker.code("+14155551234")
        done = await worker.post("/login/phone/verify", {**body, "code": code})
        assert done.status == 200, done
        assert done.json["user"]["email"] is None
        assert done.json["user"]["phone"] == "+14155551234"
        claims = worker.claims(done.json["access_token"])
        assert claims["phone"] == "+14155551234"
        assert "email" not in claims
        bad = await worker.post("/login/phone/request", {"phone": "0123"})
        assert (bad.status, bad.code) == (400, "invalid_phone")

    run(pg_database, work, phone={"enabled": True})


def test_phone_limits_of_the_owner_hold(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        seen = []
        for number in range(3):
            body = {"phone": f"+1415555123{number}"}
            seen.append((await worker.post("/login/phone/request", body)).status)
        assert seen == [202, 202, 429]

    run(pg_database, work, phone={"enabled": True, "per_day": 2})


class Webhook:
    """A small HTTP server that refuses the first delivery."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")[1:]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.seen.append((headers, body))
        status = "503 Busy" if len(self.seen) == 1 else "204 No Content"
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()


def test_sms_webhook_is_signed_and_tried_again(pg_database: str) -> None:
    secret = "a secret of the webhook"

    async def work(worker: Worker) -> None:
        hook = Webhook()
        server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            worker.configure(
                phone={
                    "enabled": True,
                    "webhook_url": f"http://127.0.0.1:{port}/sms",
                    "webhook_secret": secret,
                }
            )
            body = {"phone": "+14155551234"}
            assert (await worker.post("/login/phone/request", body)).status == 202
            await worker.service.room.settle()
        assert len(hook.seen) == 2
        headers, raw = hook.seen[1]
        sent = orjson.loads(raw)
        assert set(sent) == {"phone", "code", "message"}
        message = headers["x-ichibase-timestamp"].encode() + b"." + raw
        expected = hmac.new(secret.encode(), message, "sha256").hexdigest()
        assert headers["x-ichibase-signature"] == f"v1={expected}"
        done = await worker.post("/login/phone/verify", {**body, "code": sent["code"]})
        assert done.status == 200

    run(pg_database, work)


class Letters:
    """Collects what a real SMTP server was given."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        parsed = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        self.letters.append(parsed)
        return "250 OK"


def test_mail_goes_to_the_projects_own_server_with_its_templates(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        letters = Letters()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(letters), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        worker.configure(
            app_name='Shop & "Co"\r\nBcc: evil@example.com',
            passwordless="both",
            landing={"passwordless": "https://app.example.com/in?from=mail"},
            smtp={
                "host": "127.0.0.1", "port": port, "security": "none",
                "sender": "no-reply@example.com", "sender_name": "Shop",
            },
            templates={
                "passwordless": {
                    "subject": "Hi {{ email }} from {{ project }}",
                    "text": "{{ code }} {{ link }} {{ nothing }} {{ email.__class__ }}",
                    "html": "<b>{{ project }}</b> {{ link }}",
                }
            },
        )  # fmt: skip
        await worker.post("/login/passwordless/request", {"email": ANN})
        await worker.service.room.settle()
        server.close()
        await server.wait_closed()
        (letter,) = letters.letters
        assert letter["to"] == ANN
        assert letter["bcc"] is None
        assert letter["from"] == "Shop <no-reply@example.com>"
        assert letter["subject"] == f'Hi {ANN} from Shop & "Co" Bcc: evil@example.com'
        plain = letter.get_body(("plain",))
        page = letter.get_body(("html",))
        assert plain is not None
        assert page is not None
        text = plain.get_content()
        assert "https://app.example.com/in?from=mail&token=" in text
        assert "{{ email.__class__ }}" in text
        assert "Shop &amp; &quot;Co&quot;" in page.get_content()

    run(pg_database, work)


def test_an_invited_user_chooses_a_password(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.post("/admin/invite", {"email": ANN}, key="service")
        assert answer.status == 202
        body = {"token": await worker.link(ANN), "new_password": PASSWORD}
        assert (await worker.post("/password-reset/confirm", body)).status == 200
        token = (await worker.sign_in())["access_token"]
        assert (await worker.send("GET", "/me", token=token)).json["email_verified"] is True

    run(pg_database, work)


def test_generated_links_sign_in_even_where_users_cannot_ask_for_them(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        order = {"email": ANN, "type": "magic"}
        made = await worker.post("/admin/generate-link", order, key="service")
        assert made.status == 200
        done = await worker.post("/login/magic", {"token": made.json["token"]})
        assert done.status == 200
        unknown = {"email": "nobody@example.com", "type": "password_reset"}
        assert (await worker.post("/admin/generate-link", unknown, key="service")).status == 404

    run(pg_database, work)


def test_the_built_in_landing_page_runs_its_own_script_alone(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        page = await worker.send("GET", "/landing", key=None, query="for=verify_email&token=<x>")
        assert page.status == 200
        assert b"<x>" not in page.raw
        assert "script-src 'sha256-" in page.headers["content-security-policy"]
        assert worker.project.anon_key.encode() in page.raw

    run(pg_database, work)
