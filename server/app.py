"""The worker process: builds what it needs, mounts the services, hands each request to the edge.

This is the only module that knows all rooms. `application` is what the HTTP server loads.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
import traceback
from collections.abc import Iterable
from typing import Any

from ichicore.mongo.way import Letter
from server.base import garbage
from server.base.bus import PgBus
from server.base.context import TOKEN_REVOKED, NodeConfig, WorkerContext
from server.base.directory import ControlDirectory, Source
from server.base.events import Event, Events, Failed, Lost
from server.base.hosts import HostRule
from server.base.http import Service
from server.base.logs import Logger
from server.base.metrics import LIVE, Labels, Metrics, MetricsFile
from server.base.revocations import Revocations
from server.base.serving import ServingLoop
from server.base.usage import Usage
from server.control import records
from server.gateway.documentway import DocumentWay
from server.gateway.edge import Edge
from server.gateway.express import ExpressWay
from server.gateway.gathering import Gathered
from server.gateway.pools import ProjectPools
from server.gateway.publicway import PublicWay
from server.gateway.routes import ROUTES, Route
from server.node.gateway_main import read_listener

START_WAIT = 3.0  # seconds a worker waits for the projects before it answers without them
METRICS_EVERY = 1.0  # seconds


class Worker:
    """One worker process of a node."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.events = Events()
        self.logger = Logger(config.access_log, config.log_format)
        self.metrics = Metrics()
        self.events.listeners += [self.logger, self._counted]
        self.bus = PgBus(config.control_dsn, self.events)
        source = Source(
            records.WORKERS_ACTIVE,
            records.WORKERS_ONE,
            lambda text: records.decode(text, config),
            records.TOPIC,
            records.WAKE,
        )
        self.directory = ControlDirectory(config.control_dsn, source, self.bus, self.events)
        self.pools = ProjectPools(
            config.max_connections, self.directory, config.statement_timeout_ms
        )
        self.metrics.gauges += [self.pools.gauges, self.live]
        self.edge = Edge(
            self.directory,
            HostRule(config.base_domain, config.default_project, config.public_url, config.cdn_url),
            self.mount,
            self.events,
            self.metrics,
            body_limit=config.body_limit,
            ready=self.ready,
            missing=self.missing,
            wants_line=self.logger.wants,
            wake=self.directory.wake,
            look=self.directory.look,
        )
        self.usage = Usage(config.control_dsn, self.events)
        self.usage.sources.append(lambda: [(id, "requests", n) for id, n in self.edge.requests()])
        self.revocations = Revocations(config.control_dsn, self.bus, self.edge.revoked, self.events)
        self.context = WorkerContext(
            config, self.directory, self.pools, self.bus, self.edge.verify, self.usage,
            self.revocations,
        )  # fmt: skip
        self.bus.subscribe(TOKEN_REVOKED, self.edge.revoked)
        self._file = MetricsFile(self.metrics, config.metrics_dir)
        self._writer: asyncio.Task[None] | None = None
        self._started = 0  # of context.on_start
        self.public_way: PublicWay | None = None

    def ready(self) -> bool:
        """Whether the projects, and the tokens that are refused, have been read."""
        return self.directory.ready.is_set() and self.revocations.ready.is_set()

    def live(self) -> Iterable[tuple[str, Labels, float]]:
        """Invocations of functions that this worker waits for."""
        functions = self.context.functions
        if functions is None:
            return
        slugs = {one.project_id: one.project.slug for one in functions.leases.values()}
        for project_id, number in functions.in_flight.items():
            if project_id in slugs:
                labels = (("project", slugs[project_id]), ("kind", "function_invocations"))
                yield LIVE, labels, number

    def missing(self) -> list[str]:
        """The parts without which not all requests can be served, by name."""
        parts = {
            "database": self.bus.connected.is_set(),
            "projects": self.directory.ready.is_set(),
            "revocations": self.revocations.ready.is_set(),
        }
        return [name for name, ready in parts.items() if not ready]

    def open_express(self) -> ExpressWay:
        """The short way of plain reads and writes."""
        from server.postgres import faults, short

        def rest_of(project: Any) -> Any:
            service: Any = self.edge.services.get("postgres")
            rest = None if service is None else service.projects.get(project.id)
            return rest if rest is not None and rest.project is project else None

        way = ExpressWay(self.edge, rest_of, faults, short)
        if self.config.access_log != "all":  # that log has a line for each request
            self.edge.opened["postgres"] = way.open
        self.directory.on_change(lambda project, slug: way.close_all())
        return way

    def open_documents(self, resume: Any) -> DocumentWay:
        """The short way of documents."""
        way = DocumentWay(self.edge, resume)
        if self.config.access_log != "all":
            self.edge.opened["mongo"] = way.open
        self.directory.on_change(lambda project, slug: way.close_all())
        return way

    def open_public(self) -> PublicWay:
        """The short way of small public files."""
        self.public_way = way = PublicWay(self.edge, time.monotonic)
        if self.config.access_log == "all":  # that log has a line for each request
            self.public_way = None
        return way

    async def start(self) -> None:
        """Connects, reads the projects, makes the services that ask to run from the beginning."""
        self.bus.start()
        self.directory.start()
        self.edge.start()
        self.usage.start()
        self.revocations.start()
        self._writer = asyncio.get_running_loop().create_task(self._write(), name="metrics")
        ready = [
            asyncio.ensure_future(event.wait())
            for event in (
                self.bus.connected,
                self.directory.ready,
                self.revocations.ready,
            )
        ]
        _, late = await asyncio.wait(ready, timeout=START_WAIT)
        for task in late:
            task.cancel()
        for route in ROUTES.values():
            module = self._module(route)
            if module is not None and getattr(module, "EAGER", False):
                await self._eager(route)

    async def stop(self) -> None:
        """Ends the services, then what they stand on."""
        for hook in reversed(self.context.on_stop):
            try:
                await hook()
            except Exception:
                self.events.emit(Failed("stopping a service", traceback.format_exc()))
        await self.edge.stop()
        await self.usage.stop()
        await self.revocations.stop()
        await self.directory.stop()
        await self.bus.stop()
        await self.pools.close()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        self._file.write()

    async def mount(self, route: Route) -> Service | None:
        """The service of a route, or None when this build has none."""
        module = self._module(route)
        if module is None:
            return None
        service: Service = await getattr(module, route.factory)(self.context)
        if route.name == "cdn" and self.public_way is not None:
            self.public_way.table = service.room.catalog.hot  # type: ignore[attr-defined]
        while self._started < len(self.context.on_start):
            hook = self.context.on_start[self._started]
            self._started += 1
            await hook()
        return service

    async def _eager(self, route: Route) -> None:
        try:
            service = await self.mount(route)
        except Exception:  # the first request to the route tries again
            self.events.emit(Failed(f"starting {route.name}", traceback.format_exc()))
            return
        if service is not None:
            self.edge.services[route.name] = service

    @staticmethod
    def _module(route: Route) -> Any:
        try:
            found = importlib.util.find_spec(route.module)
        except ModuleNotFoundError:
            return None
        if found is None:
            return None
        module = importlib.import_module(route.module)
        return module if hasattr(module, route.factory) else None

    def _counted(self, event: Event) -> None:
        if isinstance(event, Lost):
            self.metrics.count("ichibase_lost_connections_total")

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(METRICS_EVERY)
            try:
                self._file.write()
            except OSError as error:
                self.events.emit(Failed("writing the metrics", str(error)))


class Application:
    """What the HTTP server calls. The worker is built in the process that serves: the server may
    fork after loading this module."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.handle: Any = None
        self.express: Any = None
        self.public: Any = None

    def make(self) -> Worker:
        """The worker, not yet started."""
        return Worker(read_listener().config)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._start(loop))
        garbage.settle()

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        if isinstance(loop, ServingLoop):
            loop.handover.way = None
        if self.worker is not None:
            loop.run_until_complete(self.worker.stop())

    def __rsgi__(self, scope: Any, protocol: Any) -> Any:
        """Something to await: a ticket of the short way, or the coroutine of the general one."""
        ticket = self.express(scope, protocol) or self.public(scope, protocol)
        return ticket if ticket is not None else self.handle(scope, protocol)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.worker = self.make()
        garbage.Sweeper(self.worker.directory)
        self.public = self.worker.open_public().handle
        await self.worker.start()
        self.handle = self.worker.edge.handle
        express = self.worker.open_express()
        way = express.way
        way.loop = loop
        self.express = way.handle
        if isinstance(loop, ServingLoop):
            documents = self.worker.open_documents(express.resume).way
            documents.loop = loop
            loop.handover.other = self.public
            loop.handover.documents = documents.handle
            loop.handover.here |= {Letter, Gathered}
            loop.handover.way = way


application = Application()
