"""The admin port of `ichibase rest`: /live, /ready, /metrics, /config, /schema_cache."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.standalone.config import dump

if TYPE_CHECKING:
    from server.standalone.app import Standalone

REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


class AdminServer:
    """HTTP/1.1 with GET and one request a connection: for probes and people."""

    def __init__(self, server: Standalone) -> None:
        self.server = server
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        config = self.server.config
        host = None if config.admin_host.startswith(("!", "*")) else config.admin_host
        self._listener = await asyncio.start_server(
            self._serve, host, config.admin_port, reuse_port=True
        )

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            path = head.split(b" ", 2)[1].decode("latin-1").partition("?")[0]
            status, kind, body = await self._answer(path)
            writer.write(
                f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError, IndexError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str) -> tuple[int, str, bytes]:
        server = self.server
        if path == "/live":
            return 200, "text/plain", b""
        if path == "/ready":
            return (200 if await server.ready() else 503), "text/plain", b""
        if path == "/config":
            return 200, "text/plain; charset=utf-8", dump(server.config).encode()
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4", self._metrics().encode()
        summary = server.summary()
        if path == "/schema_cache" and summary is not None:
            return 200, "application/json", summary
        return 404, "text/plain", b""

    def _metrics(self) -> str:
        """Under PostgREST's names what it has too, the rest under our own."""
        server = self.server
        stats = server.pool.stats()
        known = server.auth.known
        lines = []
        for name, kind, values in (
            ("pgrst_db_pool_max", "gauge", {"": server.config.pool}),
            ("pgrst_db_pool_available", "gauge", {"": server.config.pool - stats["busy"]}),
            ("pgrst_db_pool_waiting", "gauge", {"": stats["waiting"]}),
            ("pgrst_schema_cache_loads_total", "counter",
             {f'{{status="{status}"}}': count for status, count in server.loads.items()}),
            ("pgrst_schema_cache_query_time_seconds", "gauge", {"": server.load_seconds}),
            ("pgrst_jwt_cache_requests_total", "counter", {"": known.hits + known.misses}),
            ("pgrst_jwt_cache_hits_total", "counter", {"": known.hits}),
        ):  # fmt: skip
            lines.append(f"# TYPE {name} {kind}")
            lines += [f"{name}{label} {value}" for label, value in values.items()]
        own = {
            **stats, "requests": server.requests, "short_way_requests": server.way.tally.count,
        }  # fmt: skip
        lines += [f"ichibase_rest_{name} {value}" for name, value in own.items()]
        return "\n".join(lines) + "\n"
