"""Answers to requests whose body is still on its way: clients get them, and the next one too."""

import asyncio
import http.client
import socket
import time

import pytest

from server.gateway import limits
from server.gateway.traffic import Traffic
from tests.timing import within


class Client(http.client.HTTPConnection):
    """Sends a body some time after the head, all of it before it reads."""

    def __init__(self, site):
        super().__init__("127.0.0.1", site.port, timeout=30)

    def ask(self, method, path, body, pause=0.0, headers=(), chunked=False):
        """The status, with the connection kept."""
        self.putrequest(method, path, skip_host=True)
        length = ("transfer-encoding", "chunked") if chunked else ("content-length", len(body))
        for name, value in (("host", "localhost"), length, *dict(headers).items()):
            self.putheader(name, value)
        self.endheaders()
        time.sleep(pause)
        if chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.send(body)
        with self.getresponse() as answer:
            answer.read()
            return answer.status


# Answers that are there before the body: of the gateway, and of a service that does not read it.
EARLY = {"/nothing": 404, "/storage/status/507": 507, "/storage/status/200": 200}


@pytest.mark.parametrize("path", EARLY)
@pytest.mark.parametrize("size", [7, 20_000, 3_000_000, 40_000_000])
def test_a_body_that_comes_late_does_not_cost_the_answer(echo, path, size):
    client = Client(echo)
    for pause in (0.05, 0.0, 0.05):  # on one connection
        assert client.ask("POST", path, b"x" * size, pause) == EARLY[path]
    assert client.ask("POST", "/storage/x", b"x" * 9) == 200
    client.close()


@pytest.mark.parametrize("size", [7, 3_000_000])
def test_nor_when_the_client_wants_no_other_one(echo, size):
    for _ in range(5):
        client = Client(echo)
        assert client.ask("POST", "/nothing", b"x" * size, 0.02, {"connection": "close"}) == 404
        client.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_one_that_is_too_large_for_its_route(echo, chunked):
    client = Client(echo)
    for pause in (0.0, 0.05):
        assert client.ask("POST", "/storage/x", b"x" * 5_000_000, pause, chunked=chunked) == 413
    assert client.ask("GET", "/storage/x", b"") == 200
    client.close()


def test_a_refusal_of_the_headers_themselves(echo):
    client = Client(echo)
    headers = {"authorization": "caf\u00e9"}
    before = echo.log_path.stat().st_size
    assert client.ask("POST", "/storage/x", b"x" * 20_000, 0.05, headers) == 400
    assert client.ask("POST", "/storage/x", b"x") == 200
    client.close()
    assert b"Traceback" not in echo.log_path.read_bytes()[before:]


def test_who_waits_for_leave_to_send_gets_the_answer_alone(echo):
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as peer:
        began = time.monotonic()
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                     b"Content-Length: 100\r\n\r\n")  # fmt: skip
        said = b""
        while piece := peer.recv(4096):
            said += piece
        assert said.startswith(b"HTTP/1.1 404")
        assert within(time.monotonic() - began, limits.SILENT_SECONDS / 2)


def test_the_answer_is_there_at_once_and_a_silent_client_is_left(echo):
    with socket.create_connection(("127.0.0.1", echo.port), timeout=30) as peer:
        began = time.monotonic()
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        assert peer.recv(4096).startswith(b"HTTP/1.1 404")
        assert within(time.monotonic() - began, 1.0)
        while peer.recv(4096):
            pass
        assert within(time.monotonic() - began, limits.SILENT_SECONDS + 3)


class Body:
    """Of the HTTP server: pieces that come without end, or never."""

    def __init__(self, piece):
        self.piece, self.given, self.begun = piece, 0, False

    def __aiter__(self):
        if self.begun:
            raise RuntimeError("it was begun")
        self.begun = True
        return self

    async def __anext__(self):
        if self.piece is None:
            await asyncio.sleep(60)
        await asyncio.sleep(0)
        self.given += len(self.piece)
        return self.piece


def passed(body, headers=(), traffic=None):
    began = time.monotonic()
    asyncio.run(limits.let_pass(body, dict(headers), traffic))
    return body.given, time.monotonic() - began


def test_what_may_pass_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "PASSED", 1_000_000)
    monkeypatch.setattr(limits, "PASS_SECONDS", 0.3)
    monkeypatch.setattr(limits, "SILENT_SECONDS", 0.1)
    assert passed(Body(b"x" * 1000))[0] == 1_000_000
    given, took = passed(Body(None))
    assert (given, within(took, 2.0)) == (0, True)
    given, took = passed(Body(b"x"))  # a trickle is over in time as well
    assert 0 < given < 1_000_000
    assert within(took, 3.0)
    half = Body(b"x" * 1000)
    aiter(half)
    assert passed(half)[0] == 1_000_000  # goes on with what was begun
    assert passed(Body(b"x"), {"expect": "100-continue"})[0] == 0
    monkeypatch.setattr(limits, "_passing", limits.MOST_PASSING)
    assert passed(Body(b"x" * 1000))[0] == 0


def test_it_counts_as_traffic(monkeypatch):
    monkeypatch.setattr(limits, "PASSED", 100_000)

    class Tally:
        pass

    traffic = Traffic(Tally())
    traffic.rate = 100_000.0
    given, took = passed(Body(b"x" * 10_000), traffic=traffic)
    assert given == 100_000
    assert took > 0.5
