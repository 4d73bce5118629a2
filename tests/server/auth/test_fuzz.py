"""Whatever is sent, the answer is a coded 4xx or what the endpoint promises; never a fault."""

from __future__ import annotations

import asyncio
import string
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.auth import accounts
from server.auth.service import ADMIN_ROUTES, ROUTES, USER_ROUTES
from tests.server.auth import shapes
from tests.server.auth.harness import PASSWORD, Worker, run

FIELDS = (
    "email", "password", "token", "code", "new_password", "current_password", "refresh_token",
    "phone", "metadata", "app_metadata", "code_verifier", "type", "password_hash", "seconds",
    "reason", "disabled", "email_verified",
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["ann@example.com", "+14155551234", PASSWORD, "123456", "x" * 43, "x" * 300, "\0", "\ud7ff",
         "{}", "null", "$2b$04$" + "a" * 53, "$argon2id$v=19$m=1,t=1,p=1$aaaa$bbbb", "magic"]
    ),
    st.text(string.ascii_letters + string.digits + "-_", min_size=80, max_size=80),
)  # fmt: skip
SCALARS = st.one_of(
    TEXTS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
BODIES = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), TEXTS, max_size=6).map(orjson.dumps),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6).map(
        lambda value: (
            orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
            if _fits(value)
            else b"{"
        )
    ),
    st.binary(max_size=60),
)
SEGMENTS = st.one_of(
    st.text(max_size=20).filter(lambda t: "/" not in t),
    st.sampled_from(["00000000-0000-0000-0000-000000000000", "..", "", "%00", "\0"]),
)
PATHS = st.one_of(
    st.sampled_from([*ROUTES, *ADMIN_ROUTES, "/.well-known/jwks.json", "/landing"]),
    SEGMENTS.map(lambda s: f"/sessions/{s}/revoke"),
    SEGMENTS.map(lambda s: f"/oauth/{s}/authorize"),
    SEGMENTS.map(lambda s: f"/oauth/{s}/callback"),
    st.tuples(SEGMENTS, st.sampled_from(sorted(USER_ROUTES))).map(
        lambda pair: f"/admin/users/{pair[0]}" + (f"/{pair[1]}" if pair[1] else "")
    ),
    st.text(max_size=30).map(lambda t: "/" + t),
)
QUERIES = st.one_of(
    st.just(""),
    st.text(max_size=40),
    st.tuples(
        st.sampled_from(["page", "per_page", "query", "limit", "before", "user_id", "redirect",
                         "state", "code", "error"]),
        st.text(max_size=20),
    ).map("=".join),
)  # fmt: skip
RATES = {
    name: {"count": 1_000_000, "seconds": 1}
    for name in ("login_per_ip", "signup_per_ip", "verify_per_ip", "message_per_ip", "oauth_per_ip",
                 "login_per_ip_and_email", "login_per_email", "message_per_address",
                 "message_per_address_hour", "verify_per_ip_and_address", "verify_per_address_hour",
                 "password_per_user")
}  # fmt: skip


def test_every_endpoint_is_fuzzed_by_its_shape() -> None:
    known = {(m, p) for routes in (ROUTES, ADMIN_ROUTES) for p, of in routes.items() for m in of}
    known |= {
        (m, f"/admin/users/{{id}}/{rest}".rstrip("/"))
        for rest, of in USER_ROUTES.items()
        for m in of
    }
    assert known == set(shapes.BODIES) | shapes.BARE


async def fuzz(worker: Worker, method: str, path: str, token: str | None) -> None:
    """One endpoint with many bodies made from the type that it takes."""
    kind = shapes.BODIES.get((method, path.replace(worker.user, "{id}")))
    key = "service" if path.startswith("/admin") else "anon"
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=25 if kind else 4, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(shapes.bodies(kind))
    def check(raw: bytes) -> None:
        call = worker.send(method, path, raw=raw, key=key, token=token)
        answer = asyncio.run_coroutine_threadsafe(call, loop).result(20)
        assert 200 <= answer.status < 500, (path, raw, answer)
        assert answer.code != "not_found", (path, answer)
        if answer.status >= 400:
            assert isinstance(answer.json["code"], str)
            assert isinstance(answer.json["detail"], str)
            assert "Traceback" not in answer.json["detail"]

    await asyncio.to_thread(check)
    await worker.service.room.settle()


@pytest.mark.parametrize("part", range(4))
def test_every_endpoint_takes_bodies_of_its_own_shape(
    pg_database: str, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(accounts, "REFUSAL_SECONDS", 0.0)

    async def work(worker: Worker) -> None:
        worker.user = (await worker.sign_up(shapes.EXISTING)).json["user_id"]
        hashed = await worker.service.room.passwords.hash(worker.project, PASSWORD)
        for method, path in sorted([*shapes.BODIES, *shapes.BARE])[part::4]:
            # Whatever an administrator's example did to the user is undone.
            await worker.sql("delete from auth.users where email = $1", shapes.EXISTING)
            await worker.sql(
                "insert into auth.users (id, email, password_hash) values ($1::uuid, $2, $3)"
                " on conflict (id) do update set email = $2, password_hash = $3,"
                " disabled_at = null",
                worker.user, shapes.EXISTING, hashed,
            )  # fmt: skip
            await worker.forget_limits()
            session = await worker.sign_in(shapes.EXISTING)
            token = None if path.startswith("/admin") else session["access_token"]
            await fuzz(worker, method, path.replace("{id}", worker.user), token)

    run(
        pg_database, work, rate_limits=RATES, passwordless="both", phone={"enabled": True},
        lockout={"free": 100_000, "free_per_email": 100_000}, password_reset="both",
    )  # fmt: skip


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def test_every_endpoint_takes_anything(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        await worker.sign_up()
        session = await worker.sign_in()
        loop = asyncio.get_running_loop()

        @settings(
            max_examples=300, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(
            st.sampled_from(["GET", "POST", "PATCH", "DELETE", "PUT"]), PATHS, BODIES, QUERIES,
            st.sampled_from([None, "anon", "service"]), st.booleans(),
        )  # fmt: skip
        def check(
            method: str, path: str, raw: bytes, query: str, key: str | None, signed_in: bool
        ) -> None:
            if path == "/logout-all":
                return  # would end the session that the other examples use
            token = session["access_token"] if signed_in else None
            call = worker.send(method, path, raw=raw, query=query, key=key, token=token)
            answer = asyncio.run_coroutine_threadsafe(call, loop).result(20)
            assert 200 <= answer.status < 500, (path, raw, answer)
            if answer.status >= 400:
                assert isinstance(answer.json["code"], str)
                assert isinstance(answer.json["detail"], str)

        await asyncio.to_thread(check)
        await worker.service.room.settle()

    run(
        pg_database, work, rate_limits=RATES, passwordless="both", phone={"enabled": True},
        providers={"github": {"client_id": "x", "client_secret": "y"}},
        redirect_urls=["https://app.example.com/cb"],
    )  # fmt: skip
