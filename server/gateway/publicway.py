"""The short way of small public files that this worker has in memory.

The storage service keeps them in a table by their path; what is there was served the general way a
moment ago and is believed for a second at most. Requests with any peculiarity, and all errors, take
the general way. Both give the same answers, but for the request's id, which has no place in an
answer that caches keep.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from time import perf_counter
from typing import Any

from ichicore.errors import ApiError
from server.gateway.edge import Edge
from server.storage.catalog import Hot
from server.storage.conditions import ranges, unmodified

# Headers that this way reads itself, and those with which a request takes the general way.
CONDITIONS = frozenset({"range", "if-range", "if-none-match", "if-modified-since"})
PECULIAR = CONDITIONS | {
    "if-match", "if-unmodified-since", "service-worker", "x-request-id", "upgrade",
    "transfer-encoding", "content-length", "cookie",
}  # fmt: skip


class Done:
    """Something to await that is over already."""

    def __await__(self) -> Generator[Any, Any, None]:
        return iter(())  # type: ignore[return-value]


DONE = Done()


class PublicWay:
    """Of one worker. table: the storage service's, once it is mounted."""

    def __init__(self, edge: Edge, clock: Callable[[], float]) -> None:
        """clock: seconds, right in any thread."""
        self.edge = edge
        self.clock = clock
        self.table: dict[str, Hot] = {}
        self._observe = edge._timers["cdn"].observe
        edge.directory.on_change(lambda project, slug: self.table.clear())

    def handle(self, scope: Any, protocol: Any) -> Awaitable[None] | None:
        """Answers and gives something to await; None when the request has to go the general way."""
        hot = self.table.get(scope.path)
        if hot is None or hot.entry.until <= self.clock():
            return None
        if scope.method != "GET" or "download" in scope.query_string or "%" in scope.query_string:
            return None
        raw = scope.headers
        if hot.host is not None and raw.get("host") != hot.host:
            return None
        peculiar = PECULIAR.intersection(raw.keys())
        if peculiar:
            return self._conditional(hot, raw, peculiar, protocol)
        started = perf_counter()
        if not self._admitted(hot, started):
            return None
        tenant = hot.tenant
        tenant.reads += 1
        tenant.egress += hot.entry.size
        protocol.response_bytes(200, hot.headers, hot.body)
        self._observe(200, perf_counter() - started)
        return DONE

    def _conditional(
        self, hot: Hot, raw: Any, peculiar: frozenset[str], protocol: Any
    ) -> Awaitable[None] | None:
        started = perf_counter()
        if not peculiar <= CONDITIONS:
            return None
        headers = {name: raw.get(name) for name in peculiar}
        if len(raw.values()) != len(raw.keys()):
            return None  # one of them is given twice, or is not ASCII
        entry = hot.entry
        known, pieces = False, None
        try:
            if "if-none-match" in headers or "if-modified-since" in headers:
                known = unmodified(headers, entry.etag, entry.modified)
            if not known and "range" in headers:
                pieces = ranges(headers, entry.size, entry.etag, entry.modified)
        except ApiError:
            return None
        if (pieces is not None and len(pieces) > 1) or not self._admitted(hot, started):
            return None
        hot.tenant.reads += 1
        if known:
            status = 304
            protocol.response_empty(304, hot.unchanged)
        elif pieces is None:
            status = 200
            hot.tenant.egress += entry.size
            protocol.response_bytes(200, hot.headers, hot.body)
        else:
            status = 206
            start, end = pieces[0]
            hot.tenant.egress += end - start
            told = ("content-range", f"bytes {start}-{end - 1}/{entry.size}")
            protocol.response_bytes(206, [*hot.headers, told], hot.body[start:end])
        self._observe(status, perf_counter() - started)
        return DONE

    def _admitted(self, hot: Hot, now: float) -> bool:
        """Whether the project takes requests, and this one within its rate."""
        site = hot.site
        if site is None:
            site = hot.site = self.edge.site(hot.tenant.project.slug)
        return bool(site.plain and site.tally.take(now))
