"""Connections to servers that a project's settings name: mail servers, webhooks, OAuth providers.

Unless the node runs in development such a server must have a public address, checked at the
moment of connecting: settings of one project must not open the machine's own network. Redirects
are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

TIMEOUT = 10.0  # seconds for each step of a request
TOTAL_TIMEOUT = 20.0
MAX_ANSWER = 1_048_576  # bytes


class OutboundError(RuntimeError):
    """The other server could not be reached or did not answer as HTTP asks; the text says why."""


class Answer:
    """status: HTTP status. headers: lower-case name to value. body: at most 1 MB."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to the address that was checked, not to a name that may resolve anew."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = OutboundError(f"{host} has no address")
        for address in await self._outbound.addresses(host, port):
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise OutboundError("only internet addresses are reached from here")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Outbound:
    """One per worker. private: loopback and private addresses may be reached too."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self._tls = ssl.create_default_context()
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses, all of them allowed; OutboundError otherwise."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"{host} cannot be resolved: {error}") from None
        result = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in result:
            parsed = ipaddress.ip_address(address.partition("%")[0])
            if not self.private and not is_public(parsed):
                raise OutboundError(f"{host} has the address {address}, which is not public")
        return result

    async def open_socket(self, host: str, port: int) -> socket.socket:
        """A connected TCP socket, not blocking; OutboundError."""
        loop = asyncio.get_running_loop()
        failure = f"{host} has no address"
        for address in await self.addresses(host, port):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setblocking(False)
            try:
                await asyncio.wait_for(loop.sock_connect(made, (address, port)), TIMEOUT)
            except (OSError, TimeoutError) as error:
                made.close()
                failure = str(error) or "no answer in time"
            except BaseException:
                made.close()
                raise
            else:
                return made
        raise OutboundError(f"{host}:{port} cannot be reached: {failure}")

    async def request(
        self, method: str, url: str, headers: dict[str, str], body: bytes = b""
    ) -> Answer:
        """One HTTP exchange; OutboundError when there is no answer."""
        fields = list(headers.items())
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=50,
                max_keepalive_connections=10,
                keepalive_expiry=30,
                network_backend=_Guard(self),
            )
        limits = {"connect": TIMEOUT, "read": TIMEOUT, "write": TIMEOUT, "pool": TIMEOUT}
        try:
            async with (
                asyncio.timeout(TOTAL_TIMEOUT),
                self._pool.stream(
                    method, url, headers=fields, content=body, extensions={"timeout": limits}
                ) as response,
            ):
                parts, size = [], 0
                async for part in response.aiter_stream():
                    size += len(part)
                    if size > MAX_ANSWER:
                        raise OutboundError(f"{url} answered more than {MAX_ANSWER} bytes")
                    parts.append(part)
        except OutboundError:
            raise
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            TimeoutError,
            OSError,
            ValueError,
        ) as error:
            reason = str(error) or type(error).__name__
            raise OutboundError(f"{url} does not answer: {reason}") from None
        names = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
        return Answer(response.status, names, b"".join(parts))

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to the open internet, mapped and translated ones included."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast
