"""MongoDB's wire protocol, as far as a command and its answer need it.

The driver finds servers; commands go over connections made here, and their bytes go out and come
back without becoming objects. One command at a time is on a connection. Those without TLS are the
core's own (ichicore.mongo.link), those with it the event loop's.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from time import monotonic
from typing import Any

import bson

from ichicore.mongo.link import Link, Promise
from server.mongo.scram import Exchange, Keys, ScramError

OP_MSG = 2013
MAX_MESSAGE = 48_000_000  # bytes, the servers' own limit
HEAD = struct.Struct("<iiiiiB")  # length, id, answer to, code, flags, kind of the section
CONNECT_SECONDS = 5.0

_ids = itertools.count(1)


class WireError(ConnectionError):
    """The connection broke, or what came over it is not the protocol. sent: whether the command
    may have reached the server."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class LoginError(ConnectionError):
    """The server refuses the login."""


class Secured(asyncio.Protocol):
    """A connection with TLS, in use by one caller at a time."""

    __slots__ = ("_buffer", "_loop", "_need", "_timer", "_waiting", "transport")

    def __init__(self) -> None:
        self.transport: Any = None
        self._buffer = bytearray()
        self._need = 0
        self._waiting: asyncio.Future[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(str(error) if error else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        if not buffer and len(data) >= 21:
            length = int.from_bytes(data[:4], "little")
            if length == len(data):  # a whole answer at once, as most are
                self._answer(data)
                return
        buffer += data
        if self._need == 0 and len(buffer) >= 4:
            self._need = int.from_bytes(buffer[:4], "little")
            if not 21 <= self._need <= MAX_MESSAGE:
                self._broken("an answer of an impossible length")
                return
        if self._need and len(buffer) >= self._need:
            if len(buffer) > self._need:
                self._broken("more than one answer")
                return
            whole = bytes(buffer)
            self._buffer = bytearray()
            self._need = 0
            self._answer(whole)

    def _answer(self, message: bytes) -> None:
        waiting, self._waiting = self._waiting, None
        _, _, _, code, flags, kind = HEAD.unpack_from(message)
        if waiting is None or code != OP_MSG or flags & 0xFFFF & ~1 or kind != 0:
            self._waiting = waiting
            self._broken("an answer of another kind")
            return
        if self._timer is not None:
            self._timer.cancel()
        if not waiting.done():
            # a checksum may follow the document
            waiting.set_result(message[21 : len(message) - 4] if flags & 1 else message[21:])

    def _broken(self, reason: str) -> None:
        self._fail(reason)
        self.close()

    def _late(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(TimeoutError())
        self.close()

    def _fail(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, None
        if self._timer is not None:
            self._timer.cancel()
        if waiting is not None and not waiting.done():
            waiting.set_exception(WireError(reason, sent=True))

    # Called by the owner

    @property
    def usable(self) -> bool:
        return (
            self.transport is not None
            and not self.transport.is_closing()
            and self._waiting is None
            and not self._buffer
        )

    def send(self, command: bytes, seconds: float) -> asyncio.Future[bytes]:
        """As the function of this name."""
        if not self.usable:
            raise WireError("the connection is closed", sent=False)
        length = 21 + len(command)
        if length > MAX_MESSAGE:
            raise WireError("the command is too large", sent=False)
        self._waiting = future = self._loop.create_future()
        self._timer = self._loop.call_later(seconds, self._late)
        head = HEAD.pack(length, next(_ids) & 0x7FFFFFFF, 0, OP_MSG, 0, 0)
        self.transport.write(head + command)
        return future

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


Connection = Link | Secured


def send(connection: Connection, command: bytes, seconds: float) -> asyncio.Future[bytes]:
    """command: a BSON document with `$db`. The answer's document; WireError, or TimeoutError after
    so many seconds, which ends the connection and with it the operation."""
    if isinstance(connection, Secured):
        return connection.send(command, seconds)
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    if not connection.send(command, Promise(future, _failed), monotonic() + seconds):
        raise WireError("the connection is closed", sent=False)
    return future


def _failed(reason: str) -> Exception:
    return WireError(reason, sent=True) if reason else TimeoutError()


async def connect(host: str, port: int, tls: Any, database: str, keys: Keys | None) -> Connection:
    """A connection that has logged in. OSError, WireError, LoginError."""
    async with asyncio.timeout(CONNECT_SECONDS):
        made = await (
            _plain(host, port) if tls is None or host[0] == "/" else _secured(host, port, tls)
        )
        try:
            await _command(made, {"hello": 1, "client": CLIENT, "$db": "admin"})
            if keys is not None:
                await _login(made, database, keys)
        except BaseException:
            made.close()
            raise
    return made


async def _plain(host: str, port: int) -> Link:
    loop = asyncio.get_running_loop()
    if host.startswith("/"):
        found: list[tuple[Any, ...]] = [(socket.AF_UNIX, 0, host)]
    else:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = [(family, number, address) for family, _, number, _, address in infos]
    failure: OSError | None = None
    for family, number, address in found:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, number)
        try:
            if family != socket.AF_UNIX:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await loop.sock_connect(made, address)
            return Link(made, loop)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
    raise failure or OSError(f"{host} has no address")


async def _secured(host: str, port: int, tls: Any) -> Secured:
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(Secured, host, port, ssl=tls, server_hostname=host)
    return made


async def _command(connection: Connection, command: dict[str, Any]) -> dict[str, Any]:
    return bson.decode(await send(connection, bson.encode(command), CONNECT_SECONDS))


CLIENT = {
    "application": {"name": "ichibase"},
    "driver": {"name": "ichibase", "version": "1"},
    "os": {"type": "Linux"},
}


async def _login(connection: Connection, database: str, keys: Keys) -> None:
    exchange = Exchange(keys)
    try:
        answer = _granted(
            await _command(
                connection,
                {"saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": exchange.first(),
                 "options": {"skipEmptyExchange": True}, "$db": database}
            )
        )  # fmt: skip
        proof = exchange.second(bytes(answer["payload"]))
        step = {"saslContinue": 1, "conversationId": answer["conversationId"], "$db": database}
        answer = _granted(await _command(connection, {**step, "payload": proof}))
        exchange.verify(bytes(answer["payload"]))
        if not answer.get("done"):
            _granted(await _command(connection, {**step, "payload": b""}))
    except ScramError as error:
        raise LoginError(str(error)) from None


def _granted(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("ok") != 1:
        raise LoginError(f"{answer.get('errmsg', 'refused')} ({answer.get('code')})")
    return answer
