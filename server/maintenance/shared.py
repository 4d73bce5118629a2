"""Ends sessions of projects that take what a PostgreSQL server has once for all of them: its table
of locks, without room in which nobody can write, its queue of notifications, the patience of those
who wait for all sessions of a server, its memory, its log, and disk that no quota counts.

Postgres has no limits of these kinds for a login. A session that is ended here could come back at
once, so the login of who has filled something, or keeps coming back, is closed until the next look
at changes of state opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
import traceback
from pathlib import Path

import psycopg
from psycopg import sql

from server.base.events import Events, Failed, Lost, Noted
from server.control.database import Connection, connect, fetch, run
from server.control.lifecycle import owe
from server.control.projects import Projects, audit
from server.maintenance.memory import Memory
from server.maintenance.slots import Slots
from server.maintenance.strain import Held, Strain

PAUSE = 0.25  # seconds between looks
REST = 10.0  # times its own time that a look leaves to others
MOST = 2.0  # seconds between looks at most
PATIENCE = 15.0  # seconds that a look may take, with the end of the sessions that it finds
KNOWN = 30.0  # seconds for which the list of databases is good
CLOSED = ("locks", "notifications", "snapshots")  # what closes an owner's login at once
WHY = {
    "locks": "too many locks",
    "log": "the change feeds of others would have lost their place in the log",
    "memory": "the machine's memory was about to run out",
    "notifications": "the queue of notifications is held up",
    "waits": "sessions of other databases waited for it",
    "silence": "all waited for a session that waits for its client",
    "snapshots": "too many exported snapshots",
}
STRIKES, WITHIN = 3, 60.0  # so often in so many seconds sessions are ended until a login is closed
WAITS = 50  # hundredths of a second for sessions to let go of what they had
LOGINS = "select oid::int8, rolname::text from pg_roles where oid = any($1::int8[])"
BASES = "select oid::int8, datname::text from pg_database"
PROJECT = re.compile("ichi_[a-z0-9]{12}")
TERMINATE = "select pg_terminate_backend(pid) from unnest($1::int4[]) pid"
GONE = "select count(*) from pg_stat_get_activity(null) where pid = any($1)"
SESSIONS = """select s.pid from pg_stat_get_activity(null) s join pg_roles r on r.oid = s.usesysid
  where r.rolname = any($1) and s.backend_type = 'client backend'"""
NAMES = "select database, id, slug from projects where cluster_id = $1 and database = any($2)"


class Server:
    """A session with one cluster: while the table of locks is full, no new one begins."""

    def __init__(self, admin: Connection, embedded: bool, folder: Path) -> None:
        self.admin = admin
        self.strain = Strain()
        self.slots = Slots(folder if embedded and folder.exists() else None)
        self._embedded = embedded
        self._databases: dict[int, str] = {}
        self._others: set[int] = set()  # databases that are no project's
        self._learned = float("-inf")

    async def learn(self, at_once: bool = False) -> None:
        """Which databases are projects', as long as that can be read."""
        if at_once or time.monotonic() - self._learned > KNOWN:
            found = dict(await fetch(self.admin, BASES))
            self._databases = {n: name for n, name in found.items() if PROJECT.fullmatch(name)}
            self._others = found.keys() - self._databases.keys()
            self._learned = time.monotonic()

    async def holding(self) -> list[Held]:
        """Sessions of projects in use for which too much of the log is kept. What restores one
        goes on however long it takes."""
        found = await self.slots.look(self.admin)
        if found:
            await self.learn(at_once=True)
        return [one for one in found if one.database in self._databases]

    def of_project(self, database: int) -> bool:
        """The embedded server has no others but projects' that are made while a node runs. Who has
        not logged in there is nobody's."""
        return database in self._databases or (self._embedded and database not in self._others)

    async def names(self, held: list[Held]) -> tuple[dict[int, str], dict[int, str]]:
        """Names of their databases and logins; to be asked once there is room again."""
        if any(one.database and one.database not in self._databases for one in held):
            await self.learn(at_once=True)
        logins = await fetch(self.admin, LOGINS, ([one.login for one in held],))
        return self._databases, dict(logins)


class Shared:
    """Looks at all clusters, each by itself: one that fails or is silent keeps no other waiting."""

    def __init__(self, projects: Projects, events: Events) -> None:
        self.projects = projects
        self.events = events
        self.memory = Memory()
        self._servers: dict[str, Server] = {}
        self._strikes: dict[tuple[str, str], list[float]] = {}  # by cluster and login

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for cluster_id in self.projects.clusters:
                    group.create_task(self._keep(cluster_id))
        finally:
            await self.stop()

    async def _keep(self, cluster_id: str) -> None:
        """Looks at one cluster until cancelled. What fails is told once and tried again."""
        failing = False
        while True:
            began = time.monotonic()
            try:
                await self.look(cluster_id)
                failing = False
            except Exception as error:
                if not failing and isinstance(error, psycopg.OperationalError):
                    self.events.emit(Lost("a database (shared means)", str(error).strip()))
                elif not failing:
                    self.events.emit(Failed("the look at shared means", traceback.format_exc()))
                failing = True
            took = time.monotonic() - began
            await asyncio.sleep(MOST if failing else min(max(PAUSE, REST * took), MOST))

    async def look(self, cluster_id: str) -> int:
        """Gives how many sessions were ended. psycopg.OperationalError when the server does not
        answer, or not in time."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._look(cluster_id)
        except TimeoutError:
            if server := self._servers.pop(cluster_id, None):
                server.admin.pgconn.finish()  # an answer that is still to come is nobody's
            raise psycopg.OperationalError(f"no answer within {PATIENCE:g} seconds") from None

    async def _look(self, cluster_id: str) -> int:
        ended = 0
        cluster = self.projects.clusters[cluster_id]
        server = self._servers.get(cluster_id)
        if server is None or server.admin.closed:
            server = self._servers[cluster_id] = Server(
                await connect(cluster.admin_dsn),
                cluster.kind == "embedded",
                self.projects.config.data_dir / "postgres",
            )
            await server.learn()
        found = await server.strain.look(server.admin)
        if cluster.kind == "embedded" and self.memory.short():
            found["memory"] = await server.strain.most_memory(server.admin, self.memory.much())
        for what, sessions in found.items():
            if taking := self._taking(server, what, sessions):
                await self._end(cluster_id, server, what, taking)
                ended += len(taking)
        await server.learn()
        if not found and (holding := await server.holding()):
            await self._end(cluster_id, server, "log", holding)
            ended += len(holding)
        return ended

    async def stop(self) -> None:
        for server in self._servers.values():
            await server.admin.close()
        self._servers = {}

    @staticmethod
    def _taking(server: Server, what: str, sessions: list[Held]) -> list[Held]:
        """The sessions to end; none of those that are nobody's project."""
        known = [one for one in sessions if server.of_project(one.database)]
        if what != "locks":
            return known
        held: dict[int, int] = {}
        for one in known:
            held[one.database] = held.get(one.database, 0) + one.count
        most = set()
        for database in sorted(held, key=lambda one: held[one], reverse=True):
            if not server.strain.too_much(sum(held.values())):
                break
            most.add(database)
            del held[database]
        return [one for one in known if one.database in most]

    async def _end(self, cluster_id: str, server: Server, what: str, taking: list[Held]) -> None:
        await self._terminate(cluster_id, server, [one.pid for one in taking])
        databases, logins = await server.names(taking)
        often = {login for login in logins.values() if self._strike(cluster_id, login)}
        counts: dict[str, int] = {}
        closing: dict[str, set[str]] = {}
        for one in taking:
            database, login = databases.get(one.database), logins.get(one.login)
            if database is None or login is None:
                continue  # it is being removed
            counts[database] = counts.get(database, 0) + 1
            if login in often or (what in CLOSED and login == f"{database}_owner"):
                closing.setdefault(database, set()).add(login)
        async with self.projects.control() as control:
            for database, project_id, slug in await fetch(
                control, NAMES, (cluster_id, list(counts))
            ):
                async with control.transaction():
                    if database in closing:  # to be opened again also if this process dies
                        await owe(control, project_id)
                    detail = {"reason": what, "sessions": counts[database]}
                    await audit(control, "maintenance", "project.sessions_ended", slug, detail)
                if database in closing:
                    await self._close(cluster_id, server, closing[database])
                    await owe(control, project_id)  # the first may have been settled meanwhile
                self.events.emit(Noted(
                    f"ended {counts[database]} sessions of project {slug}", WHY[what]
                ))  # fmt: skip

    def _strike(self, cluster_id: str, login: str) -> bool:
        """Whether a login has lost sessions so often that it is to be closed."""
        now = time.monotonic()
        self._strikes = {
            one: kept for one, times in self._strikes.items()
            if (kept := [at for at in times if now - at < WITHIN])
        }  # fmt: skip
        self._strikes.setdefault((cluster_id, login), []).append(now)
        return len(self._strikes[cluster_id, login]) >= STRIKES

    async def _close(self, cluster_id: str, server: Server, logins: set[str]) -> None:
        """No session of these logins goes on, and none begins until the next settlement."""
        for login in logins:
            name = sql.Identifier(login)
            await run(server.admin, sql.SQL("alter role {} nologin").format(name))
        left = await fetch(server.admin, SESSIONS, (list(logins),))
        await self._terminate(cluster_id, server, [pid for (pid,) in left])

    async def _terminate(self, cluster_id: str, server: Server, pids: list[int]) -> None:
        if self.projects.clusters[cluster_id].kind == "embedded":
            for pid in pids:  # the server would look the login up first, for which it needs a lock
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        else:
            await fetch(server.admin, TERMINATE, (pids,))
        for _ in range(WAITS):
            if not (await fetch(server.admin, GONE, (pids,)))[0][0]:
                break
            await asyncio.sleep(0.01)
