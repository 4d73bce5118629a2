"""What the handlers of one worker share, and one project as they see it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.base import migrations
from server.base.context import TOKEN_REVOKED, WorkerContext
from server.base.hosts import HostRule
from server.base.project import Project
from server.storage import settings
from server.storage.catalog import CHANGED, PATHS_TOLD, Catalog, Entry
from server.storage.database import Database
from server.storage.receive import Turns
from server.storage.settings import StorageSettings
from server.storage.stores import Store, open_store
from server.storage.tokens import Signer

log = logging.getLogger("ichibase.storage")
UPLOADS = 256  # under way in one worker
UPLOADS_OF_PROJECT = 100  # the same, of one project
LONGEST_TOKEN = 86_400.0  # seconds that a read token may last
MOST_REVOKED = 100_000  # users
READ_PAUSES = (0.1, 0.5, 1.0, 2.0)  # seconds after an attempt to read what is revoked


class Tenant:
    """One project at one revision: its settings parsed and its schema up to date. reads, egress:
    counted since the last flush. dirty: something may wait to be swept."""

    __slots__ = (
        "database", "dirty", "egress", "project", "reads", "settings", "signer", "uploads",
    )  # fmt: skip

    def __init__(self, project: Project, parsed: StorageSettings, database: Database) -> None:
        self.project = project
        self.settings = parsed
        self.database = database
        self.signer = Signer(project)
        self.reads = 0
        self.egress = 0
        self.uploads = 0
        self.dirty = True  # a crash may have left something

    @property
    def quota(self) -> int:
        return self.project.limits.storage_bytes


class Room:
    """One per worker process, shared by the control calls and the reads."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.store: Store = open_store(context.config)
        self.catalog = Catalog()
        self.tenants: dict[str, Tenant] = {}
        self.uploads = 0  # under way
        self.turns = Turns()
        config = context.config
        self._rule = HostRule(
            config.base_domain, config.default_project, config.public_url, config.cdn_url
        )
        self._hosts: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._revoked: dict[tuple[str, str], tuple[float, float]] = {}
        context.bus.subscribe(CHANGED, self.catalog.told)
        context.bus.subscribe(TOKEN_REVOKED, self._revoke)
        context.directory.on_change(self._changed)

    async def tenant(self, project: Project) -> Tenant:
        """The project's tenant; the first call of a worker migrates the schema."""
        known = self.tenants.get(project.slug)
        if known is not None:
            if known.project is project:
                return known
            if known.project.id == project.id and known.project.revision > project.revision:
                return known
        if project.id not in self._ready:
            await self._migrate(project)
        try:
            parsed = settings.parse(project.settings.get("storage", {}))
        except msgspec.ValidationError as error:
            log.error("the storage settings of project %s cannot be used: %s", project.slug, error)
            raise ApiError(
                503, "unavailable", "The project's storage settings cannot be used."
            ) from None
        made = Tenant(project, parsed, Database(self.context.pools, project))
        if known is not None and known.project.id == project.id:
            self.count(known)
            made.uploads = known.uploads
        self.tenants[project.slug] = made
        return made

    async def _migrate(self, project: Project) -> None:
        if project.system_dsn is None:
            raise ApiError(404, "storage_not_enabled", "The project has no database for its files.")
        lock = self._locks.setdefault(project.id, asyncio.Lock())
        async with lock:
            if project.id not in self._ready:
                await migrations.apply_async(project.system_dsn, ("server.storage", "storage"))
                self._ready.add(project.id)
        self._locks.pop(project.id, None)

    def _changed(self, project: Project | None, slug: str) -> None:
        known = self.tenants.get(slug)
        if known is None:
            return
        if project is not None and project.id == known.project.id:
            # What does not serve keeps no memory, and nobody connects to it.
            if project.state != "active" and not known.uploads:
                self.count(known)
                del self.tenants[slug]
            return
        del self.tenants[slug]
        self._ready.discard(known.project.id)
        self.catalog.forget_project(known.project.id)

    async def find(self, tenant: Tenant, bucket: str, path: str) -> Entry | None:
        """The object at a path, as all workers knew it at most a second ago."""
        return await self.catalog.find(tenant.project.id, bucket, path, tenant.database.rows)

    async def changed(self, tenant: Tenant, bucket: str, paths: list[str] | None) -> None:
        """Tells all workers, this one at once. paths: None when there are many."""
        tenant.dirty = True
        if paths is not None and sum(len(path.encode()) for path in paths) > PATHS_TOLD:
            paths = None
        message: dict[str, Any] = {"project": tenant.project.id, "bucket": bucket}
        if paths is not None:
            message["paths"] = paths
        self.catalog.told(message)
        try:
            await self.context.bus.publish(CHANGED, message)
        except Exception as error:  # the others learn of it within the catalog's TTL
            log.warning("a change was not told to the other workers: %s", error)

    def is_cdn(self, host: str) -> bool:
        """Whether a Host header is the one of public files, where paths begin with a project."""
        known = self._hosts.get(host)
        if known is None:
            try:
                known = self._rule.slug(host) is None
            except ApiError:
                known = False
            if len(self._hosts) > 1000:
                self._hosts.clear()
            self._hosts[host] = known
        return known

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` to its end, whatever becomes of the request."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it gets it; the request may be gone

    def revoked(self, tenant: Tenant, user_id: str, issued: int) -> bool:
        """Whether all tokens that the user had at that time (epoch seconds) have been revoked."""
        found = self._revoked.get((tenant.project.id, user_id))
        return found is not None and issued < found[0] and time.time() < found[1]

    async def read_revoked(self) -> None:
        """What was revoked before this worker had a use for it."""
        for pause in READ_PAUSES:
            try:
                await self.context.revocations.replay(self._revoke)
                return
            except (OSError, psycopg.Error) as error:
                log.warning("the revoked tokens cannot be read: %s", error)
                await asyncio.sleep(pause)

    def _revoke(self, message: dict[str, Any]) -> None:
        project, user = message.get("project"), message.get("user_id")
        if not isinstance(project, str) or not isinstance(user, str):
            return
        now = time.time()
        if len(self._revoked) >= MOST_REVOKED:
            self._revoked = {k: v for k, v in self._revoked.items() if v[1] > now}
        if len(self._revoked) < MOST_REVOKED:
            before = float(message.get("before") or now)
            self._revoked[project, user] = (before, now + LONGEST_TOKEN)

    def used(self, tenant: Tenant, bytes_more: int, objects_more: int) -> None:
        """Counts what is stored; the database's own count decides about the quota."""
        usage, project = self.context.usage, tenant.project.id
        if bytes_more:
            usage.add(project, "storage_bytes", bytes_more)
        if objects_more:
            usage.add(project, "storage_objects", objects_more)

    def unsent(self, tenant: Tenant) -> Callable[[int], None]:
        """Takes back bytes that were counted as sent and were not."""
        usage, project = self.context.usage, tenant.project.id
        return lambda size: usage.add(project, "egress_bytes", -size)

    def count(self, tenant: Tenant) -> None:
        """Hands the reads counted since the last call to the project's usage."""
        if tenant.reads:
            usage, project = self.context.usage, tenant.project.id
            usage.add(project, "storage_reads", tenant.reads)
            usage.add(project, "egress_bytes", tenant.egress)
            tenant.reads = tenant.egress = 0

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=10)
        for tenant in self.tenants.values():
            self.count(tenant)
        self.store.close()


_rooms: dict[int, Room] = {}  # by the id of the worker's context


def room_of(context: WorkerContext) -> Room:
    """The one room of a worker; the control calls and the reads are mounted one by one."""
    room = _rooms.get(id(context))
    if room is None or room.context is not context:
        from server.storage.sweep import Keeper

        room = _rooms[id(context)] = Room(context)
        keeper = Keeper(room)
        context.on_start += [room.read_revoked, keeper.start]
        context.on_stop.append(room.close)
        context.on_stop.append(keeper.stop)
        context.on_stop.append(_forgetter(context))
    return room


def _forgetter(context: WorkerContext) -> Any:
    async def forget() -> None:
        _rooms.pop(id(context), None)

    return forget
