"""Each test is named after the attack that it stops."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from server.auth import codes
from server.auth.outbound import Outbound, OutboundError
from server.auth.settings import Smtp
from server.auth.templates import Rendered
from tests.server.auth.harness import OPEN, PASSWORD, Worker, run, together

ANN, BOB = "ann@example.com", "bob@example.com"


def test_user_enumeration_by_answer(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        seen: dict[str, list[tuple[int, bytes]]] = {}
        for email in (ANN, "nobody@example.com"):
            seen[email] = []
            for path, body in (
                ("/login", {"password": "not the lamp"}),
                ("/password-reset/request", {}),
                ("/verify-email/resend", {}),
                ("/login/passwordless/request", {}),
                ("/login/2fa/verify", {"code": "123456"}),
            ):
                answer = await worker.post(path, {"email": email, **body})
                seen[email].append((answer.status, answer.raw))
            await worker.service.room.settle()  # challenges are made after the answer
            for path, body in (
                ("/password-reset/confirm-otp", {"new_password": "another lamp 42"}),
                ("/verify-email/otp", {}),
                ("/login/passwordless/verify", {}),
            ):
                for _ in range(7):  # past the five tries: both must say so or neither
                    answer = await worker.post(path, {"email": email, "code": "000000", **body})
                    seen[email].append((answer.status, answer.raw))
        assert seen[ANN] == seen["nobody@example.com"]

    run(pg_database, work, passwordless="otp", password_reset="otp", verification="otp", **OPEN)


def test_user_enumeration_by_sign_up(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        first = await worker.sign_up()
        await worker.post("/verify-email", {"token": await worker.link(ANN)})
        again = await worker.post("/signup", {"email": ANN, "password": "another lamp 42"})
        assert again.status == first.status == 201
        assert set(again.json) == set(first.json)
        assert again.json["user_id"] != first.json["user_id"]
        assert (await worker.outbox(ANN))[0]["kind"] == "already_registered"
        await worker.sign_in(password=PASSWORD)

    run(pg_database, work, require_verified_email=True, **OPEN)


def test_user_enumeration_by_time(pg_database: str) -> None:
    asked: list[tuple[str, dict[str, str]]] = [
        ("/login", {"password": "not the lamp"}),
        ("/password-reset/request", {}),
        ("/verify-email/resend", {}),
        ("/login/passwordless/request", {}),
        ("/login/2fa/verify", {"code": "123456"}),
    ]

    async def differences(worker: Worker) -> dict[str, float]:
        """Seconds between the medians, of each path."""
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(6):
            for email in (ANN, "nobody@example.com"):
                for path, body in asked:
                    began = time.perf_counter()
                    await worker.post(path, {"email": email, **body})
                    took = time.perf_counter() - began
                    times.setdefault((path, email), []).append(took)
                    await worker.service.room.settle()
        medians = {key: statistics.median(took) for key, took in times.items()}
        return {
            path: abs(medians[path, ANN] - medians[path, "nobody@example.com"]) for path, _ in asked
        }

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        left = dict.fromkeys((path for path, _ in asked), 1.0)
        for _ in range(4):  # a difference that is always there is no accident of a busy machine
            found = await differences(worker)
            left = {path: found[path] for path in left if found[path] >= 0.02}
            if not left:
                break
        assert not left

    run(pg_database, work, passwordless="both", **OPEN)


def test_password_guessing_locks_longer_and_longer(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        waits = []
        for email in (ANN, "nobody@example.com"):
            for attempt in range(5):
                answer = await worker.post("/login", {"email": email, "password": "not the lamp"})
                if attempt < 3:
                    assert answer.status == 401
            assert (answer.status, answer.code) == (429, "too_many_attempts")
            waits.append(int(answer.headers["retry-after"]))
        assert waits[0] == waits[1] == 1
        await worker.sql("update auth.guesses set failures = 12, locked_until = now()")
        await worker.post("/login", {"email": ANN, "password": "not the lamp"})
        locked = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        assert locked.status == 429
        assert 500 < int(locked.headers["retry-after"]) <= 900
        await worker.sign_in(peer="198.51.100.77")  # the user at home is not locked out

    limits = {"rate_limits": OPEN["rate_limits"], "lockout": {"free": 3}}
    run(pg_database, work, **limits)


def test_login_flood_from_one_place(pg_database: str) -> None:
    async def work(worker: Worker, other: Worker) -> None:
        await worker.sign_up()
        body = {"email": ANN, "password": PASSWORD}
        answers = [await (worker if n % 2 else other).post("/login", body) for n in range(11)]
        assert [a.status for a in answers] == [200] * 10 + [429]
        assert answers[-1].code == "rate_limited"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 7

    run(pg_database, work, workers=2)


def test_simultaneous_sign_ups_make_one_account(pg_database: str) -> None:
    async def work(one: Worker, two: Worker) -> None:
        body = {"email": ANN, "password": PASSWORD}
        answers = await together(*(w.post("/signup", body, key="service") for w in (one, two) * 4))
        assert sorted(a.status for a in answers) == [201] + [409] * 7
        assert {a.code for a in answers} == {None, "email_taken"}
        assert await one.sql("select count(*)::int from auth.users") == [("1",)]

    run(pg_database, work, workers=2)


def test_code_guessing(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.post("/login/passwordless/request", {"email": ANN})
        right = await worker.code(ANN)
        wrong = f"{(int(right) + 1) % 1_000_000:06d}"
        body = {"email": ANN, "code": wrong}
        guesses = await together(
            *(worker.post("/login/passwordless/verify", body) for _ in range(30))
        )
        assert [g.code for g in guesses].count("invalid_code") == 5
        assert [g.code for g in guesses].count("too_many_attempts") == 25
        spent = await worker.post("/login/passwordless/verify", {**body, "code": right})
        assert (spent.status, spent.code) == (429, "too_many_attempts")

    run(pg_database, work, passwordless="otp", **OPEN)


def test_a_code_works_once_even_when_sent_twice_at_one_moment(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.post("/login/passwordless/request", {"email": ANN})
        body = {"email": ANN, "code": await worker.code(ANN)}
        answers = await together(
            *(worker.post("/login/passwordless/verify", body) for _ in range(8))
        )
        assert sorted(a.status for a in answers) == [200] + [400] * 7

    run(pg_database, work, passwordless="otp", **OPEN)


def test_a_code_for_another_purpose_or_address(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up(ANN)
        await worker.sign_up(BOB)
        await worker.post("/password-reset/request", {"email": ANN})
        code, token = await worker.code(ANN), await worker.link(ANN)
        for path, body in (
            ("/login/passwordless/verify", {"email": ANN, "code": code}),
            ("/login/2fa/verify", {"email": ANN, "code": code}),
            ("/verify-email/otp", {"email": ANN, "code": code}),
            ("/login/passwordless/verify", {"email": BOB, "code": code}),
            ("/login/magic", {"token": token}),
            ("/login/2fa/magic", {"token": token}),
            ("/verify-email", {"token": token}),
            ("/oauth/exchange", {"code": token, "code_verifier": "v" * 43}),
            (
                "/password-reset/confirm-otp",
                {"email": BOB, "code": code, "new_password": "another lamp 42"},
            ),
        ):
            answer = await worker.post(path, body)
            assert answer.status == 400, (path, answer)
            assert answer.code in ("invalid_code", "expired_token")
        project = worker.project
        stored = {
            codes.code_hash(project, purpose, address, code)
            for purpose in ("passwordless", "password_reset")
            for address in (ANN, BOB)
        }
        assert len(stored) == 4
        await worker.sign_in(ANN)

    run(pg_database, work, passwordless="both", password_reset="both", **OPEN)


def test_an_earlier_code_ends_when_another_is_asked_for(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.post("/login/passwordless/request", {"email": ANN})
        token = await worker.link(ANN)
        await worker.post("/login/passwordless/request", {"email": ANN})
        answer = await worker.post("/login/magic", {"token": token})
        assert (answer.status, answer.code) == (400, "expired_token")
        assert (await worker.post("/login/magic", {"token": await worker.link(ANN)})).status == 200

    run(pg_database, work, passwordless="magic", **OPEN)


def test_message_flood_to_one_address(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        for email in (ANN, "nobody@example.com"):
            body = {"email": email}
            assert (await worker.post("/password-reset/request", body)).status == 202
            answer = await worker.post("/password-reset/request", body, peer="198.51.100.8")
            assert (answer.status, answer.code) == (429, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 60

    run(pg_database, work)


def test_host_header_poisoning_of_links_in_mail(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        headers = {"host": "evil.example", "x-forwarded-host": "evil.example"}
        await worker.post("/password-reset/request", {"email": ANN}, headers=headers)
        text = (await worker.outbox(ANN))[0]["text"]
        assert "evil.example" not in text
        assert f"{worker.project.url}/auth/landing?" in text

    run(pg_database, work)


def test_a_second_step_of_another_user(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        for email in (ANN, BOB):
            await worker.sign_up(email)
            assert (await worker.post("/login", {"email": email, "password": PASSWORD})).json[
                "twofa_required"
            ]
        bobs = await worker.code(BOB)
        if bobs != await worker.code(ANN):
            answer = await worker.post("/login/2fa/verify", {"email": ANN, "code": bobs})
            assert (answer.status, answer.code) == (400, "invalid_code")
        # Without the password there is nothing to answer, even for one's own address.
        await worker.sql("delete from auth.codes")
        answer = await worker.post("/login/2fa/verify", {"email": BOB, "code": bobs})
        assert (answer.status, answer.code) == (400, "invalid_code")

    run(pg_database, work, twofa="otp", **OPEN)


def test_a_password_set_before_the_address_was_proven(pg_database: str) -> None:
    """Somebody signs up with another's address; the holder later signs in by mail."""

    async def work(worker: Worker) -> None:
        await worker.sign_up(ANN, "the thief's lamp")
        thief = await worker.sign_in(ANN, "the thief's lamp")
        await worker.post("/login/passwordless/request", {"email": ANN})
        body = {"email": ANN, "code": await worker.code(ANN)}
        assert (await worker.post("/login/passwordless/verify", body)).status == 200
        assert (await worker.send("GET", "/me", token=thief["access_token"])).status == 401
        answer = await worker.post("/login", {"email": ANN, "password": "the thief's lamp"})
        assert (answer.status, answer.code) == (401, "invalid_credentials")

    run(pg_database, work, passwordless="otp")


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com\r\nBcc: evil@example.com", "ann@example.com\nx", "ann@exa mple.com",
        "ann@example.com,evil@example.com", "<ann@example.com>", '"ann"@example.com',
        "ann@example.com>", "ann\u0000@example.com", "ann@", "@example.com", "ann",
        "a" * 65 + "@b.c",
        "ann@" + "a" * 260, "ſann@example.com", "ann@eⓧample.com", "\u212aann@example.com",
        "ann..b@example.com", ".ann@example.com", "ann@-example.com",
    ],
)  # fmt: skip
def test_header_injection_in_mail(address: str) -> None:
    from ichicore.errors import ApiError
    from server.auth import inputs, mail

    with pytest.raises(ApiError) as caught:
        inputs.email(address)
    assert caught.value.code == "invalid_email"
    smtp = Smtp(host="x", sender="no-reply@example.com", sender_name="A\r\nBcc: x@y.z")
    composed = mail.compose(smtp, ANN, Rendered("Hi", "text", "<p>x</p>")).as_bytes()
    assert b"\nBcc" not in composed
    with pytest.raises(ApiError):
        mail.compose(smtp, address, Rendered("Hi", "text", None))


def test_oversized_and_hostile_metadata(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        token = (await worker.sign_in())["access_token"]
        for raw in (
            b'{"metadata":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
            b'{"metadata":{"a":"\\u0000"}}',
            b'{"metadata":{"\\u0000":1}}',
            b'{"metadata":{"a":1e999}}',
            b'{"metadata":{"a":1e99999999999999999999}}',
            b'{"metadata":{"a":"\\ud800"}}',
            b'{"metadata":[1]}',
            b'{"metadata":null}',
            b'{"metadata":"{}"}',
            b'{"metadata":{"a":"' + b"x" * 9000 + b'"}}',
            b"\xff\xfe",
            b"",
            b"[]",
        ):
            answer = await worker.send("PATCH", "/me", raw=raw, token=token)
            assert answer.status == 400, (raw[:60], answer)
            assert answer.code in ("bad_request", "metadata_too_large")
        answer = await worker.send("PATCH", "/me", raw=b"{" + b" " * 40_000 + b"}", token=token)
        assert answer.status == 413

    run(pg_database, work)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "192.168.0.1", "0.0.0.0", "[::1]",
        "[::ffff:127.0.0.1]", "[fd00::1]", "[64:ff9b::7f00:1]", "100.64.0.1", "2130706433",
    ],
)  # fmt: skip
def test_settings_that_name_the_machines_own_network(host: str) -> None:
    async def work() -> None:
        outbound = Outbound(private=False)
        try:
            with pytest.raises(OutboundError):
                await outbound.request("GET", f"http://{host}:1/", {})
            with pytest.raises(OutboundError):
                await outbound.open_socket(host, 1)
        finally:
            await outbound.close()

    asyncio.run(work())
