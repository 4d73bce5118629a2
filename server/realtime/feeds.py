"""Which projects have a change feed: those with open sockets, and for a little while after the last
one has gone. Brings what the feeds read to the projects' hubs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psycopg

from ichicore.live.change import Change, Publish
from ichicore.live.wire import Peer
from server.base.events import Events, Noted
from server.base.listen import connect as connect_control
from server.base.listen import reason_of
from server.base.project import Project
from server.realtime import messages, pg_slot
from server.realtime.pg_feed import PgFeed
from server.realtime.pg_slot import FeedUnavailable
from server.realtime.pg_stream import connect
from server.realtime.process import Process
from server.realtime.session import Session, Subscription
from server.realtime.settings import table_name
from server.realtime.streams import tell
from server.realtime.tenant import Tenant

LINGER_SECONDS = 120.0  # a feed outlives the last socket by: making a slot anew may take long
LOOK_SECONDS = 5.0
LEFTOVER_SECONDS = 60.0  # after the start, until slots of an earlier process are dropped
NOT_PUBLISHED = {
    "missing": "There is no such table.",
    "unsupported": "Changes of this relation are not in the log: it is no ordinary table.",
    "forbidden": "This table belongs to somebody else than the project's owner.",
    "busy": "The table is locked at this moment; its changes follow when it is free.",
}
UNAVAILABLE = "Changes cannot be told at present; `subscribed` follows when they can."
INSERTS_ONLY = (
    "Only inserts are told: the table has neither a primary key nor another replica identity."
)


TRUNCATED = {
    "type": "error", "code": "table_truncated", "detail": "All rows of the table were removed.",
}  # fmt: skip


def node_id(data_dir: Path) -> str:
    """Eight digits that tell this node's slots from those of others on the same server."""
    path = data_dir / "run" / "node_id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        made = secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(made + "\n")
        return made


class Feeds:
    """projects: all of the node, for the slots that an earlier process has left."""

    def __init__(
        self,
        process: Process,
        node: str,
        control_dsn: str,
        projects: Callable[[], list[Project]],
        events: Events,
    ) -> None:
        self.process = process
        self.node = node
        self.control_dsn = control_dsn
        self.projects = projects
        self.events = events
        self.feeds: dict[str, PgFeed] = {}  # by project id
        self._idle_since: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: dict[str, asyncio.Task[None]] = {}  # by project id

    def start(self) -> None:
        """Begins, in the running loop."""
        self._later(self._look())
        self._later(self._drop_leftovers())

    async def stop(self) -> None:
        """Ends all feeds and drops their slots: whoever comes back is told what is new then."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(
            *[feed.stop(drop=True) for feed in self.feeds.values()],
            *self._stopping.values(),
            return_exceptions=True,
        )
        self.feeds.clear()

    # --- what the process tells ---------------------------------------------------------------

    def wanted(self, tenant: Tenant) -> PgFeed | None:
        """A socket of the project was opened."""
        project = tenant.project
        self._idle_since.pop(project.id, None)
        feed = self.feeds.get(project.id)
        if feed is not None or project.feed_dsn is None or project.state != "active":
            return feed
        feed = self.feeds[project.id] = PgFeed(
            project, self, node=self.node, tables=_enabled(tenant), events=self.events
        )
        ending = self._stopping.get(project.id)
        if ending is None:
            feed.start()
        else:
            ending.add_done_callback(lambda _: self._start(feed))
        return feed

    def _start(self, feed: PgFeed) -> None:
        if self.feeds.get(feed.project.id) is feed:
            feed.start()

    def unwanted(self, tenant: Tenant) -> None:
        """The project was removed."""
        self._end(tenant.project.id)

    def changed(self, tenant: Tenant) -> None:
        """The project has other settings."""
        feed = self.feeds.get(tenant.project.id)
        if feed is None:
            if tenant.sessions:
                self.wanted(tenant)
        elif tenant.project.state != "active":
            self._end(tenant.project.id)
        else:
            feed.configure(tenant.project, _enabled(tenant))

    def acknowledge(
        self, session: Session, subscription: Subscription, told: dict[str, Any]
    ) -> None:
        """Answers a subscription to a table once all its changes are certain to come."""
        feed = self.wanted(session.tenant)
        state = None if feed is None else feed.state(told["table"])
        if state is not None:
            _answer(session.peer, told, state)
        else:
            self._later(self._acknowledge(feed, session, subscription, told))

    async def _acknowledge(
        self,
        feed: PgFeed | None,
        session: Session,
        subscription: Subscription,
        told: dict[str, Any],
    ) -> None:
        complained = False
        peer = session.peer
        while session.has(told["ref"], subscription):
            try:
                if feed is None:
                    raise FeedUnavailable("the project has no Postgres database in use")
                state = await feed.ready(told["table"])
                if not session.has(told["ref"], subscription):
                    return  # it was taken back meanwhile
            except FeedUnavailable:  # why is for the log alone
                if not complained and session.has(told["ref"], subscription):
                    peer.send(messages.error("feed_unavailable", UNAVAILABLE, told["ref"]))
                complained = True
                if feed is None:
                    return
            else:
                _answer(peer, told, state)
                return

    # --- what the feeds tell --------------------------------------------------------------------

    def change(self, project_id: str, change: Change) -> bool:
        if not self.process.has_room(project_id):
            return False
        self.process.change(project_id, change)
        return True

    def publish(self, project_id: str, message: Publish) -> bool:
        if self._behind(project_id):
            return False
        self.process.publish(
            project_id, [message.channel], orjson.dumps(message.event), message.payload_json,
            orjson.dumps(message.position),
        )  # fmt: skip
        return True

    def truncated(self, project_id: str, source: str) -> bool:
        if self._behind(project_id):
            return False
        tenant = self.process.tenants.get(project_id)
        found = None if tenant is None else tenant.hub.sources.get(("postgres", source))
        if found is not None:
            tell([found], messages.frame({**TRUNCATED, "table": source}))
        return True

    def _behind(self, project_id: str) -> bool:
        """Whether changes that came before have not been told to all."""
        tenant = self.process.tenants.get(project_id)
        return tenant is not None and tenant.hub.behind > 0

    def notice(self, project_id: str, code: str, detail: str) -> bool:
        if self._behind(project_id):
            return False
        self.process.notice(project_id, "postgres", code, detail)
        return True

    # --- what ends by itself --------------------------------------------------------------------

    async def _look(self) -> None:
        """Ends the feeds of projects that nobody is connected to any more."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for project_id in list(self.feeds):
                tenant = self.process.tenants.get(project_id)
                if tenant is not None and tenant.sessions:
                    self._idle_since.pop(project_id, None)
                elif now - self._idle_since.setdefault(project_id, now) >= LINGER_SECONDS:
                    self._end(project_id)

    def _end(self, project_id: str) -> None:
        self._idle_since.pop(project_id, None)
        feed = self.feeds.pop(project_id, None)
        if feed is not None:
            task = asyncio.get_running_loop().create_task(feed.stop(drop=True))
            self._stopping[project_id] = task
            task.add_done_callback(lambda _: self._stopping.pop(project_id, None))

    async def _drop_leftovers(self) -> None:
        """Drops this node's slots that an earlier process has left and no feed has taken over."""
        await asyncio.sleep(LEFTOVER_SECONDS)
        by_database = {f"ichi_{project.id}": project for project in self.projects()}
        try:
            async with await connect_control(self.control_dsn, "ichibase realtime") as control:
                cursor = await control.execute(
                    "select slot_name, database from pg_catalog.pg_replication_slots"
                    " where starts_with(slot_name, 'ichi_') and right(slot_name, 9) = %s",
                    (f"_{self.node}",),
                )
                found = await cursor.fetchall()
        except (psycopg.Error, OSError) as error:
            self.events.emit(Noted("replication slots were not looked at", reason_of(error)))
            return
        for name, database in found:
            project = by_database.get(database)
            if project is None or project.feed_dsn is None or project.id in self.feeds:
                continue
            try:
                async with await connect(project.feed_dsn, replication=False) as connection:
                    await pg_slot.drop(connection, name)
            except (psycopg.Error, OSError) as error:
                self.events.emit(Noted(f"the slot {name} was not dropped", reason_of(error)))

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def gauges(self) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        """For server.base.metrics."""
        feeds = self.feeds.values()
        return [
            ("ichibase_feeds", (), len(self.feeds)),
            ("ichibase_feed_lag_bytes", (), max((feed.lag for feed in feeds), default=0)),
        ]


def _enabled(tenant: Tenant) -> frozenset[str]:
    tables = tenant.settings.tables.items()
    return frozenset(table_name(name) for name, table in tables if table.enabled)


def _answer(peer: Peer, told: dict[str, Any], state: str) -> None:
    if state in NOT_PUBLISHED:
        peer.send(messages.error("not_published", NOT_PUBLISHED[state], told["ref"]))
        return
    peer.send(messages.frame(told))
    if state == "inserts":
        peer.send(messages.error("inserts_only", INSERTS_ONLY, told["ref"]))
