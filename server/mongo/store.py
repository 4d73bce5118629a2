"""One project's documents as one worker reaches them: a driver's client, and connections beside it.

The driver (PyMongo) finds the server that takes writes. Commands go over connections of our own to
that server: their bytes are neither built from nor made into objects. Where that cannot be, because
of an option of the URL, a command goes through the driver.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections import deque
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import bson
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from ichicore.errors import ApiError
from ichicore.mongo import message, reply
from ichicore.mongo.link import Dock, Link
from server.mongo import faults, wire
from server.mongo.faults import DriverError
from server.mongo.lease import Lease
from server.mongo.scram import Keys

SELECTION_SECONDS = 5.0  # a request waits for a server that is starting or electing
SESSION_SECONDS = 1200.0
UNUSED_SECONDS = 0.5  # after which a project does not count as using its server
GRACE_SECONDS = 2.0  # beyond the time the server itself was given
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
# Options with which connections need more than the short way knows.
DRIVER_ONLY = frozenset({"proxyhost", "loadbalanced", "srvservicename"})
WAIT_SECONDS = 10.0  # for a connection
SWEEP_SECONDS = 0.25  # between looks for commands whose time is over


def no_connection() -> ApiError:
    return ApiError(
        503, "unavailable", "All connections to the project's documents are in use.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip


Turn = asyncio.Future["wire.Connection | None"]  # a connection, or None: try to open one


def _next(queue: deque[Turn], connection: wire.Connection | None = None) -> bool:
    """Gives the first who waits its turn. False when nobody waits."""
    while queue:
        waiting = queue.popleft()
        if not waiting.done():
            waiting.set_result(connection)
            return True
    return False


class Budget:
    """Connections that all stores of a worker may have together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.stores: set[Store] = set()
        self.waiting: deque[Turn] = deque()

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
    """Numbers the writes of one sender, so that the server knows one that is sent again. sent_to:
    which server the write was sent to, None before: another one would do it again."""

    __slots__ = ("_made", "_members", "_number", "sent_to")

    def __init__(self) -> None:
        self._members = bson.encode({"lsid": {"id": Binary(uuid.uuid4().bytes, 4)}})[4:-1]
        self._number = 0
        self._made = time.monotonic()
        self.sent_to: int | None = None

    def stamp(self, elements: bytes) -> bytes:
        """The members of a write, under its next number."""
        self._number += 1
        self.sent_to = None
        return message.numbered(elements, self._members, self._number)

    @property
    def is_fresh(self) -> bool:
        """The server forgets one that is not used for half an hour."""
        return time.monotonic() - self._made < SESSION_SECONDS

    def doubt(self) -> None:
        """It is not used again."""
        self._made = -SESSION_SECONDS


class Store:
    """limit: connections at most. lease: of a project with a server of its own, which runs as long
    as somebody has one. run() sends a command, write() one that changes something."""

    def __init__(
        self, url: str, limit: int, budget: Budget | None = None, lease: Lease | None = None
    ) -> None:
        self.budget = budget or Budget(limit)
        self.lease = lease
        if lease is not None:
            lease.on_need = self._needed
        self.url = url
        self.address = Address(url)
        self.database = self.address.database
        self.tail = bson.encode({"$db": self.database})[4:-1]  # of every command
        self.dock = Dock(limit)
        self.dock.used = time.monotonic()
        self._client: AsyncMongoClient[Any] | None = None
        self.known: Profile | None = None
        self._links: set[Link] = set()
        self._sweeping = False
        self._waiting: deque[Turn] = deque()
        self.dock.crowds = (self._waiting, self.budget.waiting)
        self._waiting_first = False
        self._server: tuple[str, int] | None = None
        self._sessions: list[Session] = []
        self._opening = 0  # connections that are not there yet

    @property
    def client(self) -> AsyncMongoClient[Any]:
        """Made on first use."""
        if self._client is None:
            self._client = AsyncMongoClient(
                self.url, appname="ichibase", maxPoolSize=self.limit, maxIdleTimeMS=60_000,
                serverSelectionTimeoutMS=round(SELECTION_SECONDS * 1000),
                connectTimeoutMS=5_000, waitQueueTimeoutMS=10_000, uuidRepresentation="standard",
            )  # fmt: skip
        return self._client

    @property
    def limit(self) -> int:
        return self.dock.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self.dock.limit = limit

    @property
    def closed(self) -> bool:
        return self.dock.closed

    @property
    def used(self) -> float:
        """When last, by the monotonic clock."""
        return self.dock.used

    @property
    def busy(self) -> int:
        return self.dock.busy

    async def profile(self) -> Profile:
        if self.known is None:
            found = [
                check(await self.run(bson.encode({name: 1, "$db": "admin"}), 5.0), self)
                for name in ("buildInfo", "hello")
            ]
            self.known = Profile(found[0], found[1])
        return self.known

    @property
    def server(self) -> int:
        """Which one is served by, where a new one knows nothing of the writes of the one before;
        0 elsewhere, and before there is one."""
        return 0 if self.lease is None else self.lease.process

    async def run(self, command: bytes, seconds: float, session: Session | None = None) -> bytes:
        """The answer to a command, both as BSON documents. The command names its `$db`. session:
        of a write. ApiError when there is none."""
        self.dock.used = time.monotonic()
        if not self.address.short:
            return await self._by_driver(command, seconds)
        for attempt in (1, 2):
            connection = await self._take()
            server = self.server
            if session is not None and session.sent_to not in (None, server):
                self.give_back(connection)
                raise Unanswered()
            try:
                return await wire.send(connection, command, seconds + GRACE_SECONDS)
            except TimeoutError:
                raise faults.timed_out() from None
            except wire.WireError as error:
                self._server = None
                if attempt == 1 and not error.sent:  # it was closed while it lay idle
                    continue
                if session is not None:
                    session.sent_to = server
                raise Unanswered() from None
            except BaseException:
                connection.close()  # ends the operation on the server
                raise
            finally:
                self.give_back(connection)
        raise faults.away()

    def session(self) -> Session | None:
        """For one write; None where the server does not know a write that is sent again. It is
        given back by kept(). Only when the server's profile is known; from any thread."""
        if self.known is None or not self.known.repeatable or not self.address.short:
            return None
        try:
            return self._sessions.pop()
        except IndexError:
            return Session()

    def kept(self, session: Session) -> None:
        """Its write has been answered."""
        if session.is_fresh:
            self._sessions.append(session)

    async def write(self, elements: bytes, seconds: float) -> bytes:
        """The answer to a write of these members. Where the servers are a replica set they do it
        once, however often it is sent, and one whose answer is lost is sent again."""
        if self.known is None:
            await self.profile()
        session = self.session()
        if session is None:
            return await self.run(message.sealed(elements, seconds, self.tail), seconds)
        command = message.sealed(session.stamp(elements), seconds, self.tail)
        return await self.repeat(command, session, time.monotonic() + seconds)

    async def repeat(
        self, command: bytes, session: Session, deadline: float, found: bytes | None = None
    ) -> bytes:
        """Sends a write until it is answered by a server that takes writes. found: the answer to
        it so far, b"" for none that came. Not to a server that has forgotten what it did before."""
        while True:
            try:
                if found is None:
                    left = max(0.1, deadline - time.monotonic())
                    found = await self.run(command, left, session)
                elif not found:
                    raise Unanswered()
            except Unanswered:
                if time.monotonic() >= deadline or session.sent_to not in (None, self.server):
                    raise
            else:
                if not is_elsewhere(found) or time.monotonic() >= deadline:
                    self.kept(session)
                    return found
                self.forget_server()
            found = None
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
        dock = self.dock
        while True:
            found: wire.Connection | None = dock.pop()
            if found is None and dock.open >= dock.limit:
                found = await self._turn(self._waiting, deadline)
            if found is not None:
                if found.usable:
                    return found
                self._closed_one(found)
            elif dock.open < dock.limit:
                if self.budget.take(self):
                    break
                await self._turn(self.budget.waiting, deadline)
        dock.open += 1
        self._opening += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._fewer()
            raise
        finally:
            self._opening -= 1
        dock.count()
        if isinstance(connection, Link):
            self._links.add(connection)
            if not self._sweeping:
                self._sweeping = True
                asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return connection

    async def _turn(self, queue: deque[Turn], deadline: float) -> wire.Connection | None:
        """Waits for a connection, or until one may be opened; ApiError 503 when that takes too
        long."""
        waiting: Turn = asyncio.get_running_loop().create_future()
        queue.append(waiting)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await waiting
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiting.done() and not waiting.cancelled():  # somebody else's turn then
                connection = waiting.result()
                if connection is not None:
                    self.give_back(connection)
                else:
                    _next(queue)
            if isinstance(error, TimeoutError):
                raise no_connection() from None
            raise
        finally:
            if waiting in queue:
                queue.remove(waiting)

    def give_back(self, connection: wire.Connection) -> None:
        """A busy connection is needed no more."""
        others_wait = self.budget.waiting and not self._waiting and not self.dock.waiting
        if not connection.usable or self.closed or others_wait:
            self._closed_one(connection)
            return
        self._waiting_first = not self._waiting_first
        if self._waiting and (self._waiting_first or not self.dock.waiting):
            if _next(self._waiting, connection):
                return
        if self.dock.put(connection) and self._waiting:
            again = self.dock.pop()
            if again is not None and not _next(self._waiting, again):
                self.dock.put(again)

    def _closed_one(self, connection: wire.Connection) -> None:
        """A busy connection is used no more."""
        connection.close()
        self.dock.gone()
        self._fewer()

    def _fewer(self) -> None:
        """One connection less is open: another one may be."""
        self.dock.open -= 1
        self.budget.put_back()
        _next(self._waiting)
        for waiter in self.dock.flush():
            waiter.resume()

    def give_up_idle(self) -> bool:
        """Closes an idle connection for another project's sake. False when there is none."""
        found = self.dock.pop_oldest()
        if found is None:
            return False
        found.close()
        self._fewer()
        return True

    def _sweep(self) -> None:
        """Ends commands whose time is over."""
        now = time.monotonic()
        for link in list(self._links):
            link.expire(now)
            if link.closed:
                self._links.discard(link)
        for waiter in self.dock.late(now):
            waiter.resume()
        self._sweeping = bool(self._links)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

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

    def _needed(self) -> None:
        """Others need the place of the project's own server: it is let go if it is not in use."""
        unused = self.busy + self._opening == 0 and time.monotonic() - self.used > UNUSED_SECONDS
        if self.lease is not None and unused:
            self.forget_server()
            self.lease.close()

    async def _find_server(self) -> tuple[str, int]:
        """The server that takes writes."""
        if self.lease is not None:
            async with asyncio.timeout(SELECTION_SECONDS):
                self._server = ("127.0.0.1", await self.lease.port())
            if self.closed:  # meanwhile
                self.lease.close()
            return self._server
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

    def succeeded(self, answer: bytes) -> None:
        """DriverError unless the answer says that its command succeeded."""
        if not reply.succeeded(answer):
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
        return self.dock.open

    async def close(self) -> None:
        self.dock.closed = True
        self.budget.stores.discard(self)
        self.forget_server()
        if self.lease is not None:
            self.lease.close()
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def is_elsewhere(answer: bytes) -> bool:
    """Whether a server says that it takes no writes."""
    if reply.succeeded(answer):
        return False
    return int(bson.decode(answer).get("code", 0) or 0) in faults.NOT_PRIMARY


def check(answer: bytes, store: Store) -> dict[str, Any]:
    """A small answer as a document. DriverError when it says that the command failed."""
    document: dict[str, Any] = bson.decode(answer)
    if document.get("ok") != 1:
        raise store.failure(document)
    return document
