"""Opens the short way of documents for hosts whose project has been served the general way."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import Any

from ichicore.errors import ApiError
from ichicore.mongo.way import Lane, Way
from server.base.http import error_response
from server.gateway import reply
from server.gateway.edge import Edge
from server.gateway.site import Site

MOST_LANES = 4096


class DocumentWay:
    """Keeps the lanes of one worker. resume: sends a request whose body has been read on the
    general way."""

    def __init__(self, edge: Edge, resume: Callable[[Any, Any, bytes], None]) -> None:
        self.edge = edge
        self.way = Way(f"{edge._prefix}m")
        self.way.in_flight = edge.watch.in_flight
        self.way.watchers = edge.watch.watchers
        self.way.unwatch = edge.watch.over
        self.way.observe = edge._timers["mongo"].observe
        self.way.noted = self.noted
        self.way.failed = self.failed
        self.way.resume = resume
        self.way.clock = monotonic
        self.way.now = time

    def open(self, host: str | None, site: Site) -> None:
        """A request of this host was served the general way: the next ones may go the short way."""
        service: Any = self.edge.services.get("mongo")
        lane = self.way.lanes.get(host)
        if service is None or not site.plain or host is None:
            return
        if self.edge.site_of(host) is not site:  # the project has changed meanwhile
            return
        if lane is not None and not lane.guide.store.closed and lane.known is site.ring.known:
            return
        guide = service.guide(site.project)
        if guide is None:
            return
        if len(self.way.lanes) >= MOST_LANES:
            self.way.lanes.clear()
        lane = Lane()
        lane.known = site.ring.known
        lane.denied = site.ring.denied
        lane.cors = site.cors.headers
        lane.silent = site.cors.silent
        lane.tally = site.tally
        lane.guide = guide
        lane.dock = guide.store.dock
        self.way.lanes[host] = lane

    def close_all(self) -> None:
        """A project has changed."""
        self.way.lanes.clear()

    def _id(self, number: int) -> str:
        return f"{self.way.prefix}{number:08x}"

    def noted(
        self, scope: Any, headers: dict[str, str], number: int, status: int, seconds: float
    ) -> None:
        """A slow or failed request gets its line in the log."""
        self.edge.short_line("mongo", self._id(number), scope, headers, status, seconds)

    def failed(
        self, scope: Any, protocol: Any, headers: dict[str, str], error: Exception, number: int,
        guide: Any,
    ) -> int:  # fmt: skip
        """Answers what was refused; the status."""
        request = self.edge.short_request("mongo", self._id(number), scope, protocol, headers)
        service: Any = self.edge.services["mongo"]
        known: ApiError | None = service.refusal(guide.project, error)
        if known is None:
            return self.edge._fault(error, request, protocol)
        return reply.send(protocol, error_response(known), request)
