"""The one port behind which all projects' document servers are, for clients of their own logins.

A driver asks what kind of server this is, on some connections nothing else: that is answered here
with what a server has said of itself once. The first message of a login names the project's
database: it goes to that project's server, as all that follows on the connection. Nothing else is
answered before a login.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import socket
import struct
from typing import Any

import bson
from bson.errors import BSONError

from server.mongo.instances import Instance, InstanceError, Instances

HEAD = struct.Struct("<iiii")  # length, request id, answer to, code
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
FIRST_BYTES = 64 << 10  # of a message before the login
PATIENCE = 130.0  # seconds between messages before the login; drivers ask every ten
MOST = 4096  # connections
HELLO = frozenset({"hello", "ismaster", "isMaster"})
PIECE = 256 << 10
AUTHENTICATION_FAILED, UNAUTHORIZED, UNREACHABLE = 18, 13, 6


class _Broken(Exception):
    """The peer does not speak the protocol."""


class Front:
    """hello: what a server says of itself to a driver, as BSON."""

    def __init__(self, instances: Instances, hello: bytes) -> None:
        self.instances = instances
        self._hello: dict[str, Any] = bson.decode(hello)
        self._hello.pop("topologyVersion", None)  # else drivers would wait for its changes
        self._server: asyncio.Server | None = None
        self._count = 0
        self._ids = itertools.count(1)

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=PIECE)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        try:
            if self._count <= MOST:
                await self._talk(reader, writer)
        except (_Broken, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._count -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    await writer.drain()  # who does not read what it asked for asks no more
                    message = await _message(reader)
            except TimeoutError:
                return
            _, number, _, code = HEAD.unpack_from(message)
            command = _command(message, code)
            database = _login(command)
            if database is None:
                writer.write(self._reply(number, code, self._before(command)))
                continue
            try:
                held = await self.instances.hold(database)
            except InstanceError as error:
                if error.code == "missing":
                    answer = _refused(AUTHENTICATION_FAILED, "Authentication failed.")
                else:
                    answer = _refused(UNREACHABLE, "The document server cannot be reached.")
                if "saslStart" not in command:  # the login may be tried again by itself
                    answer = self._before(command)
                writer.write(self._reply(number, code, answer))
                continue
            try:
                await _relay(held, message, reader, writer)
            finally:
                self.instances.release(held)
            return

    def _before(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command of somebody who has not logged in."""
        name = next(iter(command), "")
        if name in HELLO:
            now = datetime.datetime.now(datetime.UTC)
            return {**self._hello, "localTime": now, "connectionId": next(self._ids)}
        if name == "ping":
            return {"ok": 1.0}
        return _refused(UNAUTHORIZED, f"Command {name[:40]} requires authentication")

    def _reply(self, number: int, code: int, document: dict[str, Any]) -> bytes:
        body = bson.encode(document)
        if code == OP_MSG:
            head, code = struct.pack("<iB", 0, 0), OP_MSG
        else:
            head, code = struct.pack("<iqii", 8, 0, 0, 1), OP_REPLY
        length = HEAD.size + len(head) + len(body)
        return HEAD.pack(length, next(self._ids) & 0x7FFFFFFF, number, code) + head + body


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    length = int.from_bytes(head, "little")
    if not HEAD.size < length <= FIRST_BYTES:
        raise _Broken
    return head + await reader.readexactly(length - 4)


def _command(message: bytes, code: int) -> dict[str, Any]:
    try:
        return _document(message, code)
    except (BSONError, ValueError, RecursionError):
        raise _Broken from None


def _document(message: bytes, code: int) -> dict[str, Any]:
    if code == OP_MSG and message[20:21] == b"\0":
        end = 21 + int.from_bytes(message[21:25], "little")
        return bson.decode(message[21:end])
    if code == OP_QUERY:
        begin = message.index(b"\0", 20) + 9
        end = begin + int.from_bytes(message[begin : begin + 4], "little")
        return bson.decode(message[begin:end])
    raise _Broken


def _login(command: dict[str, Any]) -> str | None:
    """The database whose login this is; None for what is none."""
    name = next(iter(command), "")
    if name == "saslStart":
        return str(command.get("$db", ""))
    if name in HELLO and isinstance(command.get("speculativeAuthenticate"), dict):
        return str(command["speculativeAuthenticate"].get("db", ""))
    return None


def _refused(code: int, reason: str) -> dict[str, Any]:
    names = {AUTHENTICATION_FAILED: "AuthenticationFailed", UNAUTHORIZED: "Unauthorized",
             UNREACHABLE: "HostUnreachable"}  # fmt: skip
    return {"ok": 0.0, "errmsg": reason, "code": code, "codeName": names[code]}


async def _relay(
    held: Instance, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """All bytes of both sides, until one of them ends."""
    there, sink = await asyncio.open_connection("127.0.0.1", held.port, limit=PIECE)
    sink.write(first)
    ways = [asyncio.ensure_future(_copy(reader, sink)), asyncio.ensure_future(_copy(there, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        sink.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(PIECE):
            target.write(data)
            await target.drain()
