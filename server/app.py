"""The application of one HTTP worker: builds everything and knows all of it, nothing else does."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
from typing import Any

from server.base.bus import PgBus
from server.base.context import TOKEN_REVOKED, NodeConfig, WorkerContext
from server.base.events import Events, Lost
from server.base.http import Service
from server.base.logs import Logger
from server.base.metrics import Metrics, MetricsFile
from server.control import records
from server.gateway.directory import ControlDirectory, Source
from server.gateway.edge import Edge
from server.gateway.express import ExpressWay
from server.gateway.hosts import HostRule
from server.gateway.pools import ProjectPools
from server.gateway.routes import Route

READY_SECONDS = 10.0
METRICS_SECONDS = 1.0


class Worker:
    """One worker's parts, from the bottom up."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.events = Events()
        self.metrics = Metrics()
        self.logger = Logger(config.access_log, config.log_format)
        self.events.listeners += [self.logger, self._count_lost]
        self.bus = PgBus(config.control_dsn, self.events)
        source = Source(
            all=records.SELECT_ACTIVE,
            one=records.SELECT_ONE,
            decode=lambda text: records.decode(text, config),
            topic=records.TOPIC,
        )
        self.directory = ControlDirectory(config.control_dsn, source, self.bus, self.events)
        self.pools = ProjectPools(
            config.max_connections, self.directory, config.statement_timeout_ms
        )
        self.metrics.gauges.append(self.pools.gauges)
        self.context = WorkerContext(config, self.directory, self.pools, self.bus, self._verify)
        self.edge = Edge(
            self.directory,
            HostRule(config.base_domain, config.default_project, config.public_url, config.cdn_url),
            self._mount,
            self.events,
            self.metrics,
            body_limit=config.body_limit,
            ready=self.directory.ready.is_set,
            wants_line=self.logger.wants,
        )
        self.bus.subscribe(TOKEN_REVOKED, self.edge.revoked)
        self.writer = MetricsFile(self.metrics, config.metrics_dir)
        self._ticker: asyncio.Task[None] | None = None

    def open_express(self) -> ExpressWay:
        """The short way of plain reads."""
        from server.postgres import faults
        from server.postgres.response import large

        def rest_of(project: Any) -> Any:
            service: Any = self.edge.services.get("postgres")
            rest = None if service is None else service.projects.get(project.id)
            return rest if rest is not None and rest.project is project else None

        way = ExpressWay(self.edge, rest_of, faults, large)
        if self.config.access_log != "all":  # that log has a line for each request
            self.edge.opened = way.open
        self.directory.on_change(lambda project, slug: way.close_all())
        return way

    def _verify(self, project: Any, token: str) -> Any:
        return self.edge.verify(project, token)

    def _count_lost(self, event: object) -> None:
        if isinstance(event, Lost):
            self.metrics.count("ichibase_lost_connections_total")

    async def _mount(self, route: Route) -> Service | None:
        """The service behind a route, from its own package; None when this build has none."""
        if importlib.util.find_spec(route.module) is None:
            return None
        factory = getattr(importlib.import_module(route.module), route.factory)
        done = len(self.context.on_start)
        service: Service = await factory(self.context)
        for start in self.context.on_start[done:]:
            await start()
        return service

    async def start(self) -> None:
        """Connects to the control database and waits a while for the projects; a worker whose
        database is away starts all the same and answers 503 until it is back."""
        self.bus.start()
        self.directory.start()
        self.edge.start()
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="metrics")
        try:
            await asyncio.wait_for(self.directory.ready.wait(), READY_SECONDS)
        except TimeoutError:
            pass

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            self.writer.write()

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for stop in reversed(self.context.on_stop):
            await stop()
        await self.edge.stop()
        await self.directory.stop()
        await self.bus.stop()
        await self.pools.close()
        self.writer.write()


class Application:
    """What Granian calls."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.handle: Any = None
        self.express: Any = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from server.node.gateway_main import read_listener

        self.worker = Worker(read_listener().config)
        loop.run_until_complete(self.worker.start())
        self.handle = self.worker.edge.handle
        way = self.worker.open_express().way
        way.loop = loop
        self.express = way.handle
        gc.collect()
        gc.freeze()  # what is there now stays; collections need not look at it again
        gc.set_threshold(20_000, 20, 50)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.worker is not None:
            loop.run_until_complete(self.worker.stop())

    def __rsgi__(self, scope: Any, protocol: Any) -> Any:
        """Something to await: a ticket of the short way, or the coroutine of the general one."""
        ticket = self.express(scope, protocol)
        return ticket if ticket is not None else self.handle(scope, protocol)


application = Application()
