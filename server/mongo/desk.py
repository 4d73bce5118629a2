"""The unix socket at which processes of the node hold document servers; see server.mongo.lease."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial

import msgspec
import orjson

from server.mongo.instances import Instance, InstanceError, Instances
from server.mongo.lease import NEED, Wanted


class Desk:
    """One connection is one hold at most."""

    def __init__(self, instances: Instances) -> None:
        self.instances = instances
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: Instance | None = None
        need = partial(writer.write, NEED)
        try:
            while line := await reader.readline():
                wanted = msgspec.json.decode(line, type=Wanted)
                if wanted.do == "hold" and held is None:
                    held = await self._hold(wanted, writer)
                    if held is not None and not wanted.look:
                        held.on_need.add(need)
                elif wanted.do == "weigh" and held is not None and wanted.share is not None:
                    self.instances.weigh(held.database, wanted.share)
                elif wanted.do == "remove":
                    await self.instances.remove(wanted.database)
                    _answer(writer, {"databases": [wanted.database]})
                elif wanted.do == "replace":
                    await self.instances.replace(wanted.database)
                    _answer(writer, {"databases": [wanted.database]})
                elif wanted.do == "used":
                    _answer(writer, {"databases": self.instances.take_used()})
        except (ConnectionError, msgspec.ValidationError, ValueError):
            pass  # it is gone, or it is none of ours
        finally:
            if held is not None:
                held.on_end.discard(writer.close)
                held.on_need.discard(need)
                self.instances.release(held)
            with contextlib.suppress(RuntimeError):
                writer.close()

    async def _hold(self, wanted: Wanted, writer: asyncio.StreamWriter) -> Instance | None:
        try:
            held = await self.instances.hold(
                wanted.database, wanted.share, make=wanted.make, look=wanted.look
            )
        except InstanceError as error:
            _answer(writer, {"error": error.code, "detail": str(error)})
            return None
        if held.ended.is_set():
            self.instances.release(held)
            _answer(writer, {"error": "failed", "detail": "it has just ended"})
            return None
        held.on_end.add(writer.close)
        _answer(writer, {"port": held.port, "process": held.pid})
        return held


def _answer(writer: asyncio.StreamWriter, value: dict[str, object]) -> None:
    writer.write(orjson.dumps(value) + b"\n")
