"""What the handlers of one worker share, and what one request brings with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import psycopg

from ichicore.errors import ApiError
from server.auth import inputs, settings
from server.auth.database import Database
from server.auth.outbound import Outbound
from server.auth.passwords import Passwords
from server.auth.settings import AuthSettings
from server.base import migrations
from server.base.context import WorkerContext
from server.base.http import Request
from server.base.project import Project

log = logging.getLogger("ichibase.auth")
MAX_BACKGROUND = 1_000  # messages under way in one worker
LONGEST_TOKEN = 86_400.0  # seconds
LONGEST_PAUSE = 5.0  # seconds between attempts to revoke


class Tenant:
    """One project at one revision: its settings parsed and its schema up to date."""

    __slots__ = ("database", "project", "settings")

    def __init__(self, project: Project, parsed: AuthSettings, database: Database) -> None:
        self.project = project
        self.settings = parsed
        self.database = database


class Room:
    """One per worker process."""

    def __init__(self, context: WorkerContext, passwords: Passwords) -> None:
        self.context = context
        self.passwords = passwords
        self.outbound = Outbound(private=context.config.development)
        self.tenants: dict[str, Tenant] = {}
        self._ready: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def development(self) -> bool:
        return self.context.config.development

    async def tenant(self, project: Project) -> Tenant:
        """The project's tenant; the first call of a worker migrates the schema."""
        known = self.tenants.get(project.slug)
        if known is not None and known.project is project:
            return known
        if known is not None and known.project.id == project.id:
            if known.project.revision > project.revision:
                return known
        if project.id not in self._ready:
            await self._migrate(project)
        try:
            parsed = settings.parse(project.settings.get("auth", {}))
        except settings.AuthSettingsError as error:
            log.error("the auth settings of project %s cannot be used: %s", project.slug, error)
            raise ApiError(
                503, "unavailable", "The project's auth settings cannot be used."
            ) from None
        made = Tenant(project, parsed, Database(self.context.pools, project))
        self.tenants[project.slug] = made
        return made

    async def _migrate(self, project: Project) -> None:
        if project.system_dsn is None:
            raise ApiError(404, "auth_not_enabled", "The project has no database for its users.")
        lock = self._locks.setdefault(project.id, asyncio.Lock())
        async with lock:
            if project.id not in self._ready:
                await migrations.apply_async(project.system_dsn, ("server.auth", "auth"))
                self._ready.add(project.id)
        self._locks.pop(project.id, None)

    def changed(self, project: Project | None, slug: str) -> None:
        """What does not serve keeps no memory, and nobody connects to it."""
        if project is None:
            self.forget(slug)
        elif project.state != "active":
            self.tenants.pop(slug, None)

    def forget(self, slug: str) -> None:
        """The project was deleted."""
        known = self.tenants.pop(slug, None)
        if known is not None:
            self._ready.discard(known.project.id)

    def later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Runs `work` after the answer, so that its duration tells nothing. ApiError 429 when
        too much is under way."""
        if len(self._tasks) >= MAX_BACKGROUND:
            work.close()
            raise ApiError(
                429, "rate_limited", "Too many messages at this moment; try again shortly.",
                headers=(("retry-after", "5"),),
            )  # fmt: skip
        task = asyncio.get_running_loop().create_task(_guarded(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Waits for everything that `later` started."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def revoke(self, project: Project, sessions: list[str], seconds: int) -> None:
        """Makes all workers refuse the access tokens of these sessions. seconds: how long one may
        still live."""
        if sessions:
            until = time.time() + seconds
            await self._surely(
                lambda: self.context.revocations.sessions(project.id, sessions, until), until
            )

    async def revoke_user(self, project: Project, user_id: str) -> None:
        """Makes all workers refuse every token that the user has now, those that other services
        made for the user included."""
        now = time.time()
        until = now + LONGEST_TOKEN
        await self._surely(
            lambda: self.context.revocations.user(project.id, user_id, now + 1, until), until
        )

    async def _surely(self, revoke: Callable[[], Awaitable[None]], until: float) -> None:
        """Tries again, after the answer, for as long as there are tokens to refuse."""
        try:
            await revoke()
        except (OSError, psycopg.Error) as error:
            log.warning("a revocation waits for the control database: %s", error)
            self.later(self._again(revoke, until), "revocation")

    async def _again(self, revoke: Callable[[], Awaitable[None]], until: float) -> None:
        pause = 0.2
        while time.time() < until:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                await revoke()
                return
            except (OSError, psycopg.Error):
                continue
        log.error("a revocation did not reach the workers before its tokens expired")

    async def close(self) -> None:
        """Lets messages under way be sent for a moment, then ends them."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=5)
            for task in late:
                task.cancel()
        await self.outbound.close()
        self.passwords.close()


class Call:
    """One request with its tenant."""

    __slots__ = ("database", "project", "request", "room", "settings")

    def __init__(self, room: Room, tenant: Tenant, request: Request) -> None:
        self.room = room
        self.request = request
        self.project = tenant.project
        self.settings = tenant.settings
        self.database = tenant.database

    @property
    def ip(self) -> str:
        return self.request.peer

    @property
    def user_agent(self) -> str | None:
        return inputs.header(self.request, "user-agent", 512)

    @property
    def trusted(self) -> bool:
        """The secret key was presented: limits per client address would count the app's server."""
        return self.request.identity.key_role == "service_role"

    @property
    def app_name(self) -> str:
        return self.settings.app_name or self.project.slug

    def caller(self) -> tuple[str, str]:
        """(session id, user id) of the bearer token; ApiError 401."""
        identity = self.request.identity
        if identity.uid is None:
            raise ApiError(401, "missing_token", "This endpoint needs a user's access token.")
        session, user = inputs.uuid(identity.session_id or ""), inputs.uuid(identity.uid)
        if session is None or user is None:
            raise ended()
        return session, user


def ended() -> ApiError:
    return ApiError(401, "invalid_token", "The session of this token has ended.")


async def _guarded(work: Awaitable[None], what: str) -> None:
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("%s failed", what)
