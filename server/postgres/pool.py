"""Groups of statements over a few shared connections.

Each request is a group: its statements and one sync, which is one implicit transaction. Quick
groups share connections in pipelines, slow ones get a connection to themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import JSON, NONE, VALUES, Group, Result, Shared, Statement
from ichicore.pg.placing import AFTER, GROW, WAKE, Placing, Reader, idle
from server.postgres.budget import ConnectionBudget
from server.postgres.connect import Link, open_link
from server.postgres.opening import Opener
from server.postgres.session import Session
from server.postgres.spool import Spool

__all__ = [
    "JSON",
    "NONE",
    "VALUES",
    "ConnectionBudget",
    "Group",
    "PgError",
    "PgUnavailable",
    "Pool",
    "PoolTimeout",
    "Result",
    "Session",
    "Spool",
    "Statement",
    "StatementTimeout",
]

BUSY_TICK = 0.02  # how exactly deadlines are kept, in seconds
IDLE_TICK = 1.0
ROOM_PAUSE = 0.1  # before a group is sent again that the server had no room for
CANCEL_GRACE = 5.0  # a cancelled group that has not ended by then costs its connection
RETIRED_QUIET = 2.0  # seconds without use after which a pool that was given up is closed
RETIRED_LOOKS = 10  # in that time
RETIRED_MOST = 30.0

log = logging.getLogger("ichibase.postgres")
_cancellers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="pg-cancel")
_ROLLBACK = Statement("rollback", result=NONE, per_role=False)


class Pool:
    """Connections to one database under one login, used from one event loop.

    dsn: libpq connection string. min_size: connections kept when idle. max_size: at most so many.
    depth: quick groups in flight on one connection. acquire_timeout: seconds a group waits for a
    connection before PoolTimeout. statement_timeout: default for `run`, seconds or None.
    idle_timeout: seconds after which an unused connection is closed. statements: prepared ones
    kept per connection, 0 for none. budget: a cap shared with other pools.
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 0,
        max_size: int = 10,
        depth: int = 32,
        acquire_timeout: float = 10.0,
        statement_timeout: float | None = None,
        idle_timeout: float = 60.0,
        connect_timeout: float = 5.0,
        statements: int = 500,
        budget: ConnectionBudget | None = None,
        application_name: str = "ichibase",
    ) -> None:
        if max_size < 1 or depth < 1 or not 0 <= min_size <= max_size:
            raise ValueError("max_size and depth are at least 1, min_size at most max_size")
        self._min_size = min_size
        self._max_size = max_size
        self._depth = depth
        self._acquire_timeout = acquire_timeout
        self._statement_timeout = statement_timeout
        self._idle_timeout = idle_timeout
        self._budget = budget
        if budget is not None:
            budget.join(self)
        self._shared = Shared()
        self._links: list[Link] = []
        self._executors: list[Any] = []  # the links' executors, in the same order
        connect = partial(
            open_link,
            dsn,
            self._shared,
            connect_timeout=connect_timeout,
            statements=statements,
            application_name=application_name,
        )
        self._opener = Opener(self, budget, connect, self._opened, self._refused)
        self._quick: deque[tuple[Group, float]] = deque()  # with the time to give up waiting
        self._slow: deque[tuple[Group, float]] = deque()
        self._sessions: deque[tuple[asyncio.Future[Link], float]] = deque()
        self._fetches: dict[str, Statement] = {}
        self.placing = Placing(
            self._executors, self._shared, depth, max_size, statement_timeout or 0.0
        )
        self.placing.waiting = (self._quick, self._slow, self._sessions)
        self.placing.told = self._told
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._counts = {"groups": 0, "queued": 0, "cancelled": 0, "retried": 0, "opened": 0}

    # --- running -----------------------------------------------------------------------------

    async def run(
        self, group: Group, *, slow: bool = False, timeout: float | None = None
    ) -> list[Result]:
        """Runs a group once, as one transaction; gives one result per statement.

        slow: it may take long (no bound on its rows, may wait for locks): it is not put where
        quick ones would wait behind it. timeout: seconds until StatementTimeout, over all.
        Raises PgError (rolled back), PgUnavailable, PoolTimeout, StatementTimeout.
        """
        loop = self._loop or self._begin()
        future: asyncio.Future[list[Result]] = loop.create_future()
        self.submit(group, future, slow, timeout)
        return await self._outcome(group, future)

    def submit(
        self, group: Group, waiter: Any, slow: bool = False, timeout: float | None = None
    ) -> None:
        """As run, for a waiter of one's own with done(), set_result(list) and
        set_exception(error), which are called from the loop. Raises what run would at once."""
        if self._loop is None:
            self._begin()
        now = monotonic()
        self._enter(group, waiter, now, timeout)
        if slow or (self._shared.slow_sql and self._shared.is_slow(group)):
            group.slow = True
        self._start(group, now)

    def _enter(self, group: Group, waiter: Any, now: float, timeout: float | None) -> None:
        """Gives a group its waiter and its deadline, and sees that somebody minds the time."""
        group.waiter = waiter
        if timeout is None:
            timeout = self._statement_timeout
        if timeout is not None:
            group.deadline = now + timeout
        self._counts["groups"] += 1
        if not self.placing.busy:
            self._wake()

    async def _outcome(self, group: Group, future: asyncio.Future[list[Result]]) -> list[Result]:
        """The group's results; a caller that is cancelled meanwhile leaves the group."""
        try:
            return await future
        except asyncio.CancelledError:
            self.leave(group)
            raise

    async def fetch(
        self, sql: str, params: tuple[object, ...] = (), *, timeout: float | None = None
    ) -> list[tuple[str | None, ...]]:
        """Rows of one statement as text, in nobody's role."""
        statement = self._fetches.get(sql)
        if statement is None:
            if len(self._fetches) >= 256:
                self._fetches.clear()
            statement = self._fetches[sql] = Statement(sql, result=VALUES, per_role=False)
        group = Group("")
        group.add(statement, tuple(_parameter(value) for value in params))
        (result,) = await self.run(group, slow=True, timeout=timeout)
        return [
            tuple(None if value is None else value.decode() for value in row)
            for row in result.values
        ]

    @asynccontextmanager
    async def session(self, timeout: float | None = None) -> AsyncIterator[Session]:
        """A connection of one's own within `timeout` seconds (PoolTimeout); left in a
        transaction, it is rolled back."""
        loop = self._loop or self._begin()
        if timeout is None:
            timeout = self._acquire_timeout
        waiter: asyncio.Future[Link] = loop.create_future()
        self._refuse_when_away()
        self._sessions.append((waiter, monotonic() + timeout))
        self._wake()
        self._dispatch()
        try:
            link = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._free(waiter.result())
            raise
        session = Session(self, link)
        try:
            yield session
        except BaseException as error:
            session.doubt = session.doubt or not isinstance(error, Exception)
            raise
        finally:
            self._release(session, link)

    async def run_on(self, link: Link, group: Group, timeout: float | None) -> list[Result]:
        """A group of a session on its own connection."""
        assert self._loop is not None
        future: asyncio.Future[list[Result]] = self._loop.create_future()
        now = monotonic()
        self._enter(group, future, now, timeout)
        self._submit(link.executor, group, now)
        return await self._outcome(group, future)

    def forget(self) -> None:
        """Drops what was learned of statements and types: after the schema has changed."""
        self._shared.forget()

    @property
    def max_size(self) -> int:
        return self._max_size

    def stats(self) -> dict[str, int]:
        """Counts since the start (groups, queued, cancelled, retried, opened) and the present
        state (connections, busy, in_flight, waiting, opening, prepared)."""
        return {
            **self._counts,
            "groups": self._counts["groups"] + self.placing.groups,
            "connections": len(self._links),
            "busy": sum(1 for one in self._executors if one.depth or one.exclusive),
            "in_flight": sum(one.depth for one in self._executors),
            "waiting": len(self._quick) + len(self._slow) + len(self._sessions),
            "opening": len(self._opener),
            "prepared": sum(one.prepared_count for one in self._executors),
        }

    async def close(self, grace: float = 5.0) -> None:
        """Waits up to `grace` seconds for what is in flight, then closes every connection."""
        self._closed = self.placing.closed = True
        self._fail_waiting(PgUnavailable("the connection pool is closed"))
        if self._loop is not None:
            until = monotonic() + grace
            while any(one.depth for one in self._executors) and monotonic() < until:
                await asyncio.sleep(0.01)
        await self._opener.stop()
        for link in list(self._links):
            self._drop(link)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._budget is not None:
            self._budget.leave(self)

    async def retire(self) -> None:
        """Closes the pool when those who still hold it have stopped using it: a request may need
        several groups, and more may be waiting than are in flight."""
        until, seen, quiet = monotonic() + RETIRED_MOST, -1, 0
        # Looks are counted, not seconds: when this process stands still, its requests do too.
        while not self._closed and quiet < RETIRED_LOOKS and monotonic() < until:
            stats = self.stats()
            used = stats["in_flight"] or stats["waiting"] or stats["groups"] != seen
            quiet, seen = 0 if used else quiet + 1, stats["groups"]
            await asyncio.sleep(RETIRED_QUIET / RETIRED_LOOKS)
        if not self._closed:
            await self.close()

    # --- placing ------------------------------------------------------------------------------

    def _begin(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise PgUnavailable("the connection pool is closed")
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _refuse_when_away(self) -> None:
        """Fails at once while the server is known to be away: nobody waits for a back-off."""
        if self._closed:
            raise PgUnavailable("the connection pool is closed")
        away = None if self._links else self._opener.away()
        if away is not None:
            raise away

    def _slow_room(self) -> bool:
        """One connection of the cap is kept for quick groups."""
        taken = sum(1 for one in self._executors if one.slow_depth or one.exclusive)
        return taken < max(1, self._max_size - 1)

    def _start(self, group: Group, now: float) -> None:
        """Sends the group now, or lets it wait."""
        if group.slow:
            if not self._slow and not self._sessions and self._slow_room():
                executor = idle(self._executors)
                if executor is not None:
                    self._submit(executor, group, now)
                    return
        elif not self._quick:
            executor = self.placing.choose(group)
            if executor is not None:
                self._submit(executor, group, now)
                if self.placing.crowded(executor, group):
                    self._grow(1)
                return
        self._refuse_when_away()
        self._counts["queued"] += 1
        (self._slow if group.slow else self._quick).append((group, now + self._acquire_timeout))
        self._dispatch()

    def _submit(self, executor: Any, group: Group, now: float) -> None:
        executor.submit(group, now)
        if executor.wants_write or executor.lost:
            self._after(self._links[self._executors.index(executor)])

    def _dispatch(self) -> None:
        """Gives waiting groups the connections that can take them, slow ones and sessions first:
        they need an idle connection, which quick ones would soon take again."""
        assert self._loop is not None
        now = monotonic()
        while (self._sessions or self._slow) and self._slow_room():
            executor = idle(self._executors)
            if executor is None:
                break
            executor.reserved = False
            if self._sessions:
                waiter, _ = self._sessions.popleft()
                if not waiter.done():
                    executor.exclusive = True
                    waiter.set_result(self._links[self._executors.index(executor)])
            else:
                self._try(executor, self._slow.popleft()[0], now)
        while self._quick:
            executor = self.placing.choose(self._quick[0][0])
            if executor is None:
                break
            self._try(executor, self._quick.popleft()[0], now)
        self._reserve()
        waiting = len(self._quick) + (
            len(self._slow) + len(self._sessions) if self._slow_room() else 0
        )
        if waiting:
            self._grow(waiting)

    def _try(self, executor: Any, group: Group, now: float) -> None:
        if group.abandoned or group.waiter is None or group.waiter.done():
            return
        try:
            self._submit(executor, group, now)
        except (PgError, PgUnavailable, TypeError) as error:
            group.waiter.set_exception(error)

    def _reserve(self) -> None:
        """Lets one connection run empty for a slow group that waits while the pool is full."""
        wanted = bool(self._slow or self._sessions) and self._slow_room()
        if not wanted or len(self._links) < self._max_size:
            for one in self._executors:
                one.reserved = False
            return
        if any(one.reserved for one in self._executors):
            return
        shared = [
            one for one in self._executors if not (one.slow_depth or one.exclusive or one.lost)
        ]
        if len(shared) > 1 or (shared and self._max_size == 1):
            min(shared, key=lambda one: one.depth).reserved = True

    def leave(self, group: Group) -> None:
        """The caller is gone: a group that waits is dropped, one that runs alone is cancelled,
        one that shares its connection runs to its end and its result is dropped."""
        group.abandon()
        for queue in (self._quick, self._slow):
            for entry in queue:
                if entry[0] is group:
                    queue.remove(entry)
                    return
        for link in self._links:
            executor = link.executor
            if executor.depth == 1 and executor.head is group:
                self._cancel(link)
                return

    def _release(self, session: Session, link: Link) -> None:
        """A session ends: its connection goes back clean or not at all."""
        executor = link.executor
        if executor.lost:
            return
        if executor.depth or session.doubt or executor.cancelling:
            self._drop(link)
            self._dispatch()
        elif executor.in_transaction:
            self._roll_back(link)
        else:
            self._free(link)

    def _roll_back(self, link: Link) -> None:
        assert self._loop is not None
        group = Group("")
        group.add(_ROLLBACK, ())
        group.in_session = True
        done = self._loop.create_future()
        group.waiter = done

        def ended(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self._drop(link)
            self._free(link)

        done.add_done_callback(ended)
        self._submit(link.executor, group, monotonic())

    def _free(self, link: Link) -> None:
        link.executor.exclusive = False
        self._dispatch()

    def _told(self, what: str, executor: Any) -> None:
        """What a placement from another thread leaves for the loop to do."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._do, what, executor)

    def _do(self, what: str, executor: Any) -> None:
        if what == WAKE:
            self._quicken()
        elif what == GROW:
            self._grow(1)
            self.placing.grown()
        elif what == AFTER and executor in self._executors:
            self._after(self._links[self._executors.index(executor)])

    # --- connections ----------------------------------------------------------------------------

    def _grow(self, wanted: int) -> None:
        """Opens connections, as many as wanted and allowed."""
        if self._closed:
            return
        away = self._opener.away()
        if away is not None:
            if not self._links and not self._opener:  # the last one broke while others waited
                self._fail_waiting(away)
            return
        room = self._max_size - len(self._links) - len(self._opener)
        self._opener.open(min(room, wanted - len(self._opener)))

    def _opened(self, link: Link) -> None:
        assert self._loop is not None
        self._counts["opened"] += 1
        link.executor.idle_since = monotonic()
        self._links.append(link)
        self._executors.append(link.executor)
        more = partial(self._more, link)
        reader = Reader(link.executor, self.placing, monotonic, more)
        self._loop.add_reader(link.fileno, reader)
        self._dispatch()

    def _refused(self, error: PgUnavailable) -> None:
        """While other connections work, those who wait go on waiting for them."""
        if not self._links:
            self._fail_waiting(error)

    def _fail_waiting(self, error: Exception) -> None:
        waiters = [group.waiter for group, _ in (*self._quick, *self._slow)]
        waiters += [waiter for waiter, _ in self._sessions]
        self._quick.clear()
        self._slow.clear()
        self._sessions.clear()
        for waiter in waiters:
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)

    def _more(self, link: Link, error: Exception | None) -> None:
        """After results have been handed out."""
        if error is not None:
            log.error("a result could not be read", exc_info=error)
        executor = link.executor
        if executor.retry or executor.lost or executor.wants_write != executor.writing:
            self._after(link)
        if executor.cancelling:
            self._settle_cancel(link)
        if self._quick or self._slow or self._sessions:
            self._dispatch()

    def _writable(self, link: Link) -> None:
        link.executor.on_writable()
        self._after(link)

    def _after(self, link: Link) -> None:
        """What the executor left to do: watch for room to write, run groups again, close."""
        assert self._loop is not None
        executor = link.executor
        if executor.lost:
            self._drop(link)
        elif executor.wants_write != executor.writing:
            executor.writing = executor.wants_write
            if executor.writing:
                self._loop.add_writer(link.fileno, self._writable, link)
            else:
                self._loop.remove_writer(link.fileno)
        again, executor.retry[:] = list(executor.retry), []
        for group in again:
            self._counts["retried"] += 1
            group.restart()
            if group.crowded:
                self._loop.call_later(ROOM_PAUSE, self._again, group)
            else:
                self._again(group)

    def _again(self, group: Group) -> None:
        """Nothing of the group has been done."""
        if group.waiter is None or group.waiter.done():
            return
        try:
            self._start(group, monotonic())
        except (PgError, PgUnavailable) as error:
            group.waiter.set_exception(error)

    def _drop(self, link: Link) -> None:
        """Closes a connection; its groups fail."""
        assert self._loop is not None
        if link not in self._links:
            return
        index = self._links.index(link)
        del self._links[index]
        del self._executors[index]
        self._loop.remove_reader(link.fileno)
        if link.executor.writing:
            self._loop.remove_writer(link.fileno)
        link.close()
        if link.executor.retry:
            self._after(link)
        self._opener.closed()

    def give_back(self) -> bool:
        """Closes one idle connection for another pool's sake."""
        for link in self._links:
            if link.executor.free and link.executor.depth == 0:
                self._drop(link)
                return True
        return False

    def wanted(self) -> None:
        """The budget has room again."""
        if self._loop is not None and not self._closed:
            self._dispatch()

    # --- time ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        """From the slow to the quick tick."""
        if not self.placing.busy:
            self.placing.busy = True
            self._quicken()

    def _quicken(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(BUSY_TICK, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        now = monotonic()
        self._expire_waiting(now)
        for link in list(self._links):
            self._check(link, now)
        if self._quick or self._slow or self._sessions:
            self._dispatch()
        elif len(self._links) + len(self._opener) < self._min_size:
            self._grow(self._min_size - len(self._links))
        self.placing.busy = bool(
            self._quick or self._slow or self._sessions or any(one.depth for one in self._executors)
        )
        if self.placing.busy or self._links or self._min_size:
            pause = BUSY_TICK if self.placing.busy else IDLE_TICK
            self._timer = self._loop.call_later(pause, self._tick)
        else:
            self._timer = None

    def _expire_waiting(self, now: float) -> None:
        for queue in (self._quick, self._slow):
            for entry in [e for e in queue if now >= e[1] or 0 < e[0].deadline <= now]:
                queue.remove(entry)
                waiter = entry[0].waiter
                if waiter is not None and not waiter.done():
                    waiter.set_exception(PoolTimeout("no database connection became free in time"))
        for pair in [p for p in self._sessions if now >= p[1]]:
            self._sessions.remove(pair)
            if not pair[0].done():
                pair[0].set_exception(PoolTimeout("no database connection became free in time"))

    def _check(self, link: Link, now: float) -> None:
        """Deadlines, cancelled groups that do not end, idle connections."""
        executor = link.executor
        if executor.depth == 0:
            self._settle_cancel(link)
            if now - executor.idle_since > self._idle_timeout and executor.free:
                if len(self._links) > self._min_size:
                    self._drop(link)
            return
        executor.idle_since = now
        for group in executor.groups:
            if 0 < group.deadline <= now and not group.expired:
                group.expired = True
                waiter = group.waiter
                group.abandon()
                if waiter is not None and not waiter.done():
                    waiter.set_exception(StatementTimeout("the statement took too long"))
        head = executor.head
        if link.cancelled is not None:
            if link.cancelled is head and now - link.cancelled_at > CANCEL_GRACE:
                executor.abort("a cancelled statement did not end")
                self._after(link)
        elif head.abandoned and (head.expired or executor.depth == 1):
            self._cancel(link)

    def _cancel(self, link: Link) -> None:
        """Asks the server, over another connection and in a thread, to stop what it runs. No
        group is sent until the request has arrived and the cancelled group has ended: it could
        be hit instead."""
        assert self._loop is not None
        executor = link.executor
        if executor.cancelling or executor.lost:
            return
        executor.cancelling = True
        link.cancelled = executor.head
        link.cancelled_at = monotonic()
        link.cancel_pending = True
        self._counts["cancelled"] += 1
        self._wake()
        request = self._loop.run_in_executor(_cancellers, executor.cancel().send)

        def answered(future: asyncio.Future[bool]) -> None:
            link.cancel_pending = False
            if not future.cancelled() and future.exception() is None and not future.result():
                log.warning("a cancel request did not reach the database")
            self._settle_cancel(link)
            if self._quick or self._slow or self._sessions:
                self._dispatch()

        request.add_done_callback(answered)

    def _settle_cancel(self, link: Link) -> None:
        executor = link.executor
        if executor.cancelling and not link.cancel_pending and executor.head is not link.cancelled:
            link.cancelled = None
            executor.cancelling = False


def _parameter(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return str(value).encode()
