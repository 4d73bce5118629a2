"""The functions service: who may call, what is passed on, what comes back."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from ichicore.errors import ApiError
from server.base.context import WorkerContext
from server.base.functions import SCHEDULE, TRIES, TRUSTED, Call, Functions, Lease, of
from server.base.http import Headers, Request, Response
from server.base.unixhttp import Answer, BadAnswer, Body, Connection, PeerClosed
from server.functions.sockets import chosen, offered, relay, upgrade_lines

SMALL_BODY = 64 << 10  # bytes that are read before the function is called
SOCKET_TIMES = 60  # how many times the longest invocation a WebSocket may last
PATH_SAFE = "/:@!$&'()*+,;=~-._"
# Of the connection to us, or set here.
NOT_FORWARDED = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect", "host",
    "x-forwarded-for", "x-request-id",
})  # fmt: skip
OURS = "x-ichibase-"
SOCKET = "sec-websocket-"
NOT_RETURNED = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "x-request-id", "date", "server",
})  # fmt: skip
NO_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


def not_found(name: str) -> ApiError:
    return ApiError(404, "function_not_found", f"There is no function {name[:63]}.")


def not_passed_on() -> ApiError:
    return ApiError(502, "function_error", "The function's answer cannot be passed on.")


class FunctionsService:
    """Mounted under /functions."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.functions: Functions = of(context)
        self.add = context.usage.add

    async def handle(self, request: Request) -> Response:
        lease = await self._lease(request)
        self._authorize(lease, request)
        functions = self.functions
        limit = lease.project.limits.function_body
        headers = request.headers
        declared = headers.get("content-length")
        body = b""
        streamed = False
        if declared is not None:
            if declared.isascii() and declared.isdigit() and int(declared) <= SMALL_BODY:
                if declared != "0":
                    body = await request.read_body(limit)
            else:
                streamed = True
        elif "transfer-encoding" in headers:
            streamed = True
        if streamed and declared is not None and declared.isdigit() and int(declared) > limit:
            raise ApiError(413, "payload_too_large", f"The body is larger than {limit} bytes.")
        length = declared if streamed else len(body)
        for _ in range(TRIES):
            try:
                return await self._call(lease, request, body, length, streamed)
            except PeerClosed as error:
                refusal = await functions.why_ended(lease)
                if error.taken:
                    break
            lease = await self._lease(request)
            self._authorize(lease, request)
        raise refusal

    async def _call(
        self, lease: Lease, request: Request, body: bytes, length: int | str | None, streamed: bool
    ) -> Response:
        """PeerClosed when the process has ended."""
        functions = self.functions
        if functions.full(lease):
            await functions.room(lease)
        while lease.dropped:  # meanwhile another process has taken its place
            lease = await self._lease(request)
        task: Any = asyncio.current_task()
        call = functions.begin(lease, request.id, lease.wall, task.cancel)
        connection = None
        kept = False
        taken = True
        try:
            head = self._head(lease, request, length)
            if streamed:
                limit = lease.project.limits.function_body
                connection = await functions.connection(lease)
                answer = await self._upload(lease, connection, head, request, limit)
            else:
                answer = await functions.send(lease, head + body, request.method == "HEAD")
            call.failed = answer.status >= 500
            response, kept = self._response(call, answer, task)
            return response
        except PeerClosed as error:
            # what has been read of a body that streams cannot be sent again
            call.failed = taken = error.taken = error.taken or connection is not None
            raise
        except BadAnswer:
            call.failed = True
            raise not_passed_on() from None
        except asyncio.CancelledError:
            call.failed = call.refusal is not None
            if connection is not None:
                connection.close()  # the function's req.signal is aborted
            if call.refusal is None:
                raise
            task.uncancel()
            raise call.refusal from None
        finally:
            if taken:
                self.add(lease.project_id, "function_invocations", 1)
            if not kept:
                functions.end(call, taken)

    async def websocket(self, request: Request, protocol: Any) -> None:
        """Relays a socket that the function opens; its refusal is passed on as a status."""
        lease = await self._lease(request)
        token = dict(parse_qsl(request.query)).get("token")
        if token is not None and not request.identity.claims and lease.auth != "none":
            # a browser cannot send headers with a WebSocket
            request.identity = self.context.verify(request.project, token)
        self._authorize(lease, request)
        for _ in range(TRIES):
            try:
                await self._socket(lease, request, protocol)
                return
            except PeerClosed as error:
                refusal = await self.functions.why_ended(lease)
                if error.taken:
                    break
            lease = await self._lease(request)
            self._authorize(lease, request)
        protocol.close(refusal.status)

    async def _socket(self, lease: Lease, request: Request, protocol: Any) -> None:
        """PeerClosed when the process has ended before it answered."""
        functions = self.functions
        if functions.full(lease):
            await functions.room(lease)
        while lease.dropped:
            lease = await self._lease(request)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        call = functions.begin(lease, request.id, lease.wall * SOCKET_TIMES, end)
        connection = None
        taken = True
        try:
            connection = await functions.connection(lease)
            protocols = offered(request.headers.get("sec-websocket-protocol"))
            head = self._head(lease, request, None).replace(
                b"transfer-encoding: chunked", upgrade_lines(protocols).encode()
            )
            async with asyncio.timeout(lease.wall):
                answer = await connection.request(head)
            if answer.connection is None:
                protocol.close(answer.status if 400 <= answer.status <= 599 else 502)
                return
            address: str = request.client  # type: ignore[attr-defined]
            name = chosen(answer, protocols)
            await relay(protocol, address, name, answer.connection, over)
        except TimeoutError:
            protocol.close(504)
        except PeerClosed as error:
            call.failed = taken = error.taken
            raise
        except BadAnswer:
            protocol.close(502)
        finally:
            if connection is not None:
                connection.close()
            if taken:
                self.add(lease.project_id, "function_invocations", 1)
            functions.end(call, taken)

    async def _lease(self, request: Request) -> Lease:
        name, _, _ = request.path[1:].partition("/")
        lease = self.functions.find(request.project, name)
        if lease is not None and not name.startswith("_"):
            return lease
        if not name or name.startswith("_") or len(name) > 63:
            raise not_found(name)
        if not request.project.settings.get("functions", {}).get("enabled", True):
            raise not_found(name)
        return await self.functions.lease(request.project, name)

    @staticmethod
    def _authorize(lease: Lease, request: Request) -> None:
        """By the function's switch: a key or token, a user's token, or nothing."""
        auth = lease.auth
        if auth == "none":
            return
        if request.refusal is not None:
            raise request.refusal
        identity = request.identity
        if not identity.claims:
            raise ApiError(401, "missing_api_key", "The request carries no API key.",
                           headers=(("www-authenticate", "Bearer"),))  # fmt: skip
        if auth == "user" and (identity.role != "authenticated" or identity.uid is None):
            raise ApiError(401, "missing_token", "This function needs a user's token.",
                           headers=(("www-authenticate", "Bearer"),))  # fmt: skip

    @staticmethod
    def _head(lease: Lease, request: Request, length: int | str | None) -> bytes:
        """The request line and headers for the Deno process. length: of the body; None sends it
        in chunks."""
        path = quote(request.path, safe=PATH_SAFE)
        if request.query:
            path = f"{path}?{request.query}"
        headers = request.headers
        lines = [
            f"{request.method} /functions{path} HTTP/1.1\r\nhost: "
            f"{headers.get('host') or 'localhost'}\r\nx-request-id: {request.id}\r\n"
            f"x-forwarded-for: {request.peer}"
        ]
        for name, value in headers.items():
            if name not in NOT_FORWARDED and not name.startswith((OURS, SOCKET)):
                lines.append(f"{name}: {value}")
        if request.beyond_ascii:
            for name, raw in request.beyond_ascii.items():
                if name not in NOT_FORWARDED and not name.startswith((OURS, SOCKET)):
                    lines.append(f"{name}: {raw.decode('latin-1')}")
        if SCHEDULE in headers and _ours(lease, headers):
            lines.append(f"{SCHEDULE}: {headers[SCHEDULE]}")
        identity = request.identity
        if identity.claims:
            lines.append(f"x-ichibase-role: {identity.role}")
            if identity.uid is not None and _plain(identity.uid):
                lines.append(f"x-ichibase-user-id: {identity.uid}")
        if length is None:
            lines.append("transfer-encoding: chunked")
        elif length or request.method not in NO_BODY:
            lines.append(f"content-length: {length}")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1", "replace")

    async def _upload(
        self, lease: Lease, connection: Connection, head: bytes, request: Request, limit: int
    ) -> Answer:
        """Sends the body as it comes. The answer may be there before the body is: the rest of it
        is then not read."""
        pool = lease.pool
        pool.hold(connection)
        chunked = b"transfer-encoding: chunked\r\n" in head
        waiting = connection.request(head, request.method == "HEAD")
        pump = asyncio.ensure_future(_pump(connection, request.read_stream(limit), chunked))
        whole = False
        try:
            await asyncio.wait((waiting, pump), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()  # what the client did wrong is told to it
                whole = True
                return await waiting
            answer = await waiting
            if answer.stream is not None:
                # A function that echoes reads on while it answers.
                pump.add_done_callback(lambda task: _pumped(task, pool, connection))
                pump = None  # type: ignore[assignment]
            return answer
        finally:
            if pump is not None:
                if not pump.done():
                    pump.cancel()
                    await asyncio.wait([pump])
                    whole = False
                elif not pump.cancelled():
                    pump.exception()
                pool.release(connection, whole)
                if not waiting.done():
                    waiting.cancel()

    def _response(self, call: Call, answer: Answer, task: Any) -> tuple[Response, bool]:
        """The function's answer; whether the call goes on with its body."""
        headers: Headers = [
            pair for pair in answer.headers
            if pair[0] not in NOT_RETURNED and not pair[0].startswith(OURS)
        ]  # fmt: skip
        if answer.body is not None:
            return Response(answer.status, headers, answer.body), False
        stream = answer.stream
        if stream is None:  # a 101 that nobody asked for
            if answer.connection is not None:
                answer.connection.close()
            raise not_passed_on()
        if stream.length is not None:
            headers.append(("content-length", str(stream.length)))
        flow = _Flow(self, call, stream)
        call.give_up = flow.end
        return Response(answer.status, headers, stream=flow), True


class _Flow:
    """The body of a function's answer on its way to the client; the call ends with it. over: done
    when its time is over."""

    def __init__(self, service: FunctionsService, call: Call, body: Body) -> None:
        self.service = service
        self.call = call
        self.body = body
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        """Whether all of it is here."""
        return self.body.done

    def end(self) -> None:
        self.body.abort()
        if not self.over.done():
            self.over.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self.body
        try:
            while part := await body.read():
                yield part
        except PeerClosed:
            return  # a length that was declared tells the client; the function's log says why

    async def aclose(self) -> None:
        self.body.abort()
        self.service.functions.end(self.call)


def _ours(lease: Lease, headers: Mapping[str, str]) -> bool:
    """Whether the functions process itself makes the call."""
    given = headers.get(TRUSTED, "").encode()
    return bool(lease.trusted) and hmac.compare_digest(given, lease.trusted.encode())


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


async def _pump(connection: Connection, chunks: AsyncIterator[bytes], chunked: bool) -> None:
    async for chunk in chunks:
        data = bytes(chunk)
        if chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await connection.write(data)
    if chunked:
        await connection.write(b"0\r\n\r\n")


def _pumped(task: asyncio.Task[None], pool: Any, connection: Connection) -> None:
    failed = task.cancelled() or task.exception() is not None
    pool.release(connection, not failed)


async def create(context: WorkerContext) -> FunctionsService:
    """The service of one worker."""
    service = FunctionsService(context)
    seen: dict[str, str] = {}

    def changed(project: Any, slug: str) -> None:
        if project is not None:
            seen[slug] = project.id
        known = seen.get(slug) if project is None else project.id
        if known is not None:
            service.functions.forget(known)

    context.directory.on_change(changed)
    return service
