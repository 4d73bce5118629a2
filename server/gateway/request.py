"""A request on its way from the HTTP server to a service."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from typing import Any

from ichicore.errors import ApiError
from ichicore.http import lenient
from server.base.batches import Batches, StreamBatches
from server.base.http import Request
from server.base.project import NOBODY
from server.base.serving import ServingLoop
from server.gateway import limits
from server.gateway.gathering import Gathered
from server.gateway.routes import Route
from server.gateway.traffic import LEAST, SlowedBatches, Traffic, slowed


class EdgeRequest(Request):
    """A Request whose body, peer and base URL are read from the server when they are asked for.

    It is made first of all and filled in on the way. route: what it was routed to, None before.
    cors: headers that every answer to it carries. slug: of its project, "" before. traffic: what
    bounds its bodies, None where nothing does.
    """

    __slots__ = (
        "_kept", "_protocol", "_reader", "_scope", "body_limit", "cors", "route", "slug", "traffic",
    )  # fmt: skip

    def __init__(self, scope: Any, protocol: Any, body_limit: int) -> None:
        # the parent's fields are set one by one on the way: a call of it would be paid per request
        self._scope = scope
        self._protocol = protocol
        self._kept: str | None = None
        self._reader: Any = None
        self.body_limit = body_limit
        self.method = scope.method
        self.query = scope.query_string
        self.identity = NOBODY
        self.refusal = None
        self.beyond_ascii: dict[str, bytes] | None = None
        self.route: Route | None = None
        self.cors: tuple[tuple[str, str], ...] = ()
        self.slug = ""
        self.traffic: Traffic | None = None

    def collect(self) -> dict[str, str]:
        """Reads the headers. ApiError 400 as limits.collect."""
        raw = self._scope.headers
        try:
            self.headers = headers = limits.collect(raw)
        except ApiError:
            self.headers = dict(raw.items())  # for what is told of the refusal
            raise
        self._kept = headers.pop(lenient.BODY_HEADER, None)
        if lenient.ENCODED_HEADER in headers:
            self.beyond_ascii = limits.beyond_ascii(headers)
        return headers

    @property
    def base_url(self) -> str:  # type: ignore[override]
        scheme = "https" if self.headers.get("x-forwarded-proto") == "https" else self._scope.scheme
        return f"{scheme}://{self.headers.get('host') or self._scope.authority or 'localhost'}"

    @property
    def peer(self) -> str:  # type: ignore[override]
        return peer_of(self._scope.client, self.headers.get("x-forwarded-for"))

    @property
    def client(self) -> str:
        """The address of the connection, with its port."""
        return str(self._scope.client)

    async def read_body(self, limit: int | None = None) -> bytes:
        """The whole body; ApiError 413 beyond `limit` bytes or the node's own limit."""
        most = self.body_limit if limit is None else min(limit, self.body_limit)
        if self._kept:
            body = lenient.body(self._kept)
            if body is not None and len(body) <= most:
                if len(body) == limits.declared(self.headers):
                    return body
        if self.traffic is not None:
            length = limits.declared(self.headers)
            if length is None:
                return b"".join([piece async for piece in self.read_stream(most)])
            if LEAST <= length <= most:
                await self.traffic.wait(length)
        body = await limits.read_body(self._protocol, self.headers, most)
        self._kept = ""  # all of it is here
        return body

    def read_stream(self, limit: int | None = None) -> AsyncIterator[bytes]:
        """The body in chunks, once; here a service's own limit may exceed the node's."""
        most = self.body_limit if limit is None else limit
        pieces = limits.read_stream(self._protocol, self.headers, most)
        if self.traffic is not None:
            pieces = slowed(pieces, self.traffic)
        self._reader = pieces
        return pieces

    def read_batches(self) -> Batches:
        """The body of declared length in batches, once; of any length that the service accepts."""
        length = limits.declared(self.headers)
        if length is None or not isinstance(asyncio.get_running_loop(), ServingLoop):
            return StreamBatches(self.read_stream(length))
        batches: Batches = Gathered(self._protocol, length)
        if self.traffic is not None:
            batches = SlowedBatches(batches, self.traffic)
        self._reader = batches
        return batches

    def unread(self) -> bool:
        """Whether some of the body may be on its way still, and nobody is reading it."""
        headers, reader = self.headers, self._reader
        return (
            self._kept is None
            and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers)
            and not getattr(reader, "over", False)
            # the server blocks the loop when two ask it for the next piece
            and not getattr(reader, "ag_running", False)
        )

    async def let_pass(self) -> None:
        """After the answer: reads what is on its way, for a while."""
        await limits.let_pass(self._protocol, self.headers, self.traffic)

    async def gone(self) -> None:
        """Returns when the client has left."""
        await self._protocol.client_disconnect()


def peer_of(client: str, forwarded: str | None) -> str:
    """The client's address, without port. A proxy on this machine or in a private network is
    believed about the client it names last."""
    direct = client.rpartition(":")[0].strip("[]")
    if not forwarded:
        return direct
    try:
        if direct and not ipaddress.ip_address(direct).is_private:
            return direct
        return str(ipaddress.ip_address(forwarded.rpartition(",")[2].strip()))
    except ValueError:
        return direct
