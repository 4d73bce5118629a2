"""Opens the short way of plain reads for the hosts whose project has its engine ready."""

from __future__ import annotations

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

    def __init__(self, edge: Edge, rest_of: Any, faults: Any, large: Any) -> None:
        """faults: the Postgres service's module of error answers. large: makes the Response of a
        body that is in a file."""
        self.edge = edge
        self.large = large
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
        query: str, base_path: str, number: int,
    ) -> None:  # fmt: skip
        """Answers with a body that is in a file."""
        request = self._request(scope, protocol, headers, number)
        response: Response = self.large(plan, result, canonical(query.encode()), base_path)
        reply.send_spooled(protocol, response, request)
