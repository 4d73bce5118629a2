"""Sign-up, sign-in, the user's own record, passwords and sessions."""

from __future__ import annotations

import json

import bcrypt
import jwt
import psycopg
import pytest
from argon2 import PasswordHasher

from ichicore.errors import ApiError
from server.auth.tokens import ALGORITHMS, new_signing_key
from server.control.sections import check
from tests.server.auth.harness import PASSWORD, Worker, run


def test_a_user_signs_up_signs_in_and_is_shown(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.sign_up(" Ann@Example.COM ")
        user_id = answer.json["user_id"]
        assert answer.json == {
            "user_id": user_id, "email": "ann@example.com", "needs_verification": False,
        }  # fmt: skip
        session = await worker.sign_in("ANN@example.com")
        assert session["user"] == {"id": user_id, "email": "ann@example.com"}
        assert session["expires_in"] == 900
        claims = worker.claims(session["access_token"])
        assert claims["sub"] == user_id
        assert claims["role"] == claims["aud"] == "authenticated"
        assert claims["iss"] == worker.project.url
        assert claims["email"] == "ann@example.com"
        assert claims["exp"] - claims["iat"] == 900
        me = await worker.send("GET", "/me", token=session["access_token"])
        assert me.status == 200
        assert me.json["id"] == user_id
        assert me.json["verified_at"] is None
        assert me.json["metadata"] == {}
        assert me.json["email_verified"] is False
        assert me.json["created_at"].endswith("Z")
        assert me.headers["cache-control"] == "no-store"

    run(pg_database, work)


def test_the_first_request_migrates_and_the_schema_takes_foreign_keys(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.sql(
            "create table public.notes (id int, owner uuid references auth.users on delete cascade)"
        )
        await worker.sql("insert into public.notes select 1, id from auth.users")
        user = (await worker.sql("select id from auth.users"))[0][0]
        gone = await worker.send("DELETE", f"/admin/users/{user}", key="service")
        assert gone.status == 200
        assert await worker.sql("select 1 from public.notes") == []

    run(pg_database, work)


def test_a_user_that_the_app_still_needs_is_not_deleted(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.sql("create table public.bills (owner uuid references auth.users)")
        await worker.sql("insert into public.bills select id from auth.users")
        user = (await worker.sql("select id from auth.users"))[0][0]
        answer = await worker.send("DELETE", f"/admin/users/{user}", key="service")
        assert (answer.status, answer.code) == (409, "conflict")

    run(pg_database, work)


def test_metadata_is_replaced_and_limited(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        token = (await worker.sign_in())["access_token"]
        done = await worker.send("PATCH", "/me", {"metadata": {"theme": "dark"}}, token=token)
        assert done.status == 200
        assert set(done.json) >= {"id", "email", "email_verified", "created_at", "metadata"}
        done = await worker.send("PATCH", "/me", {"metadata": {"tz": "UTC"}}, token=token)
        assert done.json["metadata"] == {"tz": "UTC"}
        just = {"k": "x" * (8192 - len('{"k":""}'))}
        assert (await worker.send("PATCH", "/me", {"metadata": just}, token=token)).status == 200
        just["k"] += "x"
        over = await worker.send("PATCH", "/me", {"metadata": just}, token=token)
        assert (over.status, over.code) == (400, "metadata_too_large")

    run(pg_database, work)


def test_change_password_keeps_access_tokens_and_ends_other_refresh_tokens(
    pg_database: str,
) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        mine, other = await worker.sign_in(), await worker.sign_in()
        body = {"current_password": PASSWORD, "new_password": "another lamp 42"}
        wrong = {**body, "current_password": "not the lamp"}
        answer = await worker.post("/change-password", wrong, token=mine["access_token"])
        assert (answer.status, answer.code) == (401, "invalid_credentials")
        answer = await worker.post("/change-password", body, token=mine["access_token"])
        assert answer.status == 200
        assert answer.json["changed"] is True
        assert isinstance(answer.json["hint"], str)
        for session in (mine, other):
            me = await worker.send("GET", "/me", token=session["access_token"])
            assert me.status == 200
        again = await worker.post("/refresh", {"refresh_token": mine["refresh_token"]})
        assert again.status == 200
        ended = await worker.post("/refresh", {"refresh_token": other["refresh_token"]})
        assert (ended.status, ended.code) == (401, "invalid_refresh_token")
        await worker.sign_in(password="another lamp 42")

    run(pg_database, work)


def test_sessions_are_listed_and_revoked(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.sign_up("bob@example.com")
        first = await worker.sign_in(headers={"user-agent": "phone"})
        second = await worker.sign_in(headers={"user-agent": "desk"}, peer="198.51.100.9")
        bob = await worker.sign_in("bob@example.com")
        token = second["access_token"]
        listed = (await worker.send("GET", "/sessions", token=token)).json["sessions"]
        assert [s["user_agent"] for s in listed] == ["desk", "phone"]
        assert listed[0]["ip"] == "198.51.100.9"
        assert set(listed[0]) == {
            "id", "user_agent", "ip", "issued_at", "last_used_at", "expires_at",
        }  # fmt: skip
        target = listed[1]["id"]
        stranger = await worker.post(f"/sessions/{target}/revoke", token=bob["access_token"])
        assert (stranger.status, stranger.code) == (404, "session_not_found")
        for _ in range(2):
            done = await worker.post(f"/sessions/{target}/revoke", token=token)
            assert (done.status, done.json) == (200, {"revoked": True})
        ended = await worker.send("GET", "/me", token=first["access_token"])
        assert (ended.status, ended.code) == (401, "invalid_token")
        assert (await worker.post("/sessions/nonsense/revoke", token=token)).status == 404

    run(pg_database, work)


def test_logout_ends_one_session_and_logout_all_every_one(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        one, two, three = [await worker.sign_in() for _ in range(3)]
        answer = await worker.post(
            "/logout", {"refresh_token": one["refresh_token"]}, token=one["access_token"]
        )
        assert answer.status == 200
        assert (await worker.send("GET", "/me", token=one["access_token"])).status == 401
        assert (await worker.send("GET", "/me", token=two["access_token"])).status == 200
        answer = await worker.post("/logout-all", token=two["access_token"])
        assert answer.status == 200
        for session in (two, three):
            assert (await worker.send("GET", "/me", token=session["access_token"])).status == 401
            refused = await worker.post("/refresh", {"refresh_token": session["refresh_token"]})
            assert refused.code == "invalid_refresh_token"
        assert (await worker.post("/logout-all", token=two["access_token"])).status == 401

    run(pg_database, work)


def test_logout_works_with_an_access_token_that_has_expired(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        one, two = await worker.sign_in(), await worker.sign_in()
        key = worker.project.keys[0]
        claims = {**worker.claims(one["access_token"]), "iat": 1, "exp": 2}
        late = jwt.encode(claims, key.secret, algorithm="HS256", headers={"kid": key.kid})
        wrong = jwt.encode(claims, "x" * 48, algorithm="HS256", headers={"kid": key.kid})
        body = {"refresh_token": one["refresh_token"]}
        for token, code, options in (
            (wrong, "invalid_token", {}),
            (late, "token_expired", {"key": None}),
            (late, "invalid_api_key", {"key": "ich_pub_x"}),
            (late, "token_expired", {"key": two["access_token"]}),
        ):
            answer = await worker.post("/logout", body, token=token, **options)
            assert (answer.status, answer.code) in ((401, code), (401, "invalid_api_key")), options
        for path, given in (("/logout-all", None), ("/logout", {"refresh_token": "x" * 80}),
                            ("/logout", {}), ("/me", None)):  # fmt: skip
            method = "GET" if path == "/me" else "POST"
            answer = await worker.send(method, path, given, token=late)
            assert (answer.status, answer.code) == (401, "token_expired"), path
        assert (await worker.post("/logout", body, token=late)).status == 200
        assert (await worker.post("/refresh", body)).code == "invalid_refresh_token"
        assert (await worker.send("GET", "/me", token=one["access_token"])).status == 401
        assert (await worker.send("GET", "/me", token=two["access_token"])).status == 200

    run(pg_database, work)


def test_reset_by_link_ends_all_sessions_and_works_once(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        answer = await worker.post("/password-reset/request", {"email": "ann@example.com"})
        assert (answer.status, answer.json) == (202, {"sent": True})
        token = await worker.link("ann@example.com")
        weak = await worker.post(
            "/password-reset/confirm", {"token": token, "new_password": "password"}
        )
        assert (weak.status, weak.code) == (400, "weak_password")
        body = {"token": token, "new_password": "another lamp 42"}
        done = await worker.post("/password-reset/confirm", body)
        assert (done.status, done.json) == (200, {"reset": True})
        again = await worker.post("/password-reset/confirm", body)
        assert (again.status, again.code) == (400, "expired_token")
        assert (await worker.send("GET", "/me", token=session["access_token"])).status == 401
        await worker.sign_in(password="another lamp 42")

    run(pg_database, work)


def test_reset_by_code(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        await worker.post("/password-reset/request", {"email": "ann@example.com"})
        code = await worker.code("ann@example.com")
        wrong = f"{(int(code) + 1) % 1_000_000:06d}"
        body = {"email": "ann@example.com", "code": wrong, "new_password": "another lamp 42"}
        answer = await worker.post("/password-reset/confirm-otp", body)
        assert (answer.status, answer.code) == (400, "invalid_code")
        done = await worker.post("/password-reset/confirm-otp", {**body, "code": code})
        assert (done.status, done.json) == (200, {"reset": True})
        await worker.sign_in(password="another lamp 42")

    run(pg_database, work, password_reset="both")


@pytest.mark.parametrize("how", ["link", "otp"])
def test_a_required_confirmation_comes_before_the_first_sign_in(pg_database: str, how: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.sign_up()
        assert answer.json["needs_verification"] is True
        credentials = {"email": "ann@example.com", "password": PASSWORD}
        early = await worker.post("/login", credentials)
        assert (early.status, early.code) == (403, "email_not_verified")
        if how == "link":
            body = {"token": await worker.link("ann@example.com")}
            done = await worker.post("/verify-email", body)
        else:
            body = {"email": "ann@example.com", "code": await worker.code("ann@example.com")}
            done = await worker.post("/verify-email/otp", body)
        assert (done.status, done.json) == (200, {"verified": True})
        token = (await worker.sign_in())["access_token"]
        assert (await worker.send("GET", "/me", token=token)).json["verified_at"] is not None

    run(pg_database, work, require_verified_email=True, verification=how)


def test_imported_and_weaker_hashes_verify_and_are_replaced(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        old = {
            "b@example.com": bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode(),
            "a@example.com": PasswordHasher(1, 1024, 1).hash(PASSWORD),
        }
        for email, hashed in old.items():
            body = {"email": email, "password_hash": hashed, "email_verified": True}
            assert (await worker.post("/admin/users", body, key="service")).status == 201
            await worker.sign_in(email)
            stored = await worker.sql("select password_hash from auth.users where email=$1", email)
            assert str(stored[0][0]).startswith("$argon2id$v=19$m=19456,t=2,p=1$")
            await worker.sign_in(email)
        body = {"email": "c@example.com", "password_hash": "$2b$31$" + "a" * 53}
        assert (await worker.post("/admin/users", body, key="service")).status == 400

    run(pg_database, work)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_signs_and_its_keys_rotate(pg_database: str, algorithm: str) -> None:
    old = new_signing_key(algorithm)

    async def work(worker: Worker) -> None:
        await worker.sign_up()
        before = (await worker.sign_in())["access_token"]
        fresh = new_signing_key("ES256")
        retired = [
            type(k)(k.kid, k.algorithm, k.secret, current=False) for k in worker.project.keys
        ]
        worker.with_keys(fresh, *retired)
        after = (await worker.sign_in())["access_token"]
        for token in (before, after):
            assert (await worker.send("GET", "/me", token=token)).status == 200
        found = await worker.send("GET", "/.well-known/jwks.json", key=None)
        assert found.status == 200
        kids = {key["kid"] for key in found.json["keys"]}
        assert kids == ({fresh.kid} if algorithm == "HS256" else {fresh.kid, old.kid})
        assert not any({"d", "k", "p", "q"} & set(key) for key in found.json["keys"])
        worker.with_keys(fresh, *[k for k in retired if k.kid != old.kid])
        if algorithm != "HS256":
            gone = await worker.send("GET", "/me", token=before)
            assert gone.status == 401

    run(pg_database, work, keys=(old,))


def test_the_claims_hook_adds_claims_and_a_failing_one_denies(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sql(
            """create function public.claims(event jsonb) returns jsonb language plpgsql as $$
            begin
              if event->>'email' like 'evil%' then raise exception 'no'; end if;
              if event->>'email' like 'slow%' then perform pg_sleep(5); end if;
              return jsonb_build_object('plan', 'pro', 'role', 'service_role', 'by', current_user,
                'method', event->>'method');
            end $$"""
        )
        await worker.sign_up()
        session = await worker.sign_in()
        claims = worker.claims(session["access_token"])
        assert claims["plan"] == "pro"
        assert claims["role"] == "authenticated"
        assert claims["by"] == "service_role"
        assert claims["method"] == "password"
        again = await worker.post("/refresh", {"refresh_token": session["refresh_token"]})
        claims = worker.claims(again.json["access_token"])
        assert claims["method"] == "refresh"
        user = claims["sub"]
        lent = await worker.post(f"/admin/users/{user}/impersonate", {}, key="service")
        claims = worker.claims(lent.json["access_token"])
        assert (claims["plan"], claims["method"]) == ("pro", "impersonation")
        for email in ("evil@example.com", "slow@example.com"):
            await worker.sign_up(email)
            answer = await worker.post("/login", {"email": email, "password": PASSWORD})
            assert (answer.status, answer.code) == (403, "sign_in_denied")

    run(pg_database, work, claims_hook="public.claims")


def test_keys_and_tokens_are_asked_for(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        answer = await worker.post("/login", {"email": "a@b.c", "password": PASSWORD}, key=None)
        assert (answer.status, answer.code) == (401, "missing_api_key")
        answer = await worker.send("GET", "/me")
        assert (answer.status, answer.code) == (401, "missing_token")
        answer = await worker.send("GET", "/me", token=worker.project.anon_key)
        assert (answer.status, answer.code) == (401, "missing_token")
        answer = await worker.send("GET", "/login")
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert (await worker.post("/nothing")).status == 404
        answer = await worker.send("GET", "/admin/users")
        assert (answer.status, answer.code) == (403, "forbidden")

    run(pg_database, work)


def test_sign_up_can_be_closed(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        body = {"email": "ann@example.com", "password": PASSWORD}
        answer = await worker.post("/signup", body)
        assert (answer.status, answer.code) == (403, "signup_disabled")
        assert (await worker.post("/signup", body, key="service")).status == 201

    run(pg_database, work, signup_enabled=False)


def test_tables_of_the_schema_are_closed_to_the_request_roles(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        with psycopg.connect(pg_database, autocommit=True) as connection:
            connection.execute("grant usage on schema auth to anon, authenticated, service_role")
            tables = [
                row[0]
                for row in connection.execute(
                    "select relname from pg_class where relnamespace = 'auth'::regnamespace"
                    " and relkind = 'r'"
                )
            ]
            assert len(tables) >= 9
            for role in ("anon", "authenticated", "service_role"):
                connection.execute(f"set role {role}")
                for table in tables:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(f"select 1 from auth.{table}")
                connection.execute("reset role")

    run(pg_database, work)


def test_settings_are_refused_with_their_reason() -> None:
    for bad in (
        {"redirect_urls": ["https://user@host/"]},
        {"redirect_urls": ["https://*.com/cb"]},
        {"landing": {"passwordless": "javascript://x"}},
        {"providers": {"work": {"client_id": "x", "client_secret": "y"}}},
        {"providers": {"apple": {"client_id": "x"}}},
        {"templates": {"nonsense": {}}},
        {"claims_hook": "a; drop table b"},
        {"access_token_seconds": 5},
        {"unknown": 1},
    ):
        with pytest.raises(ApiError) as caught:
            check("auth", json.dumps(bad).encode())
        assert caught.value.code == "invalid_settings"
    good = check("auth", b'{"redirect_urls":["https://*.example.com/cb","app://in"]}')
    assert check("auth", json.dumps(good).encode()) == good
