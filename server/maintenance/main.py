"""The process that keeps a node's projects in order: sizes, sleep, backups, what has run out.

Of all processes that share a control database one does it at a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable

import msgspec

from server.backup.jobs import Jobs
from server.base import processor
from server.base.bus import PgBus
from server.base.context import NodeConfig
from server.base.events import Events, Failed, Noted
from server.base.lifeline import name_process
from server.base.logs import Logger
from server.base.metrics import LIVE, Labels, Metrics, MetricsFile
from server.base.usage import Usage
from server.control.database import Cluster
from server.control.lifecycle import Lifecycle
from server.control.projects import Projects
from server.maintenance import idle, vacuums
from server.maintenance.census import Census
from server.maintenance.leader import Leader
from server.maintenance.logfiles import LogFiles
from server.maintenance.processors import Processors
from server.maintenance.quotas import Quotas
from server.maintenance.scheduler import Scheduler, Task
from server.maintenance.seed import Seed
from server.maintenance.servers import DocumentServers
from server.maintenance.shared import Shared
from server.maintenance.upgrades import Upgrades
from server.mongo.address import read_server
from server.mongo.provision import Documents
from server.node.embedded_pg import EmbeddedPostgres
from server.node.gateway_main import read_listener

METRICS_SECONDS = 5.0
WEIGHT = 25  # of the processors, while others want them too
HOUR = 3600.0
# Seconds to wait for who works on a project: the others are waiting too.
PATIENCE, RESTORE_PATIENCE = 3.0, 60.0
OLD = (
    "delete from usage where day > '-infinity' and day < (now() at time zone 'utc')::date - 400",
    "delete from usage_writers where at < now() - interval '1 day'",
    "delete from jobs where state in ('done', 'failed') "
    "and finished_at < now() - interval '30 days'",
)


class Maintenance:
    """Everything the process does, over one control database."""

    def __init__(self, config: NodeConfig, projects: Projects, events: Events) -> None:
        self.config = config
        restoring = projects.hurried(RESTORE_PATIENCE)
        self.projects = projects = projects.hurried(PATIENCE)
        self.events = events
        self.metrics = Metrics()
        self.usage = Usage(config.control_dsn, events)
        self.quotas = Quotas(projects, self.usage, events)
        self.shared = Shared(projects, events)
        self.seed = Seed(projects, events)
        self.jobs = Jobs(restoring, events, self.metrics)
        tick = config.maintenance_seconds
        tasks = [
            Task("changes of state", 2 * tick, self.recover),
            Task("sizes", tick, self.quotas.measure),
            Task("sleep", tick, lambda: idle.put_to_sleep(projects, events)),
            Task("sessions", min(tick, 10.0), lambda: idle.end_what_holds_up(projects, events)),
            Task("vacuums", min(tick, 10.0), lambda: vacuums.give_turns(projects, events)),
            Task("backups", tick, self.jobs.plan),
            Task("deleted projects", 10 * tick, Lifecycle(projects).purge),
            Task("old rows", HOUR, self.prune),
        ]
        self.scheduler = Scheduler(tasks, events, self.metrics)
        self.leader = Leader(config.control_dsn, events, self.lead, self.jobs.wake)
        self.servers = DocumentServers(os.getppid())
        self.processors = [
            Processors(
                projects,
                Census(config.data_dir / "postgres" / "pgdata", self.servers.look),
                os.getppid(),
                events,
            )
            for cluster in projects.clusters.values()
            if cluster.kind == "embedded" and processor.usable()
        ]
        self.logs = [
            LogFiles(config.data_dir / "postgres" / "pgdata" / "pg_wal", cluster.admin_dsn)
            for cluster in projects.clusters.values() if cluster.kind == "embedded"
        ]  # fmt: skip
        self.bus = PgBus(config.control_dsn, events)
        self.upgrades = Upgrades(projects, self.bus, events)
        self._unfinished: dict[str, str] = {}  # what stands in the way, by project
        self._unwritten: set[str] = set()  # what could not be written the last time
        self.metrics.gauges += [self.gauges, self.quotas.gauges, self.jobs.gauges]

    async def lead(self) -> None:
        """The work of the leader, until cancelled: tasks by the clock beside jobs in order."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scheduler.run())
            group.create_task(self.jobs.run())
            group.create_task(self.shared.run())
            group.create_task(self.seed.run())

    def gauges(self) -> Iterable[tuple[str, Labels, float]]:
        yield "ichibase_maintenance_leader", (), float(self.leader.leads)
        servers = self.servers.look()
        yield "ichibase_document_servers", (), float(len(servers))
        databases = set(servers.values())
        for record, _ in self.quotas.use.values():
            if record.database in databases:
                yield LIVE, (("project", record.slug), ("kind", "document_servers")), 1.0

    async def prune(self) -> None:
        """Removes what is older than anybody asks for."""
        async with self.projects.control() as control:
            for statement in OLD:
                await control.execute(statement)

    def _trim_log(self) -> None:
        EmbeddedPostgres.trim_log(self.config.data_dir / "postgres" / "postgres.log")

    def _now_and_then(self, what: str, work: Callable[[], object]) -> None:
        """What cannot be written, as on a full disk, is told once and tried again."""
        try:
            work()
            self._unwritten.discard(what)
        except OSError as error:
            if what not in self._unwritten:
                self.events.emit(Failed(what, str(error)))
            self._unwritten.add(what)

    async def recover(self) -> None:
        """Finishes what was interrupted. What stands in the way is told once."""
        found = await self.projects.recover()
        faults = {slug: fault for slug, fault in found.items() if fault is not None}
        for slug, fault in faults.items():
            if self._unfinished.get(slug) != fault:
                self.events.emit(Noted(f"project {slug} is unfinished", fault))
        self._unfinished = faults

    async def run(self) -> None:
        """Until cancelled."""
        file = MetricsFile(self.metrics, self.config.metrics_dir)
        self.bus.start()
        always = [self.leader.run(), self.upgrades.run(), *(one.run() for one in self.processors),
                  *(one.run() for one in self.logs)]  # fmt: skip
        tasks = [asyncio.create_task(one) for one in always]
        try:
            ended: set[asyncio.Task[None]] = set()
            while not ended:
                ended, _ = await asyncio.wait(
                    tasks, timeout=METRICS_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                self._now_and_then("moving the database server's log aside", self._trim_log)
                self._now_and_then("writing the metrics", file.write)
            for task in ended:  # none of them ends by itself
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.usage.stop()
            await self.bus.stop()


def make(config: NodeConfig) -> Maintenance:
    """The maintenance of the node that the file names."""
    events = Events()
    events.listeners.append(Logger(config.access_log, config.log_format))
    clusters = msgspec.json.decode(
        (config.data_dir / "run" / "clusters.json").read_bytes(), type=dict[str, Cluster]
    )
    server = read_server(config.data_dir)
    documents = None if server is None else Documents(server)
    return Maintenance(config, Projects(config.control_dsn, clusters, config, documents), events)


def step_aside() -> None:
    """Nobody waits for this process and what it starts, the backups among them."""
    processor.arrange(os.getpid(), WEIGHT, processor.SECOND)


async def serve() -> None:
    task = asyncio.create_task(make(read_listener().config).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass


def main() -> int:
    name_process("ichibase-maint")
    step_aside()
    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
