"""What is tried with tokens and sessions, and with the clock that they live by."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
import uuid

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.auth import sessions, tokens
from tests.server.auth.harness import OPEN, PASSWORD, Worker, make_project, run, together

ANN, BOB = "ann@example.com", "bob@example.com"


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
