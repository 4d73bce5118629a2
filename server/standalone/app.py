"""The application of one worker of `ichibase rest`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
import psycopg

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError
from server.base import garbage
from server.base.http import Response
from server.base.listen import Listener
from server.base.serving import ServingLoop
from server.gateway import reply
from server.gateway.request import EdgeRequest
from server.gateway.watch import Watch
from server.postgres import faults, introspect
from server.postgres.pool import Pool
from server.postgres.service import RestEngine, RestRequest, role_settings
from server.standalone import conffile, database
from server.standalone.admin import AdminServer
from server.standalone.auth import Authenticator
from server.standalone.config import Config, ConfigError, load, read_file
from server.standalone.cors import Cors
from server.standalone.express import RestWay
from server.standalone.log import AccessLog

CONFIG_PATH = "ICHIBASE_REST_CONFIG"
BODY_LIMIT = 1 << 30
PREPARED = 500  # statements kept on a connection
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def read_config(from_database: dict[str, str] | None = None) -> Config:
    """From the file that CONFIG_PATH names and the environment. ConfigError, ConfFileError."""
    path = os.environ.get(CONFIG_PATH)
    file = {}
    if path:
        file = conffile.parse(read_file(Path(path)))
    return load(file, dict(os.environ), from_database)


async def effective(config: Config) -> Config:
    """With what the database says of it, unless that is wrong. psycopg.Error when the database
    does not answer."""
    if not config.from_database:
        return config
    try:
        fresh = read_config(await database.read(config.uri, config.pre_config))
        Authenticator(fresh)
    except ConfigError as error:
        note(f"the settings in the database are not used: {error}")
        return config
    return fresh


class Standalone:
    """Engine, tokens and reloads of one worker."""

    def __init__(self, config: Config) -> None:
        self._use(config, Authenticator(config))
        self.pool = Pool(
            config.uri,
            max_size=config.pool,
            acquire_timeout=config.pool_acquisition_timeout,
            idle_timeout=config.pool_max_idletime,
            application_name="ichibase rest",
            statements=PREPARED if config.rest.prepared_statements else 0,
        )
        self.engine = RestEngine(config.rest, self.pool)
        self.version = 0
        self._count = 0  # of requests on the general way
        self.watch = Watch()
        self.way = RestWay(self)
        self.way.configure()
        self.config_pending = False  # the settings in the database could not be read yet
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reloading = asyncio.Lock()
        self._configuring = asyncio.Lock()
        self._reloader: asyncio.Task[Any] | None = None
        self._stale = False  # the catalog may be older than the database
        self._config_asked = False
        self.loads = {"SUCCESS": 0, "FAIL": 0}  # readings of the catalog, by outcome
        self.load_seconds = 0.0  # of the last one
        self.admin: AdminServer | None = None
        self._listener: Listener | None = None
        self._listened = False

    def _use(self, config: Config, auth: Authenticator) -> None:
        self.config = config
        self.auth = auth
        self.cors = Cors(config.cors_origins)
        self.log = AccessLog(config.log_level)

    @property
    def requests(self) -> int:
        """Requests since the start."""
        return self._count + self.way.tally.count

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def start(self) -> None:
        """Reads the catalog; when the database is away, goes on trying in the background."""
        self.watch.start()
        if self.config_pending or not await self._reload_once():
            self.reload_soon()
        if self.config.channel_enabled:
            self._listener = Listener(
                self.config.uri, self.config.channel, "ichibase rest schema",
                self._told, self._listens, self._lost,
            )  # fmt: skip
            self._listener.start()
        if self.config.admin_port is not None:
            self.admin = AdminServer(self)
            await self.admin.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.reload_soon)
        loop.add_signal_handler(signal.SIGUSR2, self.reload_config_soon)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._listener is not None:
            await self._listener.stop()
        if self.admin is not None:
            await self.admin.stop()
        await self.watch.stop()
        await self.pool.close()

    async def ready(self) -> bool:
        """Whether the catalog is there and the database answers."""
        if self.engine.catalog is None:
            return False
        try:
            await self.pool.fetch("select 1")
        except (PgError, *faults.POOL_ERRORS):
            return False
        return True

    def summary(self) -> bytes | None:
        """What is served, as JSON; None before the catalog has been read."""
        catalog = self.engine.catalog
        if catalog is None:
            return None
        found = {
            "tables": sorted(f"{schema}.{name}" for schema, name in catalog.tables),
            "routines": sorted(f"{schema}.{name}" for schema, name in catalog.routines),
        }
        return orjson.dumps(found)

    async def reload_catalog(self) -> None:
        async with self._reloading:
            self.version += 1
            config = self.config
            began = perf_counter()
            catalog = await introspect.load(self.pool.fetch, config.rest, self.version)
            roles = await role_settings(self.pool)
            self.pool.forget()
            self.engine.use(catalog, config.rest, roles)
            self.load_seconds = perf_counter() - began

    async def _reload_once(self) -> bool:
        try:
            await self.reload_catalog()
        except (PgError, *faults.POOL_ERRORS) as error:
            self.loads["FAIL"] += 1
            note(f"cannot read the schema: {str(error).strip()}")
            return False
        self.loads["SUCCESS"] += 1
        return True

    def reload_soon(self) -> None:
        """Reads the catalog once more, however often this is asked before that begins."""
        self._stale = True
        if self._reloader is None or self._reloader.done():
            self._reloader = self.spawn(self._reload_until_done())

    async def _reload_until_done(self) -> None:
        """The old catalog stays in use while a new one cannot be read."""
        attempt = 0
        while self._stale:
            self._stale = False
            if self.config_pending:
                await self.reload_config()
                done = not self.config_pending
            else:
                done = await self._reload_once()
            if not done:
                self._stale = True
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1

    def reload_config_soon(self) -> None:
        """The same for the configuration."""
        if not self._config_asked:
            self._config_asked = True
            self.spawn(self.reload_config())

    async def reload_config(self) -> None:
        """Takes over what may change at run time; a configuration that is wrong is refused."""
        async with self._configuring:
            self._config_asked = False
            try:
                fresh = read_config()
                if fresh.from_database:
                    found = await database.read(fresh.uri, fresh.pre_config)
                    fresh = read_config(found)
                auth = Authenticator(fresh)
            except (ConfigError, conffile.ConfFileError, psycopg.Error) as error:
                note(f"the configuration was not reloaded: {str(error).strip()}")
                return
            self._use(fresh, auth)
            self.way.configure()
            if await self._reload_once():
                self.config_pending = False
            elif not self.config_pending:
                self.reload_soon()

    def _told(self, payload: str) -> None:
        if payload in {"", "reload schema"}:
            self.reload_soon()
        elif payload == "reload config":
            self.reload_config_soon()

    def _listens(self) -> None:
        if self._listened:
            self.reload_soon()  # what was told during the break is lost
        self._listened = True

    def _lost(self, reason: str) -> None:
        note(f"listening on {self.config.channel} ended: {reason}")

    async def handle(self, scope: Any, protocol: Any) -> None:
        """One request."""
        request = EdgeRequest(scope, protocol, BODY_LIMIT)
        self._count = number = self._count + 1
        watch = self.watch
        watch.in_flight[number] = (perf_counter(), asyncio.current_task(), protocol)
        request.headers = {}
        request.id = ""
        try:
            headers = request.collect()
            preflight = self.cors.preflight(request.method, headers)
            if preflight is not None:
                status = 200
                protocol.response_empty(status, preflight)
            else:
                response = await self._answer(request, scope.path)
                status = await self._send(protocol, response, request)
                self.way.open(headers.get("host"))
        except ApiError as error:
            minimal = self.config.rest.error_verbosity == "minimal"
            status = await self._send(protocol, faults.api_error(error, minimal=minimal), request)
        except asyncio.CancelledError:
            if number not in watch.gone:
                raise
            return
        except Exception as error:
            status = self.fault(error, request, protocol)
        finally:
            del watch.in_flight[number]
            if watch.watchers:
                watch.over(number)
        if self.log.wants(status):
            self.log.line(request, scope, status, self._role(request))
        if request.unread():
            await request.let_pass()

    def fault(self, error: Exception, request: EdgeRequest, protocol: Any) -> int:
        """Tells of what must not happen and answers 500, unless an answer has begun."""
        traceback.print_exception(error, file=sys.stderr)
        with contextlib.suppress(RuntimeError):  # the HTTP server's "already answered"
            reply.send(protocol, reply.fault(), request)
        return 500

    def _role(self, request: EdgeRequest) -> str | None:
        try:
            return self.auth.identify(request.headers.get("authorization")).role
        except ApiError:
            return None

    async def _answer(self, request: EdgeRequest, path: str) -> Response:
        headers = request.headers
        began = perf_counter()
        caller = self.auth.identify(headers.get("authorization"))
        seconds = perf_counter() - began if self.config.rest.server_timing_enabled else None
        body = b""
        if request.method in {"POST", "PATCH", "PUT"}:
            body = await request.read_body()
        return await self.engine.handle(
            RestRequest(
                request.method, path, request.query.encode(), headers, body, role=caller.role,
                claims_json=caller.claims_json, is_anonymous=caller.anonymous,
                base_url=request.base_url, token_seconds=seconds,
            )
        )  # fmt: skip

    async def _send(self, protocol: Any, response: Response, request: EdgeRequest) -> int:
        given = request.headers
        extra = self.cors.headers(given)
        trace = self.config.trace_header
        if trace is not None and trace.lower() in given:
            extra.append((trace.lower(), given[trace.lower()]))
        request.cors = tuple(extra)
        if response.stream is not None:
            return await reply.send_stream(protocol, response, request)
        return reply.send(protocol, response, request)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Application:
    """What the HTTP server calls."""

    def __init__(self) -> None:
        self.server: Standalone | None = None
        self.handle: Any = None
        self.express: Any = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._start(loop))
        garbage.settle()

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        config = read_config()
        pending = False
        try:
            config = await effective(config)
        except psycopg.Error:
            pending = True
        self.server = Standalone(config)
        self.server.config_pending = pending
        await self.server.start()
        self.handle = self.server.handle
        way = self.server.way.way
        way.loop = loop
        self.express = way.handle
        if isinstance(loop, ServingLoop):
            loop.handover.way = way

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        if isinstance(loop, ServingLoop):
            loop.handover.way = None
        if self.server is not None:
            loop.run_until_complete(self.server.stop())

    def __rsgi__(self, scope: Any, protocol: Any) -> Any:
        """Something to await: a ticket of the short way, or the coroutine of the general one."""
        ticket = self.express(scope, protocol)
        return ticket if ticket is not None else self.handle(scope, protocol)


application = Application()
