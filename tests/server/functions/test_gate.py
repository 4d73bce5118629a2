"""The way of a build to the network."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import urlsplit

import pytest

from server.functions.gate import Gate


class Inside:
    """A service of the machine; it keeps what came."""

    async def __aenter__(self):
        self.came = []
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader, writer):
        self.came.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        writer.close()

    async def __aexit__(self, *_):
        self.server.close()


async def ask(gate, *lines, token=True):
    """What comes for a head, and for one more in the tunnel that it opened."""
    way = urlsplit(gate.environment["HTTPS_PROXY"])
    reader, writer = await asyncio.open_connection(way.hostname, way.port)
    pair = base64.b64encode(f"{way.username}:{way.password if token else 'x'}".encode()).decode()
    head = "\r\n".join([*lines, f"Proxy-Authorization: Basic {pair}", "", ""])
    writer.write(head.encode())
    if lines[0].startswith("CONNECT"):
        writer.write(b"GET /in HTTP/1.1\r\nhost: x\r\n\r\n")
    found = await reader.read(-1)
    writer.close()
    return found


def test_the_registries_are_reached_and_nobody_else_may_ask():
    async def go():
        async with Inside() as inside, Gate(frozenset({f"localhost:{inside.port}"})) as gate:
            at = f"localhost:{inside.port}"
            found = await ask(gate, f"CONNECT {at} HTTP/1.1", f"host: {at}")
            assert found.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
            found = await ask(gate, f"GET http://{at}/a?b=1 HTTP/1.1", f"host: {at}", "x-a: 1")
            assert found.endswith(b"hi")
            assert inside.came[1].startswith(b"GET /a?b=1 HTTP/1.1\r\nhost: ")
            assert b"x-a: 1" in inside.came[1]
            assert b"authorization" not in inside.came[1].lower()
            found = await ask(gate, f"CONNECT {at} HTTP/1.1", token=False)
            assert found.startswith(b"HTTP/1.1 403 ")
            for line in ("nonsense", "GET / HTTP/1.1", f"CONNECT {at}x HTTP/1.1", "\xff a b"):
                assert not (await ask(gate, line)).startswith(b"HTTP/1.1 2")
            assert len(inside.came) == 2
            assert not gate._tasks

    asyncio.run(go())


CLOSED = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0.0.0.0",
          "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.0.0.1", "172.16.0.1",
          "192.168.1.1",
          "169.254.169.254", "[fd00:ec2::254]", "[fe80::1]", "100.64.0.1", "168.63.129.16",
          "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:1::1]"]  # fmt: skip


@pytest.mark.parametrize("proxied", [False, True])
def test_no_other_closed_address_is_reached_however_it_is_written(proxied, monkeypatch):
    async def go():
        async with Inside() as inside, Gate(frozenset({f"trusted:{inside.port}"})) as gate:
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
                monkeypatch.delenv(name, raising=False)
                if proxied:
                    monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
            for host in CLOSED:
                for port in (inside.port, 80, 443):
                    for line in (f"CONNECT {host}:{port}", f"GET http://{host}:{port}/x"):
                        found = await ask(gate, f"{line} HTTP/1.1", f"host: {host}")
                        assert found.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 502 ")), (line, found)
            assert not inside.came
            assert gate.notes["127.0.0.1:80"] == "It has no public address."

    asyncio.run(go())


class Proxy(Inside):
    """Opens every tunnel, and answers in the place of who is asked for."""

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"CONNECT"):
            self.came.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        else:
            self.came.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nfar")
        writer.close()


def test_a_proxy_of_the_node_is_asked(monkeypatch):
    async def go():
        async with Proxy() as proxy, Inside() as inside:
            at = f"localhost:{inside.port}"
            async with Gate(frozenset({at, "far.invalid:443", "far.invalid:80"})) as gate:
                for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                    monkeypatch.setenv(name, f"http://ann:p%40ss@127.0.0.1:{proxy.port}")
                for name in ("no_proxy", "NO_PROXY"):
                    monkeypatch.setenv(name, "localhost")
                assert (await ask(gate, f"CONNECT {at} HTTP/1.1")).endswith(b"hi")
                assert not proxy.came
                assert (await ask(gate, "CONNECT far.invalid:443 HTTP/1.1")).endswith(b"far")
                found = await ask(gate, "GET http://far.invalid/a HTTP/1.1", "host: far.invalid")
                assert found.endswith(b"far")
            told = b"proxy-authorization: Basic " + base64.b64encode(b"ann:p@ss")
            assert [head.split(b"\r\n")[0] for head in proxy.came] == [
                b"CONNECT far.invalid:443 HTTP/1.1", b"GET http://far.invalid/a HTTP/1.1",
            ]  # fmt: skip
            assert all(head.count(told) == 1 for head in proxy.came)

    asyncio.run(go())
