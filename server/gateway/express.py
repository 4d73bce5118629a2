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
from server.gateway.routes import ROUTES
from server.gateway.site import Site


class ExpressWay:
    """Keeps the lanes of one worker. `rest_of` gives a project's mounted engine, or None."""

    def __init__(self, edge: Edge, rest_of: Any, faults: Any, engine: Any) -> None:
        """faults: the Postgres service's module of error answers. engine: its module of answers on
        the short way."""
        self.edge = edge
        self.engine = engine
        self._resumed: set[asyncio.Task[None]] = set()
        self.rest_of = rest_of
        self.faults = faults
        self.way = Express(f"{edge._prefix}x")
        self.way.in_flight = edge._in_flight
        self.way.watchers = edge._watchers
        self.way.unwatch = edge._unwatch
        self.way.observe = edge._timers["postgres"].observe
        self.way.noted = self.noted
        self.way.failed = self.failed
        self.way.spooled = self.spooled
        self.way.answered = self.answered
        self.way.resume = self.resume
        self.way.page = engine.page
        self.way.canonical = canonical
        self.way.clock = perf_counter  # the event loop's and the pool's
        self.way.now = time
        self.way.dumps = orjson.dumps

    def open(self, host: str | None, site: Site) -> None:
        """A request of this host was served the general way: the next ones may go the short way."""
        rest = self.rest_of(site.project)
        generation = None if rest is None else rest.engine.generation
        if generation is None:
            return
        lane = self.way.lanes.get(host)
        if lane is not None and lane.generation is generation and lane.known is site.ring.known:
            return
        if len(self.way.lanes) > 4096:
            self.way.lanes.clear()
        lane = Lane()
        lane.known = site.ring.known
        lane.denied = site.ring.denied
        lane.plans = generation.plans
        lane.preface = generation.short_preface
        lane.submit = rest.pool.submit
        lane.leave = rest.pool.leave
        lane.placing = rest.pool.placing
        lane.base_path = rest.settings.base_path
        lane.extra = site.cors.silent
        lane.rest = rest
        lane.engine = rest.engine
        lane.generation = generation
        lane.tally = site.tally
        lane.writes = site.plain
        self.way.lanes[host] = lane

    def close_all(self) -> None:
        """A project or a catalog has changed."""
        self.way.lanes.clear()

    def _request(
        self, scope: Any, protocol: Any, headers: dict[str, str], number: int
    ) -> EdgeRequest:
        request = EdgeRequest(scope, protocol, self.edge.body_limit)
        request.headers = headers
        request.route = ROUTES["postgres"]
        request.id = f"{self.way.prefix}{number:08x}"
        site = self.edge.site_of(headers["host"])
        if site is not None:
            request.slug = site.slug
            request.cors = site.cors.silent
        return request

    def noted(
        self, scope: Any, headers: dict[str, str], number: int, status: int, seconds: float
    ) -> None:
        """A slow or failed request gets its line in the log."""
        if self.edge.wants_line(status, seconds):
            request = self._request(scope, None, headers, number)
            self.edge.line(request, scope, status, seconds, "")

    def failed(
        self, scope: Any, protocol: Any, headers: dict[str, str], error: Exception, number: int,
        role: str,
    ) -> int:  # fmt: skip
        """Answers what the database or the pool refused; the status."""
        request = self._request(scope, protocol, headers, number)
        if isinstance(error, PgError):
            response = self.faults.database_error(
                error, authenticated=role != "anon", minimal=False
            )
        elif isinstance(error, self.faults.POOL_ERRORS):
            response = self.faults.pool_error(error, minimal=False)
        else:
            return self.edge._fault(error, request, protocol)
        return reply.send(protocol, response, request)

    def spooled(
        self, scope: Any, protocol: Any, headers: dict[str, str], plan: Any, result: Any,
        query: str, base_path: str, number: int, offset: int,
    ) -> None:  # fmt: skip
        """Answers with a body that is in a file."""
        request = self._request(scope, protocol, headers, number)
        response: Response = self.engine.read(
            plan, result, offset, canonical(query.encode()), base_path
        )
        reply.send_spooled(protocol, response, request)

    def answered(
        self, scope: Any, protocol: Any, headers: dict[str, str], plan: Any, result: Any,
        base_path: str, number: int,
    ) -> int:  # fmt: skip
        """Answers a write whose answer depends on its rows; the status."""
        request = self._request(scope, protocol, headers, number)
        response: Response = self.engine.written(plan, result, base_path)
        if response.stream is None:
            return reply.send(protocol, response, request)
        return reply.send_spooled(protocol, response, request)

    def resume(self, scope: Any, protocol: Any, body: bytes) -> None:
        """Sends a write whose body has been read on the general way; from any thread."""
        self.way.loop.call_soon_threadsafe(self._resume, scope, Replayed(protocol, body))

    def _resume(self, scope: Any, protocol: Replayed) -> None:
        task = self.way.loop.create_task(self.edge.handle(scope, protocol))
        self._resumed.add(task)
        task.add_done_callback(self._resumed.discard)


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
