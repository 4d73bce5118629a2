"""A node from start to stop: database, control tables, default project, listeners."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

import msgspec

from server.base.context import NodeConfig
from server.control.database import LOCAL_CLUSTER, Cluster, external_cluster, prepare
from server.control.projects import Projects
from server.node.children import Child, Children
from server.node.embedded_pg import EmbeddedPostgres, free_port
from server.node.files import DataDir
from server.node.gateway_main import NODE_FILE, Listener, written
from server.node.settings import NodeSettings


class PortTakenError(RuntimeError):
    """Somebody else listens where we should."""


class Node:
    """One node in this process and its children. Use from the main thread."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.data = DataDir(settings.data_dir)
        self.children = Children()
        self.postgres: EmbeddedPostgres | None = None
        self.first_start = False
        self._stopping = False

    def start(self) -> NodeConfig:
        """Brings everything up; errors are raised as they are, after which call stop()."""
        settings = self.settings

        def leave(number: int, frame: object) -> None:
            self._stopping = True

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        self.data.prepare()
        for host, port in ((settings.host, settings.port),
                           (settings.admin_host, settings.admin_port)):  # fmt: skip
            _check_port(host, port)
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
            development=settings.development,
            body_limit=settings.body_limit,
            statement_timeout_ms=settings.statement_timeout_ms,
            access_log=settings.access_log,  # type: ignore[arg-type]
            log_format=settings.log_format,  # type: ignore[arg-type]
        )
        asyncio.run(self._projects(control_dsn, cluster, config))
        self.data.secret("admin_token")
        listener = Listener(
            settings.host, settings.port, settings.workers, settings.admin_host,
            settings.admin_port, config,
        )  # fmt: skip
        self.data.write(self.data.node_file, written(listener))
        clusters = {cluster.id: cluster}
        self.data.write(self.data.run / "clusters.json", msgspec.json.encode(clusters).decode())
        self._start_listeners()
        return config

    def _cluster(self) -> Cluster:
        settings = self.settings
        if settings.database_url:
            return external_cluster(settings.database_url)
        port = settings.postgres_port or self.data.number("postgres_port", free_port)
        self.postgres = EmbeddedPostgres(settings.data_dir / "postgres", port)
        if not _is_free("127.0.0.1", port) and not self._is_ours(port):
            port = self.data.number("postgres_port.new", free_port)
            self.data.write(self.data.run / "postgres_port", f"{port}\n")
            (self.data.run / "postgres_port.new").unlink(missing_ok=True)
            self.postgres.port = port
        self.postgres.start()
        return Cluster(
            id=LOCAL_CLUSTER,
            kind="embedded",
            admin_dsn=self.postgres.dsn(),
            host="127.0.0.1",
            port=port,
            socket_dir=str(self.postgres.socket_dir),
        )

    def _is_ours(self, port: int) -> bool:
        """After kill -9 the old server may need a moment to follow; wait for it."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if _is_free("127.0.0.1", port):
                return True
            time.sleep(0.05)
        return False

    async def _projects(self, dsn: str, cluster: Cluster, config: NodeConfig) -> None:
        projects = Projects(dsn, {cluster.id: cluster}, config)
        await projects.recover()
        self.first_start = await projects.ensure(config.default_project, "postgres")
        record = await projects.find(config.default_project)
        self.data.write(self.data.service_key_file, record.service_key + "\n")
        self.anon_key = record.anon_key

    def _start_listeners(self) -> None:
        settings = self.settings
        environment = {NODE_FILE: str(self.data.node_file)}
        self.children.start(
            Child(
                name="admin",
                command=[sys.executable, "-m", "server.node.admin_main"],
                environment=environment,
                ready=lambda: _answers(settings.admin_host, settings.admin_port),
            )
        )
        self.children.start(
            Child(
                name="gateway",
                command=[sys.executable, "-m", "server.node.gateway_main"],
                environment=environment,
                ready=lambda: _answers(settings.host, settings.port),
            )
        )

    def run(self) -> None:
        """Watches the children until SIGTERM or SIGINT."""
        while not self._stopping:
            time.sleep(0.2)
            if self._stopping:
                break
            self.children.watch()
            postgres = self.postgres
            if postgres is not None and postgres.process and postgres.process.poll() is not None:
                print("the embedded database ended; starting it again", file=sys.stderr, flush=True)
                postgres.process = None
                postgres.start()

    def stop(self) -> None:
        self.children.stop()
        if self.postgres is not None:
            self.postgres.stop()
        self.data.node_file.unlink(missing_ok=True)


def _check_port(host: str, port: int) -> None:
    deadline = time.monotonic() + 5  # a node that was killed may still be letting go of it
    while not _is_free(host, port):
        if time.monotonic() > deadline:
            raise PortTakenError(f"{host}:{port} is in use; choose another port")
        time.sleep(0.1)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers(host: str, port: int) -> bool:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    try:
        with urllib.request.urlopen(f"http://{shown}:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
