"""A node from start to stop: database, control tables, default project, listeners."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.base.context import MAX_ENGINES, NodeConfig
from server.base.ports import PortTakenError
from server.control import upgrades
from server.control.database import LOCAL_CLUSTER, Cluster, external_cluster, prepare
from server.control.projects import Projects
from server.control.records import VERSION
from server.mongo import child
from server.mongo.address import DocumentServer
from server.mongo.provision import Documents
from server.node.children import Child, Children, answers, of_rooms
from server.node.embedded_pg import EmbeddedPostgres, EmbeddedPostgresError
from server.node.files import DataDir
from server.node.gateway_main import NODE_FILE, Listener, written
from server.node.ports import becomes_free, check_port, kept_port
from server.node.settings import NodeSettings, tiers

# Connections of the embedded database: the node's own beside those of the workers' pools and of
# their engines, and those that the projects' owners may have together however busy the node is.
SPARE_CONNECTIONS = 50
OWNERS_CONNECTIONS = 100
LOCKS = 128  # of each connection that is likely to be in use; the table is of all together
LEAST_LOCKS = 32
DATABASE_TRIES = 5  # starts of the embedded database that may fail before the node gives up


def connections(workers: int, pooled: int) -> dict[str, str]:
    """PostgreSQL's settings. pooled: connections of one worker's pools.

    An owner is let in while more connections are free than are reserved, whoever has the others. So
    that the node gets all of its own although owners have taken what they can, that many are
    reserved; and so that owners get theirs although the node has all of its own, it is twice as
    many."""
    likely = workers * pooled + SPARE_CONNECTIONS + OWNERS_CONNECTIONS
    own = workers * (pooled + MAX_ENGINES) + SPARE_CONNECTIONS
    most = 2 * own + OWNERS_CONNECTIONS
    return {
        "max_connections": str(most),
        "reserved_connections": str(own),
        "max_locks_per_transaction": str(max(LEAST_LOCKS, LOCKS * likely // most)),
    }


class Stop(BaseException):
    """SIGTERM or SIGINT came while the node was starting."""


class Node:
    """One node in this process and its children. Use from the main thread, which must live as
    long as the node: the kernel ends the children with the thread that started them.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.data = DataDir(settings.data_dir)
        self.children = Children()
        self.postgres: EmbeddedPostgres | None = None
        self.first_start = False
        self.anon_key = ""
        self._signals = 0
        self._starting = True
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self) -> NodeConfig:
        """Brings everything up; errors are raised as they are, after which call stop(). Raises
        Stop when a signal asks to end meanwhile."""
        settings = self.settings
        self._listen_to_signals()
        self.data.prepare()
        for host, port in ((settings.host, settings.port),
                           (settings.admin_host, settings.admin_port)):  # fmt: skip
            check_port(host, port)
        documents = child.prepare(settings, self.data)
        cluster = self._cluster()
        control_dsn = asyncio.run(prepare(cluster, self.data.secret("control_password")))
        config = NodeConfig(
            data_dir=settings.data_dir,
            control_dsn=control_dsn,
            base_domain=settings.base_domain,
            public_url=settings.address(),
            cdn_url=settings.cdn_address(),
            admin_url=settings.admin_address(),
            default_project=settings.default_project,
            max_connections=settings.max_connections,
            storage_url=settings.storage_url,
            mongo_address=None if documents is None else documents.address,
            development=settings.development,
            body_limit=settings.body_limit,
            statement_timeout_ms=settings.statement_timeout_ms,
            access_log=settings.access_log,  # type: ignore[arg-type]
            log_format=settings.log_format,  # type: ignore[arg-type]
            tiers=tiers(settings),
            maintenance_seconds=settings.maintenance_seconds,
            backup_url=settings.backup_url,
            backup_key_file=settings.backup_key_file and settings.backup_key_file.expanduser(),
        )
        asyncio.run(self._projects(control_dsn, cluster, config, documents))
        self.data.secret("admin_token")
        listener = Listener(
            settings.host, settings.port, settings.workers, settings.admin_host,
            settings.admin_port, settings.drain_seconds, config,
        )  # fmt: skip
        self.data.write(self.data.node_file, written(listener))
        clusters = {cluster.id: cluster}
        self.data.write(self.data.run / "clusters.json", msgspec.json.encode(clusters).decode())
        self.children.start(self._listeners() + of_rooms(settings, config))
        self._starting = False
        if self._signals:
            raise Stop
        return config

    def _cluster(self) -> Cluster:
        settings = self.settings
        if settings.database_url:
            return external_cluster(settings.database_url)
        folder = settings.data_dir / "postgres"
        options = connections(settings.workers, settings.max_connections)
        self.postgres = EmbeddedPostgres(folder, settings.postgres_port, options=options)
        self.postgres.clear_old_server()
        port = self.postgres.port = settings.postgres_port or kept_port(self.data, "postgres")
        if not becomes_free("127.0.0.1", port, 0):
            raise PortTakenError(f"postgres_port {port} is in use; choose another port")
        self.postgres.start()
        return Cluster(
            id=LOCAL_CLUSTER,
            kind="embedded",
            admin_dsn=self.postgres.dsn(),
            host="127.0.0.1",
            port=port,
            socket_dir=str(self.postgres.socket_dir),
        )

    async def _projects(
        self, dsn: str, cluster: Cluster, config: NodeConfig, server: DocumentServer | None
    ) -> None:
        documents = None if server is None else Documents(server, wait=False)
        projects = Projects(dsn, {cluster.id: cluster}, config, documents)
        for slug, problem in (await projects.recover()).items():
            if problem:
                print(f"project {slug} is unfinished: {problem}", file=sys.stderr, flush=True)
        flavor = "postgres" if documents is None else self.settings.default_flavor
        self.first_start = await projects.ensure(config.default_project, flavor)
        record = await projects.find(config.default_project)
        if record.provisioned < VERSION:  # the others follow while the node serves
            with contextlib.suppress(psycopg.Error, ApiError):
                if problem := await upgrades.upgrade(projects, record.id):
                    print(f"project {record.slug} is not up to date: {problem}", file=sys.stderr,
                          flush=True)  # fmt: skip
        self.data.write(self.data.service_key_file, record.service_key + "\n")
        self.anon_key = record.anon_key

    def _listeners(self) -> list[Child]:
        settings = self.settings
        environment = {NODE_FILE: str(self.data.node_file)}
        return [
            Child(
                name="admin",
                command=[sys.executable, "-m", "server.node.admin_main"],
                environment=environment,
                order=30,
                ready=lambda: answers(settings.admin_host, settings.admin_port),
                stop_seconds=settings.drain_seconds + 5,
            ),
            Child(
                name="gateway",
                command=[sys.executable, "-m", "server.node.gateway_main"],
                environment=environment,
                order=30,
                ready=lambda: answers(settings.host, settings.port),
                stop_seconds=settings.drain_seconds + 5,
            ),
        ]

    def _listen_to_signals(self) -> None:
        def asked_to_stop(number: int, frame: object) -> None:
            self._signals += 1
            if self._starting and self._signals == 1:
                raise Stop
            self.children.hurry = self._signals > 2 or (
                number == signal.SIGINT and self._signals > 1
            )

        signal.signal(signal.SIGTERM, asked_to_stop)
        signal.signal(signal.SIGINT, asked_to_stop)
        for wakes in (signal.SIGCHLD, signal.SIGUSR1):  # only to look at the children
            signal.signal(wakes, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Watches the children until SIGTERM or SIGINT."""
        pause, failures = 0.0, 0
        while not self._signals:
            select.select([self._wake_read], [], [], pause)
            try:
                os.read(self._wake_read, 4096)
            except BlockingIOError:
                pass
            if self._signals:
                return
            pause = self.children.watch()
            postgres = self.postgres
            if postgres is None or not postgres.has_ended():
                failures = 0
                continue
            print("the embedded database ended; starting it again", file=sys.stderr, flush=True)
            try:
                postgres.start()
            except EmbeddedPostgresError as error:
                failures += 1
                print(str(error), file=sys.stderr, flush=True)
                if failures >= DATABASE_TRIES:
                    raise
                pause = min(pause, 2.0**failures)

    def stop(self) -> None:
        """Ends the children, the database last. A second Ctrl-C kills what drains."""
        self._starting = False
        self._signals = max(self._signals, 1)
        self.children.stop()
        if self.postgres is not None:
            self.postgres.stop()
        if self.data.held:
            self.data.node_file.unlink(missing_ok=True)
