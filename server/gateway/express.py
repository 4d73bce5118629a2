"""Opens the short way of plain reads and writes for hosts whose project has its engine ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter, time
from typing import Any

import orjson

from ichicore.http.express import Express, Lane
from ichicore.http.target import canonical
from ichicore.pg.errors import PgError
from server.base.http import Response
from server.gateway import reply
from server.gateway.edge import Edge
from server.gateway.request import EdgeRequest
from server.gateway.site import Site
from server.gateway.watch import Watch
from server.postgres.settings import BUSY

MAX_LANES = 4096


class ShortWay:
    """Answers of the short way that the core leaves to others, in the terms of the general way.

    faults: the Postgres service's module of error answers. engine: its module of answers on the
    short way. handle: the general way, a coroutine function of scope and protocol.
    """

    minimal = False  # errors without details and hints
    busy = 504  # status of a request for which no connection came free

    def __init__(self, way: Express, faults: Any, engine: Any, handle: Any) -> None:
        self.way = way
        self.faults = faults
        self.engine = engine
        self.handle = handle
        self._resumed: set[asyncio.Task[None]] = set()
        way.noted = self.noted
        way.failed = self.failed
        way.answered = self.answered
        way.resume = self.resume
        way.page = engine.page
        way.canonical = canonical
        way.clock = perf_counter  # the event loop's and the pool's
        way.now = time
        way.dumps = orjson.dumps

    def watched_by(self, watch: Watch) -> None:
        """Shares the requests in flight with the general way."""
        self.way.in_flight = watch.in_flight
        self.way.watchers = watch.watchers
        self.way.unwatch = watch.over

    # What differs between the programs

    def request(
        self, scope: Any, protocol: Any, headers: dict[str, str], number: int
    ) -> EdgeRequest:
        """The request that a ticket stands for."""
        raise NotImplementedError

    def noted(
        self, scope: Any, headers: dict[str, str], number: int, status: int, seconds: float
    ) -> None:
        """A slow or failed request gets its line in the log."""
        raise NotImplementedError

    def fault(self, error: Exception, request: EdgeRequest, protocol: Any) -> int:
        """Answers what must not happen; the status."""
        raise NotImplementedError

    def anonymous(self, role: str) -> bool:
        """Whether requests without a token work in this role."""
        raise NotImplementedError

    # Answers

    def lane(self, engine: Any, pool: Any) -> Lane:
        """A lane to an engine that has a catalog; who may ask is left to the caller."""
        lane = Lane()
        generation = engine.generation
        lane.plans = generation.plans
        lane.preface = generation.short_preface
        lane.submit = pool.submit
        lane.leave = pool.leave
        lane.placing = pool.placing
        lane.base_path = generation.settings.base_path
        lane.engine = engine
        lane.generation = generation
        return lane

    def keep(self, host: str | None, lane: Lane) -> None:
        """Requests of this host take the lane from now on."""
        if len(self.way.lanes) > MAX_LANES:
            self.way.lanes.clear()
        self.way.lanes[host] = lane

    def close_all(self) -> None:
        """Who is served, or a catalog, has changed."""
        self.way.lanes.clear()

    def failed(
        self, scope: Any, protocol: Any, headers: dict[str, str], error: Exception, number: int,
        role: str,
    ) -> int:  # fmt: skip
        """Answers what the database or the pool refused; the status."""
        request = self.request(scope, protocol, headers, number)
        if isinstance(error, PgError):
            response = self.faults.database_error(
                error, authenticated=not self.anonymous(role), minimal=self.minimal
            )
        elif isinstance(error, self.faults.POOL_ERRORS):
            response = self.faults.pool_error(error, minimal=self.minimal, busy=self.busy)
        else:
            return self.fault(error, request, protocol)
        return reply.send(protocol, response, request)

    def answered(
        self, scope: Any, protocol: Any, headers: dict[str, str], plan: Any, results: Any,
        query: str, base_path: str, number: int, offset: int,
    ) -> int:  # fmt: skip
        """Answers what depends on more than rows in memory; the status."""
        request = self.request(scope, protocol, headers, number)
        response: Response = self.engine.answer(
            plan, results, offset, query, base_path, minimal=self.minimal
        )
        if response.stream is None:
            return reply.send(protocol, response, request)
        return reply.send_spooled(protocol, response, request)

    def resume(self, scope: Any, protocol: Any, body: bytes) -> None:
        """Sends a write whose body has been read on the general way; from any thread."""
        self.way.loop.call_soon_threadsafe(self._resume, scope, Replayed(protocol, body))

    def _resume(self, scope: Any, protocol: Replayed) -> None:
        task = self.way.loop.create_task(self.handle(scope, protocol))
        self._resumed.add(task)
        task.add_done_callback(self._resumed.discard)


class ExpressWay(ShortWay):
    """The lanes of one worker of a node. `rest_of` gives a project's mounted engine, or None."""

    busy = BUSY

    def __init__(self, edge: Edge, rest_of: Any, faults: Any, engine: Any) -> None:
        super().__init__(Express(f"{edge._prefix}x"), faults, engine, edge.handle)
        self.edge = edge
        self.rest_of = rest_of
        self.watched_by(edge.watch)
        self.way.observe = edge._timers["postgres"].observe

    def open(self, host: str | None, site: Site) -> None:
        """A request of this host was served the general way: the next ones may go the short way."""
        rest = self.rest_of(site.project)
        generation = None if rest is None else rest.engine.generation
        if generation is None:
            return
        lane = self.way.lanes.get(host)
        if lane is not None and lane.generation is generation and lane.known is site.ring.known:
            return
        lane = self.lane(rest.engine, rest.pool)
        lane.known = site.ring.known
        lane.denied = site.ring.denied
        lane.keyed = True
        lane.extra = site.cors.silent
        lane.cors = site.cors.headers
        lane.rest = rest
        lane.tally = site.tally
        lane.writes = site.plain
        self.keep(host, lane)

    def request(
        self, scope: Any, protocol: Any, headers: dict[str, str], number: int
    ) -> EdgeRequest:
        return self.edge.short_request("postgres", self._id(number), scope, protocol, headers)

    def noted(
        self, scope: Any, headers: dict[str, str], number: int, status: int, seconds: float
    ) -> None:
        self.edge.short_line("postgres", self._id(number), scope, headers, status, seconds)

    def _id(self, number: int) -> str:
        return f"{self.way.prefix}{number:08x}"

    def fault(self, error: Exception, request: EdgeRequest, protocol: Any) -> int:
        return self.edge._fault(error, request, protocol)

    def anonymous(self, role: str) -> bool:
        return role == "anon"


class Replayed:
    """The HTTP server's protocol object after its body has been read."""

    def __init__(self, protocol: Any, body: bytes) -> None:
        self._protocol = protocol
        self._body = body

    async def __call__(self) -> bytes:
        return self._body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)
