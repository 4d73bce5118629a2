"""A worker whose services only say what they were given; everything before them is the real one."""

import asyncio

from server.app import Application, Worker
from server.base.http import Response, json_response
from server.node.gateway_main import read_listener


class Echo:
    """Answers with what it sees; the first segment of the path asks for something else."""

    def __init__(self, name):
        self.name = name
        self.cancelled = 0
        self.projects = {}  # of /postgres: none has an engine

    @staticmethod
    def guide(project):
        """Of /mongo: no request takes the short way."""

    async def handle(self, request):
        path = request.path
        if path.startswith("/sleep"):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if path == "/cancelled":
            return json_response(200, {"cancelled": self.cancelled})
        if path.startswith("/status/"):
            return Response(int(path[8:]), [("content-type", "text/plain")], b"text")
        if path == "/fault":
            raise RuntimeError("the secret reason")
        if path == "/headers":
            hostile = [("x-crlf", "a\r\nx-forged: 1"), ("x-nul", "a\0b"), ("x bad", "1"),
                       ("", "1"), ("x-ok", "caf\u00e9"), ("x-lone", "\ud800")]  # fmt: skip
            return Response(200, hostile, b"{}")
        if path == "/cors":
            return Response(200, [("access-control-allow-origin", "*")], b"{}")
        if path.startswith("/stream/"):
            return Response(200, [("content-type", "text/plain")], stream=chunks(int(path[8:])))
        if path == "/events":
            return Response(200, [("content-type", "text/event-stream")], stream=chunks(3, 0.05))
        if path == "/file":
            return Response(206, [("content-type", "text/plain")], file=(__file__, 3, 8))
        if path.startswith("/piece/"):  # of the file that the query names
            offset, length = map(int, path.split("/")[2:])
            return Response(200, [], file=(request.query, offset, length))
        body = b""
        if request.method in {"POST", "PUT", "PATCH"}:
            body = await request.read_body(100_000)
        identity = request.identity
        return json_response(
            200,
            {
                "service": self.name, "project": request.project.slug, "method": request.method,
                "path": path, "query": request.query, "role": identity.role,
                "key_role": identity.key_role, "uid": identity.uid, "length": len(body),
                "refusal": request.refusal.code if request.refusal else None, "id": request.id,
                "base_url": request.base_url, "peer": request.peer,
            },
        )  # fmt: skip


async def chunks(count, pause=0.0):
    for number in range(count):
        if pause:
            await asyncio.sleep(pause)
        yield b"%07d\n" % number * 1024


class EchoWorker(Worker):
    async def mount(self, route):
        return Echo(route.name)

    @staticmethod
    def _module(route):
        return None


class EchoApplication(Application):
    def make(self):
        return EchoWorker(read_listener().config)


application = EchoApplication()
