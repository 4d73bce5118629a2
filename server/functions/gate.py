"""The only way of a build to the network: an HTTP proxy that leads to the registries and to public
addresses, whatever address a package names.

Deno takes its proxy from the environment for all that it fetches, and a build runs no other code.
A proxy of the node's own is asked in turn.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import os
import secrets
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from server.functions import network

HEAD_END = b"\r\n\r\n"
MAX_HEAD = 32 << 10
HEAD_SECONDS = 10.0
CONNECT_SECONDS = 10.0
PIECE = 64 << 10
PORTS = (80, 443)
REFUSED = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
AWAY = b"HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
# Of the connection to us, or to whom we ask.
DROPPED = (b"proxy-authorization", b"proxy-connection", b"connection", b"keep-alive")
TRANSLATED = [ipaddress.ip_network(text) for text in ("2002::/16", "2001::/23", "64:ff9b::/96")]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NotOpen(Exception):
    """A build may not go there."""


class Gate:
    """Of one build: `async with Gate(trusted) as gate`, then gate.environment tells Deno of it.
    trusted: each host:port that may be at any address. notes: by host:port, why the build did not
    get there."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self.trusted = trusted
        self.notes: dict[str, str] = {}
        self._token = secrets.token_urlsafe(24)
        self._own = _own_networks()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MAX_HEAD)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def environment(self) -> dict[str, str]:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        url = f"http://build:{self._token}@127.0.0.1:{port}"
        return dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.write(AWAY)
        except (asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the build has ended, which nobody waits here to hear
        except NotOpen:
            writer.write(REFUSED)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(HEAD_END)
        first, *lines = head[: -len(HEAD_END)].split(b"\r\n")
        method, target, _ = first.decode("ascii").split(" ")
        if not self._known(lines):
            raise NotOpen
        kept = [line for line in lines if line.partition(b":")[0].lower() not in DROPPED]
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            other = await self._reach("https", host.strip("[]"), int(port))
            writer.write(OPENED)
        else:
            parts = urlsplit(target)
            if parts.scheme != "http" or parts.hostname is None:
                raise NotOpen
            way = _proxy("http", parts.hostname)
            other = await self._reach("http", parts.hostname, parts.port or 80)
            shown = target if way is not None else target.partition("//")[2]
            path = shown if way is not None else "/" + shown.partition("/")[2]
            kept += [b"connection: close", *(_authorization(way) if way is not None else ())]
            sent = [f"{method} {path} HTTP/1.1".encode("ascii"), *kept]
            other[1].write(b"\r\n".join(sent) + HEAD_END)
        try:
            await _both(reader, writer, *other)
        finally:
            other[1].close()

    def _known(self, lines: list[bytes]) -> bool:
        """Whether it is the build that asks, and nobody else of this machine."""
        wanted = base64.b64encode(f"build:{self._token}".encode())
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"proxy-authorization":
                return hmac.compare_digest(value.strip().partition(b" ")[2], wanted)
        return False

    async def _reach(self, scheme: str, host: str, port: int) -> Streams:
        """A connection to where the build may go; NotOpen, OSError."""
        name = f"{host.lower()[:200]}:{port}"
        try:
            return await self._connect(scheme, host, port, name in self.trusted)
        except NotOpen as refusal:
            self.notes[name] = str(refusal)
            raise
        except TimeoutError:
            self.notes[name] = "It does not answer."
            raise
        except OSError as error:
            self.notes[name] = f"{_reason(error)}."
            raise

    async def _connect(self, scheme: str, host: str, port: int, trusted: bool) -> Streams:
        if not trusted and port not in PORTS:
            raise NotOpen(f"The ports of other hosts are {' and '.join(map(str, PORTS))}.")
        way = _proxy(scheme, host)
        async with asyncio.timeout(CONNECT_SECONDS):
            try:
                addresses = await _addresses(host, port)
            except OSError:
                if way is None:
                    raise
                addresses = []  # names that only the proxy knows are its to judge
            if not trusted and not all(map(self._public, addresses)):
                raise NotOpen("It has no public address.")
            if way is not None:
                return await _through(way, scheme, host, port)
            error: OSError = OSError("no address")
            for address in addresses:
                try:
                    return await asyncio.open_connection(address, port, limit=PIECE)
                except OSError as failed:
                    error = failed
            raise error

    def _public(self, address: str) -> bool:
        found = ipaddress.ip_address(address.partition("%")[0])
        if any(found in one for one in self._own if one.version == found.version):
            return False
        if found.version == 6:
            return found.is_global and not any(found in one for one in TRANSLATED)
        return True


def _own_networks(interfaces: Path = Path("/proc/net/if_inet6")) -> list[Any]:
    """What is not the public internet, and this machine's own addresses."""
    texts = [*network.CLOSED, *network.PUBLIC_METADATA, *network.own_addresses()]
    with contextlib.suppress(OSError):
        for line in interfaces.read_text().splitlines():
            texts.append(str(ipaddress.IPv6Address(int(line.split()[0], 16))))
    return [ipaddress.ip_network(text) for text in texts]


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno or error.errno < 0:
        return error.strerror or str(error) or "It is not reached"
    return os.strerror(error.errno)


async def _addresses(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _proxy(scheme: str, host: str) -> SplitResult | None:
    """The node's own proxy for an address, None where it goes there directly."""
    given = {name.lower(): value for name, value in os.environ.items() if value}
    url = given.get(f"{scheme}_proxy")
    if not url or proxy_bypass_environment(host, {"no": given.get("no_proxy", "")}):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def _authorization(way: SplitResult) -> list[bytes]:
    if way.username is None:
        return []
    pair = f"{unquote(way.username)}:{unquote(way.password or '')}".encode()
    return [b"proxy-authorization: Basic " + base64.b64encode(pair)]


async def _through(way: SplitResult, scheme: str, host: str, port: int) -> Streams:
    """A connection by the node's own proxy: a tunnel, or for plain HTTP to the proxy itself."""
    if way.scheme not in ("http", "https") or way.hostname is None:
        raise OSError(f"a proxy by {way.scheme} is not known")
    context = ssl.create_default_context() if way.scheme == "https" else None
    default = 443 if context is not None else 80
    reader, writer = await asyncio.open_connection(
        way.hostname, way.port or default, ssl=context, limit=PIECE
    )
    if scheme == "https":
        name = f"[{host}]" if ":" in host else host
        lines = [f"CONNECT {name}:{port} HTTP/1.1\r\nhost: {name}:{port}".encode("ascii")]
        writer.write(b"\r\n".join([*lines, *_authorization(way)]) + HEAD_END)
        told = await reader.readuntil(HEAD_END)
        if not told.split(b" ", 2)[1].startswith(b"2"):
            writer.close()
            raise OSError("the proxy refuses")
    return reader, writer


async def _both(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other_reader: asyncio.StreamReader,
    other_writer: asyncio.StreamWriter,
) -> None:  # fmt: skip
    """Passes bytes both ways until the server ends."""
    up = asyncio.ensure_future(_pass(reader, other_writer))
    try:
        await _pass(other_reader, writer)
    finally:
        up.cancel()
        await asyncio.wait([up])


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
