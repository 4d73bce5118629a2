"""MongoDB's wire protocol, as far as a command and its answer need it.

The driver finds servers and makes transactions; this is the short way for single commands, whose
bytes go out and come back without becoming objects. One command at a time is on a connection.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from typing import Any

import bson

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


class Connection(asyncio.Protocol):
    """One connection, in use by one caller at a time."""

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

    def send(self, command: bytes, seconds: float | None = None) -> asyncio.Future[bytes]:
        """command: a BSON document with `$db`. The answer's document; WireError, or TimeoutError
        after so many seconds, which ends the connection and with it the operation."""
        if not self.usable:
            raise WireError("the connection is closed", sent=False)
        length = 21 + len(command)
        if length > MAX_MESSAGE:
            raise WireError("the command is too large", sent=False)
        self._waiting = future = self._loop.create_future()
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._late)
        head = HEAD.pack(length, next(_ids) & 0x7FFFFFFF, 0, OP_MSG, 0, 0)
        self.transport.write(head + command)
        return future

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def command(self, command: dict[str, Any]) -> dict[str, Any]:
        return bson.decode(await self.send(bson.encode(command)))


async def connect(host: str, port: int, tls: Any, database: str, keys: Keys | None) -> Connection:
    """A connection that has logged in. OSError, WireError, LoginError."""
    loop = asyncio.get_running_loop()
    name = None if tls is None else host
    async with asyncio.timeout(CONNECT_SECONDS):
        if host.startswith("/"):
            _, made = await loop.create_unix_connection(Connection, host)
        else:
            _, made = await loop.create_connection(
                Connection, host, port, ssl=tls, server_hostname=name
            )
        try:
            await made.command({"hello": 1, "client": CLIENT, "$db": "admin"})
            if keys is not None:
                await _login(made, database, keys)
        except BaseException:
            made.close()
            raise
    return made


CLIENT = {
    "application": {"name": "ichibase"},
    "driver": {"name": "ichibase", "version": "1"},
    "os": {"type": "Linux"},
}


async def _login(connection: Connection, database: str, keys: Keys) -> None:
    exchange = Exchange(keys)
    try:
        answer = _granted(
            await connection.command(
                {"saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": exchange.first(),
                 "options": {"skipEmptyExchange": True}, "$db": database}
            )
        )  # fmt: skip
        proof = exchange.second(bytes(answer["payload"]))
        step = {"saslContinue": 1, "conversationId": answer["conversationId"], "$db": database}
        answer = _granted(await connection.command({**step, "payload": proof}))
        exchange.verify(bytes(answer["payload"]))
        if not answer.get("done"):
            _granted(await connection.command({**step, "payload": b""}))
    except ScramError as error:
        raise LoginError(str(error)) from None


def _granted(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("ok") != 1:
        raise LoginError(f"{answer.get('errmsg', 'refused')} ({answer.get('code')})")
    return answer
