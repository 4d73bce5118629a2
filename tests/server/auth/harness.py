"""A worker's auth service over a real database, with credentials read by the gateway's key ring."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psycopg

from ichicore.errors import ApiError
from server.auth import outbox
from server.auth.service import AuthService, create
from server.base.context import TOKEN_REVOKED, NodeConfig, WorkerContext
from server.base.http import Request, Response
from server.base.keys import Denied, KeyRing, revoke
from server.base.project import NOBODY, Identity, Project, SigningKey
from server.control.secrets import new_signing_key, project_key
from server.postgres.pool import Pool

PASSWORD = "tangerine lamp 41"
SHARED = ("anon", "authenticated", "service_role")
# No limit of how often something may be tried, for tests of other things.
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


def make_project(dsn: str, *, keys: tuple[SigningKey, ...] = (), **settings: Any) -> Project:
    """A project whose logins are all the cluster's superuser."""
    used = keys or (new_signing_key(),)
    hmac_key = used[0] if used[0].algorithm == "HS256" else new_signing_key()
    if hmac_key not in used:
        used = (*used, SigningKey(hmac_key.kid, "HS256", hmac_key.secret, current=False))
    slug, url = "shop", "http://127.0.0.1:8000"
    return Project(
        id=uuid.uuid4().hex[:12], slug=slug, flavor="postgres", tier="pro", url=url, keys=used,
        anon_key=project_key(slug, url, "anon", hmac_key),
        service_key=project_key(slug, url, "service_role", hmac_key),
        storage_secret="storage secret of the test", authenticator_dsn=dsn, owner_dsn=dsn,
        system_dsn=dsn, mongo_url=None, settings={"auth": settings}, revision=1,
    )  # fmt: skip


class LocalBus:
    """A bus with one listener list, in place of the control database's."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Callable[[dict[str, Any]], None]]] = {}

    async def publish(self, topic: str, payload: dict[str, Any]) -> None:
        for callback in self.callbacks.get(topic, []):
            callback(payload)

    def subscribe(self, topic: str, callback: Callable[[dict[str, Any]], None]) -> None:
        self.callbacks.setdefault(topic, []).append(callback)


class LocalDirectory:
    def get(self, slug: str) -> Project | None:
        return None

    def on_change(self, callback: Callable[[Project | None, str], None]) -> None:
        self.callback = callback


class LocalPools:
    def __init__(self, **options: Any) -> None:
        self.pools: dict[str, Pool] = {}
        self.options = options

    def system(self, project: Project) -> Pool:
        return self._pool(project.system_dsn)

    def data(self, project: Project) -> Pool:
        return self._pool(project.authenticator_dsn)

    def _pool(self, dsn: str | None) -> Pool:
        assert dsn is not None
        if dsn not in self.pools:
            self.pools[dsn] = Pool(dsn, max_size=6, **self.options)
        return self.pools[dsn]

    async def close(self) -> None:
        for pool in self.pools.values():
            await pool.close()


class Answer:
    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers = dict(response.headers)
        self.all_headers = response.headers
        self.raw = response.body

    @property
    def json(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def code(self) -> str | None:
        return self.json.get("code") if self.status >= 400 else None

    def __repr__(self) -> str:
        return f"<{self.status} {self.raw[:300]!r}>"


class Worker:
    """One worker process' auth service and the gateway's side of credentials."""

    def __init__(self, service: AuthService, project: Project, pools: LocalPools, bus: LocalBus):
        self.service = service
        self.project = project
        self.pools = pools
        self.user = ""  # whom a test is about
        self.denied = Denied()
        self.ring = KeyRing(project, self.denied)
        bus.subscribe(TOKEN_REVOKED, lambda message: revoke(self.denied, message))

    def configure(self, **settings: Any) -> None:
        """Replace the project's auth settings, as a new revision."""
        self.project = msgspec.structs.replace(
            self.project, settings={"auth": settings}, revision=self.project.revision + 1
        )

    def with_keys(self, *keys: SigningKey) -> None:
        """Replace the project's keys, as a new revision."""
        self.project = msgspec.structs.replace(
            self.project, keys=keys, revision=self.project.revision + 1
        )
        self.ring = KeyRing(self.project, self.denied)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "anon",
        token: str | None = None,
        query: str = "",
        headers: dict[str, str] | None = None,
        peer: str = "203.0.113.7",
        raw: bytes | None = None,
    ) -> Answer:
        """One request as the gateway hands it on."""
        given = {"user-agent": "tests", **(headers or {})}
        apikey = {"anon": self.project.anon_key, "service": self.project.service_key}.get(
            key or "", key
        )
        data = raw if raw is not None else (b"" if body is None else orjson.dumps(body))

        async def read_body(limit: int) -> bytes:
            if len(data) > limit:
                raise ApiError(413, "payload_too_large", "The body is too large.")
            return data

        refusal = None
        if apikey is not None:
            given["apikey"] = apikey
        try:
            identity = self.ring.identify(
                None if token is None else f"Bearer {token}", apikey, time.time()
            )
        except ApiError as error:
            identity, refusal = NOBODY, error
        request = Request(
            method, path, query, given, project=self.project, identity=identity,
            base_url=self.project.url, peer=peer, id=uuid.uuid4().hex, read_body=read_body,
            read_stream=lambda limit: iter(()),  # type: ignore[arg-type,return-value]
        )  # fmt: skip
        request.refusal = refusal
        return Answer(await self.service.handle(request))

    def claims(self, token: str) -> dict[str, Any]:
        """What the gateway reads from an access token."""
        return self.ring.identify(f"Bearer {token}", None, time.time()).claims

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.send("POST", path, body, **options)

    async def sql(self, text: str, *params: object) -> list[tuple[str | None, ...]]:
        return await self.pools.system(self.project).fetch(text, params)

    async def outbox(self, to: str | None = None) -> list[dict[str, Any]]:
        """Messages so far, newest first, once everything under way has arrived."""
        await self.service.room.settle()
        rows = await self.sql(outbox.LIST, to, 500)
        return [orjson.loads(row[0] or "") for row in rows]

    async def code(self, to: str) -> str:
        """The code in the newest message to an address."""
        found = re.search(r"\b([0-9]{6})\b", (await self.outbox(to))[0]["text"])
        assert found
        return found[1]

    async def link(self, to: str) -> str:
        """The token in the newest message to an address."""
        found = re.search(r"token=([A-Za-z0-9_-]+)", (await self.outbox(to))[0]["text"])
        assert found
        return found[1]

    async def sign_up(self, email: str = "ann@example.com", password: str = PASSWORD) -> Answer:
        answer = await self.post("/signup", {"email": email, "password": password})
        assert answer.status == 201, answer
        return answer

    async def sign_in(
        self, email: str = "ann@example.com", password: str = PASSWORD, **options: Any
    ) -> dict[str, Any]:
        answer = await self.post("/login", {"email": email, "password": password}, **options)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    async def forget_limits(self) -> None:
        await self.sql("delete from auth.rate_limits")
        await self.sql("delete from auth.guesses")


def run(
    dsn: str,
    work: Callable[..., Coroutine[Any, Any, None]],
    *,
    workers: int = 1,
    development: bool = True,
    keys: tuple[SigningKey, ...] = (),
    **settings: Any,
) -> None:
    """Runs `work(worker)` (or with several workers of one node) against a fresh project."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        for role in SHARED:
            admin.execute(
                f"do $$ begin create role {role} nologin; exception when duplicate_object then"
                " null; when unique_violation then null; end $$"
            )
    project = make_project(dsn, keys=keys, **settings)

    async def main() -> None:
        bus = LocalBus()
        made: list[Worker] = []
        stops: list[Any] = []
        for _ in range(workers):
            pools = LocalPools()
            config = NodeConfig(data_dir=Path("/nowhere"), control_dsn="", development=development)

            def verify(project: Project, text: str, number: int = len(made)) -> Identity:
                return made[number].ring.token(text, time.time())

            context = WorkerContext(config, LocalDirectory(), pools, bus, verify)
            service = await create(context)
            for start in context.on_start:
                await start()
            made.append(Worker(service, project, pools, bus))
            stops += [*context.on_stop, pools.close]
        try:
            await work(*made)
        finally:
            for stop in stops:
                await stop()

    asyncio.run(main())


async def together(*calls: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*calls))
