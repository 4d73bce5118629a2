"""Each test is named after the attack that it stops."""

from __future__ import annotations

import asyncio
import base64
import hmac
import statistics
import time
import uuid
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.auth import codes, sessions, tokens
from server.auth.outbound import Outbound, OutboundError
from server.auth.settings import Smtp
from server.auth.templates import Rendered
from tests.server.auth.harness import PASSWORD, Worker, make_project, run, together

ANN, BOB = "ann@example.com", "bob@example.com"
OPEN: dict[str, Any] = {
    "rate_limits": {
        name: {"count": 100_000, "seconds": 60}
        for name in (
            "login_per_ip_and_email",
            "login_per_email",
            "login_per_ip",
            "message_per_address",
            "message_per_address_hour",
            "message_per_ip",
            "verify_per_ip",
            "verify_per_ip_and_address",
            "verify_per_address_hour",
            "signup_per_ip",
        )
    },
    "lockout": {"free": 100_000, "free_per_email": 100_000},
}


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


def test_refresh_replay(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        first = await worker.sign_in()
        second = (await worker.post("/refresh", {"refresh_token": first["refresh_token"]})).json
        grace = await worker.post("/refresh", {"refresh_token": first["refresh_token"]})
        assert grace.json["refresh_token"] == second["refresh_token"]
        await worker.sql("update auth.sessions set rotated_at = now() - interval '31 seconds'")
        stolen = await worker.post("/refresh", {"refresh_token": first["refresh_token"]})
        assert (stolen.status, stolen.code) == (401, "invalid_refresh_token")
        family = await worker.post("/refresh", {"refresh_token": second["refresh_token"]})
        assert family.status == 401
        assert (await worker.send("GET", "/me", token=second["access_token"])).status == 401
        events = await worker.sql("select event from auth.audit_events order by id")
        assert ("refresh_reuse",) in events

    run(pg_database, work)


def test_refresh_replay_of_a_much_older_token(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        tokens = [(await worker.sign_in())["refresh_token"]]
        for _ in range(4):
            answer = await worker.post("/refresh", {"refresh_token": tokens[-1]})
            tokens.append(answer.json["refresh_token"])
        assert len(set(tokens)) == 5
        assert (await worker.post("/refresh", {"refresh_token": tokens[1]})).status == 401
        assert (await worker.post("/refresh", {"refresh_token": tokens[-1]})).status == 401

    run(pg_database, work)


def test_a_forged_refresh_token_ends_no_session(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        token = (await worker.sign_in())["refresh_token"]
        parsed = sessions.parse(token)
        assert parsed is not None
        for forged in (
            base64.urlsafe_b64encode(parsed.body[:16] + bytes(44)).decode(),
            base64.urlsafe_b64encode(parsed.body[:-1] + b"\0" + parsed.tag).decode(),
            token[:-4] + "AAAA",
            token[:-1],
            token + "A",
            "",
            "ü" * 80,
        ):
            if forged[:-16] == token[:-16]:
                continue  # the secret is right; its tag is looked at only when it is not
            answer = await worker.post("/refresh", {"refresh_token": forged})
            assert (answer.status, answer.code) == (401, "invalid_refresh_token")
        assert (await worker.post("/refresh", {"refresh_token": token})).status == 200

    run(pg_database, work)


def test_simultaneous_refreshes_get_one_successor(pg_database: str) -> None:
    async def work(one: Worker, two: Worker) -> None:
        await one.sign_up()
        for _ in range(5):
            token = (await one.sign_in())["refresh_token"]
            answers = await together(
                *(w.post("/refresh", {"refresh_token": token}) for w in (one, two) * 6)
            )
            assert {a.status for a in answers} == {200}
            assert len({a.json["refresh_token"] for a in answers}) == 1
            successor = answers[0].json["refresh_token"]
            assert (await two.post("/refresh", {"refresh_token": successor})).status == 200

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


def test_expired_codes_and_sessions(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.post("/login/passwordless/request", {"email": ANN})
        body = {"email": ANN, "code": await worker.code(ANN)}
        await worker.sql("update auth.codes set expires_at = now()")
        assert (await worker.post("/login/passwordless/verify", body)).code == "invalid_code"
        await worker.sign_up(BOB)
        for column in ("expires_at", "ends_at"):
            session = await worker.sign_in(BOB)
            await worker.sql(f"update auth.sessions set {column} = now()")
            answer = await worker.post("/refresh", {"refresh_token": session["refresh_token"]})
            assert answer.code == "invalid_refresh_token"

    run(pg_database, work, passwordless="otp", **OPEN)


def test_message_flood_to_one_address(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        for email in (ANN, "nobody@example.com"):
            body = {"email": email}
            assert (await worker.post("/password-reset/request", body)).status == 202
            answer = await worker.post("/password-reset/request", body, peer="198.51.100.8")
            assert (answer.status, answer.code) == (429, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 60

    run(pg_database, work)


def test_tokens_that_are_not_ours(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        good = (await worker.sign_in())["access_token"]
        claims = jwt.decode(good, options={"verify_signature": False})
        key = worker.project.keys[0]
        header = {"kid": key.kid}
        other = make_project(pg_database)
        bare = worker.project.anon_key.removeprefix("ich_pub_")
        secret = worker.project.service_key.removeprefix("ich_admin_")
        forged = {
            "alg none": jwt.encode(claims, None, algorithm="none", headers=header),
            "wrong key": jwt.encode(claims, "x" * 48, algorithm="HS256", headers=header),
            "wrong project": jwt.encode(
                claims, other.keys[0].secret, algorithm="HS256",
                headers={"kid": other.keys[0].kid},
            ),
            "stripped publishable key": bare,
            "stripped secret key": secret,
            "raised role": jwt.encode(
                {**claims, "role": "service_role"}, key.secret, algorithm="HS256", headers=header
            ),
            "expired": jwt.encode(
                {**claims, "exp": int(time.time()) - 60}, key.secret, algorithm="HS256",
                headers=header,
            ),
            "session of nobody": jwt.encode(
                {**claims, "session_id": str(uuid.uuid4())}, key.secret, algorithm="HS256",
                headers=header,
            ),
            "session of another user": jwt.encode(
                {**claims, "sub": str(uuid.uuid4())}, key.secret, algorithm="HS256", headers=header
            ),
            "subject that is no uuid": jwt.encode(
                {**claims, "sub": "1; drop table"}, key.secret, algorithm="HS256", headers=header
            ),
        }  # fmt: skip
        for name, token in forged.items():
            answer = await worker.send("GET", "/me", token=token)
            assert answer.status == 401, (name, answer)
            assert answer.code in ("invalid_token", "token_expired", "missing_token"), name
        for name, apikey in (("bare", bare), ("swapped", f"ich_admin_{bare}")):
            answer = await worker.send("GET", "/me", token=good, key=apikey)
            assert (answer.status, answer.code) == (401, "invalid_api_key"), name
        assert (await worker.send("GET", "/me", token=good)).status == 200

    run(pg_database, work)


def test_a_public_key_used_as_a_shared_secret(pg_database: str) -> None:
    key = tokens.new_signing_key("RS256")
    public = tokens._private(key).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        good = (await worker.sign_in())["access_token"]
        claims = worker.claims(good)
        body = msgspec.json.encode(claims)
        for secret in (pem, pem.strip(), key.secret.encode(), b""):
            for kid in (key.kid, worker.project.keys[1].kid, None):
                head = {"alg": "HS256", "typ": "JWT"} | ({"kid": kid} if kid else {})
                text = b".".join(
                    base64.urlsafe_b64encode(part).rstrip(b"=")
                    for part in (msgspec.json.encode(head), body)
                )
                mark = base64.urlsafe_b64encode(hmac.digest(secret, text, "sha256")).rstrip(b"=")
                answer = await worker.send("GET", "/me", token=f"{text.decode()}.{mark.decode()}")
                assert (answer.status, answer.code) == (401, "invalid_token")
        assert (await worker.send("GET", "/me", token=good)).status == 200

    run(pg_database, work, keys=(key,))


def test_one_kind_of_token_in_the_place_of_another(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        access, refresh = session["access_token"], session["refresh_token"]
        for token in (refresh, f"ich_pub_{access}", f"ich_admin_{access}"):
            answer = await worker.send("GET", "/me", token=token)
            assert answer.status == 401, token
        for key in (access, refresh, f"ich_pub_{access}", f"ich_admin_{access}"):
            answer = await worker.send("GET", "/me", token=access, key=key)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            answer = await worker.send("GET", "/admin/users", key=key)
            assert answer.status == 401
        answer = await worker.send("GET", "/admin/users", token=access)
        assert (answer.status, answer.code) == (403, "forbidden")
        answer = await worker.send("GET", "/admin/users", token=access, key="service")
        assert (answer.status, answer.code) == (403, "forbidden")
        for body in ({"refresh_token": access}, {"refresh_token": worker.project.anon_key}):
            answer = await worker.post("/refresh", body)
            assert (answer.status, answer.code) == (401, "invalid_refresh_token")
        for path in ("/login/magic", "/login/2fa/magic", "/verify-email"):
            for token in (access, refresh):
                answer = await worker.post(path, {"token": token})
                assert (answer.status, answer.code) == (400, "expired_token")

    run(pg_database, work, passwordless="magic", **OPEN)


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


def test_a_revoked_session_is_refused_by_every_worker_within_a_second(pg_database: str) -> None:
    async def work(one: Worker, two: Worker) -> None:
        await one.sign_up()
        for _ in range(3):  # a busy machine may not give it the time
            session = await one.sign_in()
            token = session["access_token"]
            assert two.claims(token)
            await one.post("/logout", {"refresh_token": session["refresh_token"]}, token=token)
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                answer = await two.send("GET", "/sessions", token=token)
                if answer.status == 401 and answer.json["detail"] == "The token has been revoked.":
                    return
                await asyncio.sleep(0.01)
        raise AssertionError("the token lives on")

    run(pg_database, work, workers=2)


def test_tokens_that_a_password_change_let_live_end_with_everything_else(
    pg_database: str,
) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        thief, mine = await worker.sign_in(), await worker.sign_in()
        body = {"current_password": PASSWORD, "new_password": "another lamp 42"}
        await worker.post("/change-password", body, token=mine["access_token"])
        assert (await worker.send("GET", "/me", token=thief["access_token"])).status == 200
        await worker.post("/logout-all", token=mine["access_token"])
        assert (await worker.send("GET", "/me", token=thief["access_token"])).status == 401

    run(pg_database, work)


def test_a_disabled_or_deleted_user_is_refused_at_once(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        for email, method in ((ANN, "PATCH"), (BOB, "DELETE")):
            user = (await worker.sign_up(email)).json["user_id"]
            session = await worker.sign_in(email)
            body = {"disabled": True} if method == "PATCH" else None
            done = await worker.send(method, f"/admin/users/{user}", body, key="service")
            assert done.status == 200
            answer = await worker.send("GET", "/me", token=session["access_token"])
            assert answer.status == 401
            answer = await worker.post("/refresh", {"refresh_token": session["refresh_token"]})
            assert answer.status in (401, 403)
        answer = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        assert (answer.status, answer.code) == (403, "user_disabled")

    run(pg_database, work)


def test_an_impersonation_token_cannot_be_refreshed_and_is_recorded(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        user = (await worker.sign_up()).json["user_id"]
        path = f"/admin/users/{user}/impersonate"
        assert (await worker.post(path, {})).status == 403
        answer = await worker.post(path, {"seconds": 120, "reason": "ticket 7"}, key="service")
        assert answer.status == 200
        assert "refresh_token" not in answer.json
        claims = worker.claims(answer.json["access_token"])
        assert claims["act"] == {"sub": "service_role"}
        assert claims["sub"] == user
        me = await worker.send("GET", "/me", token=answer.json["access_token"])
        assert me.status == 200
        found = await worker.sql(
            "select detail->>'reason' from auth.audit_events where event = 'impersonation'"
        )
        assert found == [("ticket 7",)]

    run(pg_database, work)


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


def test_clock_changes(pg_database: str) -> None:
    """The database's clock alone decides on codes, sessions and limits, and a clock that is set
    back neither logs users out nor locks them for long."""

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        first = await worker.sign_in()
        second = (await worker.post("/refresh", {"refresh_token": first["refresh_token"]})).json
        # As after the clock went back by an hour: what was written lies in the future.
        await worker.sql(
            "update auth.sessions set rotated_at = rotated_at + interval '1 hour',"
            " last_used_at = last_used_at + interval '1 hour',"
            " window_at = window_at + interval '1 hour'"
        )
        await worker.sql("update auth.rate_limits set due_at = due_at + interval '1 hour'")
        answer = await worker.post("/refresh", {"refresh_token": second["refresh_token"]})
        assert answer.status == 200
        limited = await worker.post("/login", {"email": ANN, "password": PASSWORD})
        if limited.status == 429:
            assert int(limited.headers["retry-after"]) <= 60

    run(pg_database, work)


@pytest.mark.parametrize(
    ("iat", "exp", "status"),
    [(29, 900, 200), (35, 900, 401), (-900, -25, 200), (-900, -31, 401), (-900, 900, 200)],
)
def test_clocks_of_two_machines_that_differ(
    pg_database: str, iat: int, exp: int, status: int
) -> None:
    """A token of a machine whose clock is up to thirty seconds away is as good as ours."""

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        claims = worker.claims((await worker.sign_in())["access_token"])
        now = int(time.time())
        claims = {**claims, "iat": now + iat, "exp": now + exp}
        token = tokens.sign(claims, worker.project.keys[0])
        answer = await worker.send("GET", "/me", token=token)
        assert answer.status == status, answer

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
