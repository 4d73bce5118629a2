"""One project's documents as one worker reaches them: a driver's client, and short ways beside it.

The driver (PyMongo) finds the server that takes writes and makes transactions. Single commands go
over connections of our own to that server: their bytes are neither built from nor made into
objects. Where the short way cannot be taken, a command goes through the driver.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
import uuid
from collections import deque
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import bson
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from ichicore.errors import ApiError
from server.mongo import faults, wire
from server.mongo.faults import DriverError
from server.mongo.scram import Keys

SELECTION_SECONDS = 5.0  # a request waits for a server that is starting or electing
SESSION_SECONDS = 1200.0
GRACE_SECONDS = 2.0  # beyond the time the server itself was given
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
# Options with which connections need more than the short way knows.
DRIVER_ONLY = frozenset({"proxyhost", "loadbalanced", "srvservicename"})
WAIT_SECONDS = 10.0  # for a connection


def no_connection() -> ApiError:
    return ApiError(
        503, "unavailable", "All connections to the project's documents are in use.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip


def _next(queue: deque[asyncio.Future[None]]) -> None:
    """Lets the first who waits try again."""
    while queue:
        waiting = queue.popleft()
        if not waiting.done():
            waiting.set_result(None)
            return


class Budget:
    """Connections that all stores of a worker may have together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.stores: set[Store] = set()
        self.waiting: deque[asyncio.Future[None]] = deque()

    def take(self, store: Store) -> bool:
        """Room for one more, made by closing another project's idle connection where it must be.
        False when all are in use."""
        self.stores.add(store)
        if self.taken >= self.limit:
            for other in sorted(self.stores, key=lambda one: one.used):
                if other is not store and other.give_up_idle():
                    break
            else:
                return False
        self.taken += 1
        return True

    def put_back(self) -> None:
        self.taken -= 1
        _next(self.waiting)


class Address:
    """What a URL says to the short way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = {name.lower(): value for name, value in parse_qsl(parts.query)}
        self.database = parts.path.lstrip("/")
        self.source = options.get("authsource") or self.database or "admin"
        login, password = unquote(parts.username or ""), unquote(parts.password or "")
        self.keys = Keys(login, password) if login else None
        self.tls = _tls(options, parts.scheme == "mongodb+srv")
        mechanism = options.get("authmechanism", "SCRAM-SHA-256").upper()
        self.short = (
            mechanism in {"SCRAM-SHA-256", "DEFAULT"}
            and not DRIVER_ONLY & options.keys()
            and login.isascii()
            and password.isascii()
        )


def _tls(options: dict[str, str], default: bool) -> ssl.SSLContext | None:
    wanted = options.get("tls", options.get("ssl"))
    if not (default if wanted is None else wanted == "true"):
        return None
    context = ssl.create_default_context(cafile=options.get("tlscafile"))
    insecure = options.get("tlsinsecure") == "true"
    if insecure or options.get("tlsallowinvalidhostnames") == "true":
        context.check_hostname = False
    if insecure or options.get("tlsallowinvalidcertificates") == "true":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    own = options.get("tlscertificatekeyfile")
    if own:
        context.load_cert_chain(own, password=options.get("tlscertificatekeyfilepassword"))
    return context


class Profile:
    """What kind of server answers. quick_find_and_modify: it finds the document by an index.
    transactions: it has them. repeatable: a numbered write may be sent twice."""

    __slots__ = ("embedded", "quick_find_and_modify", "repeatable", "transactions")

    def __init__(self, build: dict[str, Any], hello: dict[str, Any]) -> None:
        self.embedded = "secantusVersion" in build
        self.quick_find_and_modify = not self.embedded
        self.repeatable = "setName" in hello or hello.get("msg") == "isdbgrid"
        self.transactions = self.repeatable


class Unanswered(ApiError):
    """The connection broke while a command was on its way."""

    def __init__(self) -> None:
        super().__init__(
            503, "unavailable",
            "The connection to the project's documents broke; a write may have been done.",
            headers=(("retry-after", "1"),),
        )  # fmt: skip


class Session:
    """Numbers the writes of one sender, so that the server knows one that is sent again."""

    __slots__ = ("_made", "_number", "id")

    def __init__(self) -> None:
        self.id = {"id": Binary(uuid.uuid4().bytes, 4)}
        self._number = 0
        self._made = time.monotonic()

    def next(self) -> Int64:
        self._number += 1
        return Int64(self._number)

    @property
    def is_fresh(self) -> bool:
        """The server forgets one that is not used for half an hour."""
        return time.monotonic() - self._made < SESSION_SECONDS

    def doubt(self) -> None:
        """It is not used again."""
        self._made = -SESSION_SECONDS


class Store:
    """limit: connections at most. run() is the short way; `client` is the driver's."""

    def __init__(self, url: str, limit: int, budget: Budget | None = None) -> None:
        self.budget = budget or Budget(limit)
        self.url = url
        self.address = Address(url)
        self.database = self.address.database
        self.suffix = bson.encode({"$db": self.database})[4:-1]  # of every command
        self.limit = limit
        self.used = time.monotonic()
        self.closed = False
        self._client: AsyncMongoClient[Any] | None = None
        self._profile: Profile | None = None
        self._idle: list[wire.Connection] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._server: tuple[str, int] | None = None
        self._sessions: list[Session] = []
        self.busy = 0

    @property
    def client(self) -> AsyncMongoClient[Any]:
        """Made on first use: only transactions and the search for a server need it."""
        if self._client is None:
            self._client = AsyncMongoClient(
                self.url, appname="ichibase", maxPoolSize=self.limit, maxIdleTimeMS=60_000,
                serverSelectionTimeoutMS=round(SELECTION_SECONDS * 1000),
                connectTimeoutMS=5_000, waitQueueTimeoutMS=10_000, uuidRepresentation="standard",
            )  # fmt: skip
        return self._client

    async def profile(self) -> Profile:
        if self._profile is None:
            found = [
                check(await self.run(bson.encode({name: 1, "$db": "admin"}), 5.0), self)
                for name in ("buildInfo", "hello")
            ]
            self._profile = Profile(found[0], found[1])
        return self._profile

    async def run(self, command: bytes, seconds: float) -> bytes:
        """The answer to a command, both as BSON documents. The command names its `$db`. DriverError
        for an answer that says that it failed, ApiError when there is none."""
        self.used = time.monotonic()
        if not self.address.short:
            return await self._by_driver(command, seconds)
        for attempt in (1, 2):
            connection = await self._take()
            try:
                return await connection.send(command, seconds + GRACE_SECONDS)
            except TimeoutError:
                raise faults.timed_out() from None
            except wire.WireError as error:
                self._server = None
                if attempt == 1 and not error.sent:  # it was closed while it lay idle
                    continue
                raise Unanswered() from None
            except BaseException:
                connection.close()  # ends the operation on the server
                raise
            finally:
                self._give_back(connection)
        raise faults.away()

    async def write(self, body: dict[str, Any], seconds: float) -> bytes:
        """The answer to a write. Where the servers are a replica set they do it once, however often
        it is sent, and one whose answer is lost is sent again."""
        profile = self._profile or await self.profile()
        if not profile.repeatable or not self.address.short:
            return await self.run(bson.encode(body), seconds)
        session = self._sessions.pop() if self._sessions else Session()
        body["lsid"], body["txnNumber"] = session.id, session.next()
        command = bson.encode(body)
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = await self.run(command, max(0.1, deadline - time.monotonic()))
            except Unanswered:
                if time.monotonic() >= deadline:
                    raise
            else:
                if not _is_elsewhere(answer) or time.monotonic() >= deadline:
                    if session.is_fresh:
                        self._sessions.append(session)
                    return answer
                self.forget_server()
            session.doubt()
            await asyncio.sleep(0.1)

    async def _by_driver(self, command: bytes, seconds: float) -> bytes:
        body = bson.decode(command)
        database = self.client[body.pop("$db")]
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            found: Any = await database.command(body, codec_options=RAW)
        return bytes(found.raw)

    # Connections of our own

    async def _take(self) -> wire.Connection:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    self.busy += 1
                    return connection
                self._closed_one()
            if self._open >= self.limit:
                await self._turn(self._waiting, deadline)
            elif not self.budget.take(self):
                await self._turn(self.budget.waiting, deadline)
            else:
                break
        self._open += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._closed_one()
            self._wake()
            raise
        self.busy += 1
        return connection

    async def _turn(self, queue: deque[asyncio.Future[None]], deadline: float) -> None:
        """Waits until a connection may be free; ApiError 503 when that takes too long."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(waiting)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await waiting
        except TimeoutError:
            raise no_connection() from None
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():  # somebody else's turn then
                _next(queue)
            raise
        finally:
            if waiting in queue:
                queue.remove(waiting)

    def _closed_one(self) -> None:
        self._open -= 1
        self.budget.put_back()

    def give_up_idle(self) -> bool:
        """Closes an idle connection for another project's sake. False when there is none."""
        if not self._idle:
            return False
        self._idle.pop(0).close()
        self._closed_one()
        return True

    async def _connect(self) -> wire.Connection:
        deadline = time.monotonic() + SELECTION_SECONDS
        while True:
            try:
                server = self._server or await self._find_server()
                host, port = server
                there = self.address
                return await wire.connect(host, port, there.tls, there.source, there.keys)
            except (OSError, TimeoutError, PyMongoError) as error:
                self._server = None
                if time.monotonic() > deadline or self.closed:
                    if isinstance(error, wire.LoginError):
                        raise faults.away("The project's documents are not ready.") from None
                    raise faults.away() from None
                await asyncio.sleep(0.1)

    async def _find_server(self) -> tuple[str, int]:
        """The server that takes writes."""
        hosts = urlsplit(self.url).netloc.rpartition("@")[2]
        single = "," not in hosts and not self.url.startswith("mongodb+srv")
        if single and "directconnection=true" in self.url.lower():
            host, _, port = hosts.rpartition(":")
            self._server = (unquote(host).strip("[]"), int(port))
            return self._server
        await self.client.admin.command("ping")  # finds servers, if none is known yet
        found = await self.client.address
        if found is None:
            raise OSError("no server takes writes")
        self._server = (found[0], found[1] or 27017)
        return self._server

    def _give_back(self, connection: wire.Connection) -> None:
        self.busy -= 1
        others_wait = self.budget.waiting and not self._waiting
        if connection.usable and not self.closed and not others_wait:
            self._idle.append(connection)
        else:
            connection.close()
            self._closed_one()
        self._wake()

    def _wake(self) -> None:
        _next(self._waiting)

    def succeeded(self, answer: bytes) -> None:
        """DriverError unless the answer says that its command succeeded."""
        if not _is_ok(answer):
            check(answer, self)

    def failure(self, document: dict[str, Any]) -> DriverError:
        """The error of an answer that says that its command failed."""
        error = DriverError(document)
        if error.code in faults.NOT_PRIMARY:
            self.forget_server()
        return error

    def forget_server(self) -> None:
        """It says that it takes no writes: another one is found for the next command."""
        self._server = None
        while self.give_up_idle():
            pass

    @property
    def connections(self) -> int:
        return self._open

    async def close(self) -> None:
        self.closed = True
        self.budget.stores.discard(self)
        self.forget_server()
        client, self._client = self._client, None
        if client is not None:
            await client.close()


ONE = struct.pack("<d", 1.0)
# Sizes of values by BSON's types; those with a length of their own are below.
SIZES = {1: 8, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8}


def _is_elsewhere(answer: bytes) -> bool:
    """Whether a server says that it takes no writes."""
    if _is_ok(answer):
        return False
    return int(bson.decode(answer).get("code", 0) or 0) in faults.NOT_PRIMARY


def _is_ok(answer: bytes) -> bool:
    """Whether the member `ok` at the top is 1. False may also mean: read the document to know."""
    place = 4
    while (kind := answer[place]) != 0:
        end = answer.index(0, place + 1)
        value = end + 1
        if end - place == 3 and answer[place + 1 : end] == b"ok":
            return kind == 1 and answer[value : value + 8] == ONE
        size = SIZES.get(kind)
        if size is None:
            if kind not in (2, 3, 4, 5):
                return False
            size = int.from_bytes(answer[value : value + 4], "little")
            if kind == 2:
                size += 4
            elif kind == 5:
                size += 5
        place = value + size
    return False


def check(answer: bytes, store: Store) -> dict[str, Any]:
    """A small answer as a document. DriverError when it says that the command failed."""
    document: dict[str, Any] = bson.decode(answer)
    if document.get("ok") != 1:
        raise store.failure(document)
    return document
