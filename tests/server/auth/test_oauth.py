"""Sign-in at a provider that speaks OpenID Connect, started by the test."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import httpx
import pytest

from server.auth import oauth, providers, redirects
from server.auth.providers import ProviderError, apple_name, challenge, github_person
from server.auth.tokens import new_signing_key
from tests.server.auth.big_providers import Apple, GitHub
from tests.server.auth.harness import PASSWORD, Answer, Worker, run
from tests.server.auth.provider import CLIENT_ID, CLIENT_SECRET, Provider, visit

BACK = "https://app.example.com/signed-in"
ANN = "ann@example.com"


def with_provider(
    dsn: str, work: Callable[[Worker, Provider], Awaitable[None]], **settings: Any
) -> None:
    async def wrapped(worker: Worker) -> None:
        provider = Provider(f"{worker.project.url}/auth/oauth/work/callback")
        async with await provider.start():
            worker.configure(
                providers={
                    "work": {
                        "kind": "oidc", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
                        "issuer": provider.issuer,
                    },
                    "other": {
                        "kind": "oidc", "client_id": "x", "client_secret": "y",
                        "issuer": provider.issuer,
                    },
                    "off": {
                        "kind": "github", "client_id": "x", "client_secret": "y", "enabled": False,
                    },
                },
                redirect_urls=[BACK, "https://*.preview.example.com/in", "shop://signed-in"],
                **settings,
            )  # fmt: skip
            await work(worker, provider)

    run(dsn, wrapped)


async def set_out(worker: Worker, redirect: str = BACK, **more: str) -> Answer:
    query = urlencode({"redirect": redirect, **more})
    return await worker.send("GET", "/oauth/work/authorize", key=None, query=query)


def cookie(answer: Answer) -> str:
    value = next(v for k, v in answer.all_headers if k == "set-cookie")
    assert "HttpOnly" in value
    assert "SameSite=Lax" in value
    return value.split(";")[0]


async def come_back(worker: Worker, location: str, jar: str, **options: Any) -> Answer:
    return await worker.send(
        "GET", "/oauth/work/callback", key=None, query=urlsplit(location).query,
        headers={"cookie": jar}, **options,
    )  # fmt: skip


async def sign_in(worker: Worker, redirect: str = BACK, **more: str) -> Answer:
    begun = await set_out(worker, redirect, **more)
    assert begun.status == 302, begun
    return await come_back(worker, await visit(begun.headers["location"]), cookie(begun))


def landed(answer: Answer) -> dict[str, str]:
    """What the app's page finds in its address."""
    assert answer.status == 302, answer
    parts = urlsplit(answer.headers["location"])
    return dict(parse_qsl(parts.fragment or parts.query))


def test_a_session_comes_in_the_fragment(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        answer = await sign_in(worker)
        assert answer.headers["location"].startswith(f"{BACK}#")
        found = landed(answer)
        assert found["token_type"] == "bearer"
        assert found["expires_in"] == "900"
        assert found["email"] == ANN
        me = await worker.send("GET", "/me", token=found["access_token"])
        assert me.json["email_verified"] is True
        assert me.json["id"] == found["user_id"]
        again = landed(await sign_in(worker, "https://pr-7.preview.example.com/in"))
        assert again["user_id"] == found["user_id"]
        assert landed(await sign_in(worker, "shop://signed-in"))["user_id"] == found["user_id"]
        refreshed = await worker.post("/refresh", {"refresh_token": found["refresh_token"]})
        assert refreshed.status == 200

    with_provider(pg_database, work)


def test_a_code_is_redeemed_once_with_the_apps_own_verifier(pg_database: str) -> None:
    verifier = "v" * 50

    async def work(worker: Worker, provider: Provider) -> None:
        own = {"code_challenge": challenge(verifier), "code_challenge_method": "S256"}
        answer = await sign_in(worker, **own)
        assert answer.headers["location"].startswith(f"{BACK}?")
        body = {"code": landed(answer)["code"], "code_verifier": verifier}
        done = await worker.post("/oauth/exchange", body)
        assert done.status == 200
        assert done.json["user"]["email"] == ANN
        assert (await worker.post("/oauth/exchange", body)).code == "expired_token"
        stolen = {"code": landed(await sign_in(worker, **own))["code"], "code_verifier": "x" * 50}
        assert (await worker.post("/oauth/exchange", stolen)).code == "invalid_code"
        plain = await set_out(worker, code_challenge="p" * 43, code_challenge_method="plain")
        assert (plain.status, plain.code) == (400, "bad_request")

    with_provider(pg_database, work)


def test_open_redirect(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        for target in (
            "https://evil.example", "https://app.example.com", "https://app.example.com/other",
            "https://app.example.com.evil.example/signed-in", f"{BACK}?x=1", f"{BACK}#x",
            "https://app.example.com@evil.example/signed-in", "//app.example.com/signed-in",
            "https://a.b.preview.example.com/in", "https://.preview.example.com/in",
            "https://evil.example\\.preview.example.com/in", "javascript:alert(1)", "",
            "https://app.example.com\t/signed-in", "http://app.example.com/signed-in",
            "https://app.example.com:444/signed-in", "https://*.preview.example.com/in",
            "https://evil.example%2f.preview.example.com/in", "shop://signed-in/x",
        ):  # fmt: skip
            answer = await set_out(worker, target)
            assert (answer.status, answer.code) == (400, "invalid_redirect"), target
            assert "location" not in answer.headers
        twice = f"redirect={quote(BACK)}&redirect={quote('https://evil.example')}"
        answer = await worker.send("GET", "/oauth/work/authorize", key=None, query=twice)
        assert (answer.status, answer.code) == (400, "bad_request")

    with_provider(pg_database, work)


def test_an_unknown_or_disabled_provider(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        for name, status, code in (
            ("nobody", 404, "unknown_provider"),
            ("off", 403, "provider_disabled"),
        ):
            query = urlencode({"redirect": BACK})
            answer = await worker.send("GET", f"/oauth/{name}/authorize", key=None, query=query)
            assert (answer.status, answer.code) == (status, code)

    with_provider(pg_database, work)


def test_oauth_state_mix_up_and_code_injection(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        victim, attacker = await set_out(worker), await set_out(worker)
        prepared = await visit(attacker.headers["location"])
        # The attacker's way back in the victim's browser: login CSRF.
        answer = await come_back(worker, prepared, cookie(victim))
        assert (answer.status, answer.code) == (400, "bad_request")
        # Its state is spent even in the right browser.
        answer = await come_back(worker, prepared, cookie(attacker))
        assert answer.status == 400
        # The attacker's code with the victim's state: PKCE binds the code to its own sign-in.
        fresh = await set_out(worker)
        code = dict(parse_qsl(urlsplit(await visit(fresh.headers["location"])).query))["code"]
        state = dict(parse_qsl(urlsplit(victim.headers["location"]).query))["state"]
        mixed = "?" + urlencode({"code": code, "state": state})
        assert landed(await come_back(worker, mixed, cookie(victim)))["error"] == "provider_error"
        # The answer of one provider at the callback of another.
        begun = await set_out(worker)
        location = await visit(begun.headers["location"])
        answer = await worker.send(
            "GET", "/oauth/other/callback", key=None, query=urlsplit(location).query,
            headers={"cookie": cookie(begun)},
        )  # fmt: skip
        assert answer.status == 400
        # No state, a state of nobody, and no cookie.
        for query in ("", "?code=x", "?code=x&state=y"):
            assert (await come_back(worker, query, "")).status == 400
        begun = await set_out(worker)
        assert (await come_back(worker, await visit(begun.headers["location"]), "")).status == 400

    with_provider(pg_database, work, rate_limits={"oauth_per_ip": {"count": 999, "seconds": 1}})


def test_an_id_token_made_for_something_else(pg_database: str) -> None:
    later = int(time.time()) + 3600
    spoils: list[dict[str, Any]] = [
        {"nonce": "another"}, {"aud": "another"}, {"iss": "https://evil.example"}, {"exp": 1},
        {"aud": [CLIENT_ID, "another"]}, {"azp": "another"}, {"sub": ""}, {"iat": later},
    ]  # fmt: skip

    async def work(worker: Worker, provider: Provider) -> None:
        for spoil in spoils:
            provider.spoil = spoil
            assert landed(await sign_in(worker))["error"] == "provider_error", spoil
        assert await worker.sql("select 1 from auth.users") == []

    with_provider(pg_database, work)


def test_an_id_token_signed_by_an_unknown_key(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        assert "access_token" in landed(await sign_in(worker))
        known = provider.key
        provider.key = type(known)(known.kid, "RS256", new_signing_key("RS256").secret)
        assert landed(await sign_in(worker))["error"] == "provider_error"

    with_provider(pg_database, work)


def test_an_answer_that_names_another_issuer(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        provider.announce_iss = provider.issuer
        assert "access_token" in landed(await sign_in(worker))
        provider.announce_iss = "https://evil.example"
        assert landed(await sign_in(worker))["error"] == "provider_error"

    with_provider(pg_database, work)


def test_accounts_join_only_when_both_sides_verified_the_address(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        user = (await worker.sign_up(ANN)).json["user_id"]
        refused = landed(await sign_in(worker))
        assert refused["error"] == "email_not_verified"
        await worker.post("/verify-email/resend", {"email": ANN})
        await worker.post("/verify-email", {"token": await worker.link(ANN)})
        provider.person = {**provider.person, "sub": "p-2", "email_verified": False}
        stranger = landed(await sign_in(worker))
        assert stranger["user_id"] != user
        assert "email" not in stranger
        provider.person = {**provider.person, "sub": "p-1", "email_verified": True}
        assert landed(await sign_in(worker))["user_id"] == user
        await worker.sign_in(ANN, PASSWORD)
        shown = await worker.send("GET", f"/admin/users/{user}", key="service")
        assert [i["subject"] for i in shown.json["identities"]] == ["p-1"]

    with_provider(pg_database, work)


def test_sign_up_by_provider_can_be_closed(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        assert landed(await sign_in(worker))["error"] == "signup_disabled"

    with_provider(pg_database, work, signup_enabled=False)


def test_a_user_who_says_no_at_the_provider(pg_database: str) -> None:
    async def work(worker: Worker, provider: Provider) -> None:
        begun = await set_out(worker)
        state = dict(parse_qsl(urlsplit(begun.headers["location"]).query))["state"]
        back = "?" + urlencode({"error": "access_denied", "state": state})
        assert landed(await come_back(worker, back, cookie(begun)))["error"] == "access_denied"

    with_provider(pg_database, work)


def test_a_provider_that_is_away(pg_database: str) -> None:
    async def work(worker: Worker) -> None:
        worker.configure(
            providers={
                "work": {
                    "kind": "oidc", "client_id": "x", "client_secret": "y",
                    "issuer": "http://127.0.0.1:9",
                }
            },
            redirect_urls=[BACK],
        )  # fmt: skip
        answer = await set_out(worker)
        assert (answer.status, answer.code) == (503, "unavailable")

    run(pg_database, work)


async def at(
    worker: Worker, name: str, client: dict[str, Any], redirect: str = BACK
) -> tuple[str, str]:
    """Sets out for a provider; gives the address it is sent to and the cookie."""
    worker.configure(providers={name: client}, redirect_urls=[BACK])
    query = urlencode({"redirect": redirect})
    begun = await worker.send("GET", f"/oauth/{name}/authorize", key=None, query=query)
    assert begun.status == 302, begun
    return begun.headers["location"], cookie(begun)


def test_apple_posts_its_answer_and_wants_a_signed_secret(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker) -> None:
        apple = Apple()
        async with await apple.start():
            monkeypatch.setattr(providers, "APPLE", apple.base)
            client = {
                "client_id": "com.example.shop", "team_id": "TEAM", "key_id": "KEY",
                "private_key": apple.key.secret,
            }  # fmt: skip
            location, jar = await at(worker, "apple", client)
            async with httpx.AsyncClient() as browser:
                posted = (await browser.get(location)).json()
            posted["user"] = '{"name":{"firstName":"Ann","lastName":"Lee"},"email":"x@y.z"}'
            answer = await worker.send(
                "POST", "/oauth/apple/callback", key=None, raw=urlencode(posted).encode(),
                headers={"cookie": jar},
            )  # fmt: skip
            found = landed(answer)
            me = (await worker.send("GET", "/me", token=found["access_token"])).json
            assert (me["email"], me["email_verified"]) == (ANN, True)
            assert me["metadata"]["name"] == "Ann Lee"
            # The second time it sends no name, and another client's key is refused.
            for key, wanted in ((apple.key.secret, None), (apple.own.secret, "provider_error"),
                                (new_signing_key("ES256").secret, "provider_error")):  # fmt: skip
                location, jar = await at(worker, "apple", {**client, "private_key": key})
                async with httpx.AsyncClient() as browser:
                    posted = (await browser.get(location)).json()
                answer = await worker.send(
                    "POST", "/oauth/apple/callback", key=None, raw=urlencode(posted).encode(),
                    headers={"cookie": jar},
                )  # fmt: skip
                assert landed(answer).get("error") == wanted
        for bad in ("", "x", "[]", '{"name":[]}', '{"name":{"firstName":1}}', "[" * 9000):
            assert apple_name(bad) == {}

    run(pg_database, work)


def test_a_provider_that_posts_needs_a_cookie_that_posts_carry() -> None:
    call = SimpleNamespace(project=SimpleNamespace(url="https://shop.example.com"))
    made = oauth._set_cookie(call, "state", "value", True, 60)  # type: ignore[arg-type]
    assert made.endswith("HttpOnly; SameSite=None; Secure")
    made = oauth._set_cookie(call, "state", "value", False, 60)  # type: ignore[arg-type]
    assert made.endswith("HttpOnly; SameSite=Lax; Secure")


def test_github_is_asked_for_the_person_and_the_addresses(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker) -> None:
        hub = GitHub()
        async with await hub.start():
            monkeypatch.setattr(providers, "GITHUB_AUTHORIZE", f"{hub.base}/login/oauth/authorize")
            monkeypatch.setattr(providers, "GITHUB_TOKEN", f"{hub.base}/login/oauth/access_token")
            monkeypatch.setattr(providers, "GITHUB_API", hub.base)
            client = {"client_id": "hub", "client_secret": "hub secret"}

            async def signed_in(**other: Any) -> dict[str, str]:
                location, jar = await at(worker, "github", {**client, **other})
                back = urlsplit(await visit(location)).query
                return landed(
                    await worker.send(
                        "GET", "/oauth/github/callback", key=None, query=back,
                        headers={"cookie": jar},
                    )
                )  # fmt: skip

            found = await signed_in()
            me = (await worker.send("GET", "/me", token=found["access_token"])).json
            assert (me["email"], me["email_verified"]) == (ANN, True)
            assert me["metadata"]["avatar_url"] == "https://x/y.png"
            assert (await signed_in())["user_id"] == found["user_id"]
            assert (await signed_in(client_secret="wrong"))["error"] == "provider_error"
            hub.emails = None
            assert (await signed_in())["error"] == "provider_error"

    run(pg_database, work)


def test_google_is_an_issuer_of_its_own(pg_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(worker: Worker) -> None:
        provider = Provider(f"{worker.project.url}/auth/oauth/google/callback")
        async with await provider.start():
            monkeypatch.setattr(providers, "GOOGLE", provider.issuer)
            client = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
            location, jar = await at(worker, "google", client)
            assert set(dict(parse_qsl(urlsplit(location).query))["scope"].split()) == {
                "openid", "email", "profile",
            }  # fmt: skip
            answer = await worker.send(
                "GET", "/oauth/google/callback", key=None,
                query=urlsplit(await visit(location)).query, headers={"cookie": jar},
            )  # fmt: skip
            assert landed(answer)["email"] == ANN

    run(pg_database, work)


def test_github_vouches_for_the_primary_address_alone() -> None:
    user = {"id": 7, "login": "ann"}
    emails = [
        {"email": "other@example.com", "primary": False, "verified": True},
        {"email": "Ann@Example.com", "primary": True, "verified": False},
    ]
    person = github_person(user, emails)
    assert (person.subject, person.email, person.verified) == ("7", ANN, False)
    assert github_person(user, []).email is None
    for bad in (None, [], {"id": "7"}, {}):
        with pytest.raises(ProviderError):
            github_person(bad, emails)


def test_redirect_rules() -> None:
    rules = ("https://*.example.com/cb", "http://localhost:*/cb", "app://in")
    for url in ("https://a.example.com/cb", "https://A.EXAMPLE.com:443/cb", "app://in",
                "http://localhost:3000/cb"):  # fmt: skip
        assert redirects.allowed(url, rules), url
    for url in ("https://example.com/cb", "https://a.b.example.com/cb", "app://in2", "app:in",
                "http://localhost.evil/cb", "https://a.example.com/CB"):  # fmt: skip
        assert not redirects.allowed(url, rules), url
