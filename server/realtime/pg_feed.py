"""The change feed of one project: from its database's log to the hub, without loss or repetition.

The feed holds one replication slot and one connection. While the process lives it resumes behind
the last change that it handed over, whatever breaks: the server remembers the log (the slot), the
decoder remembers where it was. Only when the server has lost the slot is there a gap, which the
subscribers are told of. A new process begins at the log's end: nobody was subscribed before.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Coroutine
from typing import Any, Protocol

import psycopg

from ichicore.live.change import Change, Publish
from ichicore.live.pgoutput import Decoder
from ichicore.live.pgtypes import Types
from server.base import migrations
from server.base.events import Events, Failed, Lost, Noted, Regained
from server.base.listen import reason_of
from server.base.project import Project
from server.realtime import pg_slot, pg_types
from server.realtime.pg_slot import FeedUnavailable, Position
from server.realtime.pg_stream import Connection, Stream, StreamEnded, connect

RETRY = (0.02, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one repeats
CHECK_SECONDS = 60.0  # between looks at tables that could not be published
BUSY_SECONDS = 2.0
NOTICE_SECONDS = 0.01
SETTLE_SECONDS = 0.05  # of quiet after DDL before the tables are looked at
PUBLICATIONS = '"ichibase_realtime","ichibase_realtime_inserts"'
GAP = "feed_gap"
GAP_DETAIL = "Changes may have been missed: read again what you show."
# The server's words for what only a new slot can cure: the slot is gone or was given up, or the
# publication did not exist yet where the slot stands.
SLOT_STATES = frozenset({"42704", "55000", "XX000", "58P01"})
STUCK = 2  # sessions that end so without having come further


class Sink(Protocol):
    """Who is told; in the feed's event loop, and must not block it."""

    def change(self, project_id: str, change: Change) -> bool:
        """False when the change was not taken, as so much waits: it is offered again."""
        ...

    def publish(self, project_id: str, message: Publish) -> bool:
        """The same for a message."""
        ...

    def truncated(self, project_id: str, source: str) -> bool:
        """The same for a table's truncation."""
        ...

    def notice(self, project_id: str, code: str, detail: str) -> bool:
        """An `error` frame for the subscribers of all tables; False as for a change."""
        ...


class PgFeed:
    """One project's feed. tables: the enabled ones, as schema.table. node: part of the slot's
    name, which no other reader of the database may have.

    states: what each table's changes are: all, inserts (no primary key or replica identity),
    missing, unsupported, forbidden, busy. problem: why nothing comes at present, or "".
    """

    def __init__(
        self, project: Project, sink: Sink, *, node: str, tables: frozenset[str], events: Events
    ) -> None:
        self.project = project
        self.sink = sink
        self.slot_name = f"ichi_{project.id}_{node}"
        self.tables = tables
        self.events = events
        self.states: dict[str, str] = {}
        self.problem = "the feed has not started"
        self.gaps = 0
        self.decoder = Decoder(Types(), tables)
        self._log: Position | None = None  # which one the decoder's position is of
        self._stream: Stream | None = None
        self._running = asyncio.Event()
        self._published = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._republishing: asyncio.Task[None] | None = None
        self._again = False
        self._check: asyncio.TimerHandle | None = None
        self._migrated = False

    # --- for the realtime process -----------------------------------------------------------

    def start(self) -> None:
        """Begins, in the running loop."""
        self._main = asyncio.get_running_loop().create_task(self._run(), name=self.slot_name)

    async def stop(self, *, drop: bool) -> None:
        """Ends the feed. drop: its slot too, so that the server keeps nothing for it."""
        if self._check is not None:
            self._check.cancel()
        tasks = [task for task in (self._main, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._running.clear()
        if drop:
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                async with asyncio.timeout(10):
                    connection = await connect(self._dsn, replication=False)
                    async with connection:
                        await pg_slot.drop(connection, self.slot_name)

    def configure(self, project: Project, tables: frozenset[str]) -> None:
        """The project's settings or logins have changed."""
        self.project = project
        if tables == self.tables:
            return
        self.tables = tables
        self.decoder.want(tables)
        self._published.clear()
        self._republish()

    async def ready(self, table: str | None = None, *, seconds: float = 10.0) -> str:
        """Waits until every change from now on will be told, of this table or at all. Gives the
        table's state (see `states`), "all" without one; FeedUnavailable after so long."""
        try:
            async with asyncio.timeout(seconds):
                while not (self._running.is_set() and self._published.is_set()):
                    await self._running.wait()
                    await self._published.wait()
        except TimeoutError:
            raise FeedUnavailable(self.problem or "the database did not answer in time") from None
        return "all" if table is None else self.states.get(table, "missing")

    def state(self, table: str) -> str | None:
        """The table's state when its changes are being told now; None: ask ready()."""
        if not (self._running.is_set() and self._published.is_set()):
            return None
        return self.states.get(table, "missing")

    @property
    def lag(self) -> int:
        """Bytes of the log between what the server has sent and what was handed over."""
        stream = self._stream
        return 0 if stream is None else max(0, self.decoder.server_lsn - stream.handed_lsn)

    # --- life -------------------------------------------------------------------------------

    @property
    def _dsn(self) -> str:
        if self.project.feed_dsn is None:
            raise FeedUnavailable("the project has no Postgres database")
        return self.project.feed_dsn

    @property
    def _what(self) -> str:
        return f"the change feed of project {self.project.slug}"

    async def _run(self) -> None:
        failures, told, stuck = 0, False, 0
        while True:
            began_at, unreadable = self.decoder.end_lsn, False
            try:
                await self._session()
                raise AssertionError("a session ends with an error")
            except FeedUnavailable as error:
                reason = str(error)
            except (psycopg.Error, OSError, StreamEnded, migrations.MigrationError) as error:
                reason = reason_of(error)
                state = error.sqlstate if isinstance(error, StreamEnded | psycopg.Error) else None
                unreadable = state in SLOT_STATES
            except Exception:
                reason = "a fault of the server"
                unreadable = True
                self.events.emit(Failed(self._what, traceback.format_exc()))
            stuck = stuck + 1 if unreadable and self.decoder.end_lsn == began_at else 0
            if stuck >= STUCK:
                await self._give_up_slot()
            if self._running.is_set():
                failures, told = 0, False
            self._running.clear()
            self.problem = reason
            if failures and not told:
                self.events.emit(Lost(self._what, reason))
                told = True
            await asyncio.sleep(RETRY[min(failures, len(RETRY) - 1)])
            failures += 1

    async def _session(self) -> None:
        """One connection from its beginning to its end."""
        await self._migrate()
        connection = await connect(self._dsn, replication=True)
        stream: Stream | None = None
        try:
            bounded = await pg_slot.check_server(connection)
            here = await pg_slot.position(connection)
            await self._publish(connection)
            await self._begin(connection, here, bounded)
            self.decoder.reset()
            self.decoder.types.forget()
            types = await pg_types.of_published(connection)
            await pg_types.learn(connection, self.decoder.types, types)
            stream = Stream(connection, self.decoder, self._hand_over, self._learn, self._republish)
            at = pg_slot.show_lsn(self.decoder.end_lsn)
            await stream.start(
                f"START_REPLICATION SLOT {self.slot_name} LOGICAL {at} (proto_version '1', "
                f"publication_names '{PUBLICATIONS}', messages 'true')"
            )
            if self.problem and self._stream is not None:
                self.events.emit(Regained(self._what))
            self._stream = stream
            self.problem = ""
            self._running.set()
            if not self._published.is_set():  # the settings changed meanwhile
                self._republish()
            await stream.ended()
        finally:
            if stream is not None:
                stream.close()
            await connection.close()

    async def _migrate(self) -> None:
        if not self._migrated and self.project.system_dsn is not None:
            await migrations.apply_async(self.project.system_dsn, ("server.realtime", "realtime"))
            self._migrated = True

    async def _begin(self, connection: Connection, here: Position, bounded: bool) -> None:
        """Finds the slot and decides where the stream begins."""
        before = self._log
        same = before is not None and (
            (before.system, before.timeline) == (here.system, here.timeline)
            and here.flushed >= self.decoder.end_lsn
        )
        if before is not None and not same:  # restored or promoted: our position means nothing
            await pg_slot.drop(connection, self.slot_name)
        self.problem = "the replication slot waits for transactions that were open before it"
        slot = await pg_slot.acquire(
            connection, self.slot_name, bounded=bounded, flushed=here.flushed
        )
        if slot.made and before is not None:
            self.gaps += 1
            while not self.sink.notice(self.project.id, GAP, GAP_DETAIL):
                await asyncio.sleep(NOTICE_SECONDS)  # what came before the gap is told first
            self.events.emit(Noted(self._what, "its slot was lost: subscribers were told"))
        if slot.temporary and before is None:
            self.events.emit(
                Noted(self._what, "the server sets no max_slot_wal_keep_size, so the slot lives "
                      "only as long as its connection: set it to bridge interruptions")
            )  # fmt: skip
        if slot.made or before is None:
            self.decoder.begin_at(slot.start)
        self._log = here

    async def _give_up_slot(self) -> None:
        """The next session makes a new one and tells of the gap."""
        with contextlib.suppress(psycopg.Error, OSError, FeedUnavailable):
            connection = await connect(self._dsn, replication=False)
            async with connection:
                await pg_slot.drop(connection, self.slot_name)

    # --- what comes -------------------------------------------------------------------------

    def _hand_over(self, item: Change | Publish) -> bool:
        try:
            if isinstance(item, Publish):
                return self.sink.publish(self.project.id, item)
            if item.event == "TRUNCATE":
                return self.sink.truncated(self.project.id, item.source)
            return self.sink.change(self.project.id, item)
        except Exception:  # one change that cannot be told must not stop those after it
            self.events.emit(Failed(self._what, traceback.format_exc()))
        return True

    def _learn(self) -> None:
        self._later(self._learn_types())

    async def _learn_types(self) -> None:
        stream = self._stream
        try:
            connection = await connect(self._dsn, replication=False)
            async with connection:
                await pg_types.learn(connection, self.decoder.types, self.decoder.missing)
        except (psycopg.Error, OSError) as error:
            if stream is not None:
                stream.fail(StreamEnded(reason_of(error)))
            return
        if stream is not None and stream is self._stream:
            stream.resume()

    # --- which tables -----------------------------------------------------------------------

    async def _publish(self, connection: Connection) -> None:
        """Makes the publications hold the enabled tables."""
        tables = self.tables
        elements = ",".join(psycopg.sql.Literal(t).as_string(connection) for t in sorted(tables))
        cursor = await connection.execute(
            f"select source, state from ichibase.publish_tables(array[{elements}]::text[])".encode()  # noqa: S608
        )
        self.states = {str(source): str(state) for source, state in await cursor.fetchall()}
        if tables == self.tables:
            self._published.set()
        self._look_again()

    def _look_again(self) -> None:
        """Tables that are locked or missing may be there a little later."""
        if self._check is not None:
            self._check.cancel()
            self._check = None
        states = set(self.states.values())
        if states & {"busy", "missing", "inserts", "unsupported"}:
            pause = BUSY_SECONDS if "busy" in states else CHECK_SECONDS
            self._check = asyncio.get_running_loop().call_later(pause, self._republish)

    def _republish(self) -> None:
        if self._republishing is not None and not self._republishing.done():
            self._again = True
            return
        self._republishing = self._later(self._publish_anew())

    async def _publish_anew(self) -> None:
        while True:
            self._again = False
            await asyncio.sleep(SETTLE_SECONDS if self._published.is_set() else 0)
            if not self._running.is_set():
                return  # the next session does it
            try:
                connection = await connect(self._dsn, replication=False)
                async with connection:
                    await self._publish(connection)
            except (psycopg.Error, OSError) as error:
                self.events.emit(Noted(self._what, f"tables not published: {reason_of(error)}"))
                await asyncio.sleep(BUSY_SECONDS)
                continue
            if not self._again:
                return

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
