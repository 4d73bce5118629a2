"""A hostile function and hostile clients at the edges of HTTP: what passes is exactly what is meant
to, and the function's next caller is served."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.process.functions_node import Project

HOSTILE = (Path(__file__).parent / "hostile.ts").read_text()
LIMITS = {"function_wall_ms": 20_000, "function_cpu_ms": 5_000, "function_memory": 268_435_456}


@pytest.fixture(scope="module")
def hostile(project):
    project.node.cli("projects", "create", "hostile")
    made = Project(project.node, "hostile")
    assert made.admin("PATCH", "", {"limits": LIMITS})[0] == 200
    made.deploy("hostile", HOSTILE)
    return made


def raw(project, request, seconds=3.0):
    """All that comes back, headers as they are on the wire."""
    with socket.create_connection(("127.0.0.1", project.node.port), timeout=seconds) as client:
        client.sendall(request)
        found = b""
        try:
            while data := client.recv(65536):
                found += data
        except TimeoutError:
            found += b"<open>"
        return found


def head(project, path="method", method="GET", *lines):
    first = f"{method} /functions/hostile/{path} HTTP/1.1"
    given = [first, f"host: {project.host}", f"apikey: {project.anon}", "connection: close", *lines]
    return "\r\n".join([*given, "", ""]).encode()


@pytest.mark.parametrize("path", ["longer", "shorter", "lengths", "chunked", "hop", "upgrade"])
def test_an_answer_has_one_length_and_no_headers_of_the_connection(hostile, path):
    found, _, body = raw(hostile, head(hostile, path)).partition(b"\r\n\r\n")
    names = [line.partition(b":")[0].lower() for line in found.split(b"\r\n")[1:]]
    lengths = [line for line in found.split(b"\r\n") if line.startswith(b"content-length:")]
    assert lengths == [b"content-length: %d" % len(body)]
    assert not {b"transfer-encoding", b"keep-alive", b"upgrade", b"trailer"} & set(names)
    assert not {b"x-ichibase-role", b"access-control-allow-origin"} & set(names)
    assert names.count(b"x-request-id") == names.count(b"server") == names.count(b"date") == 1
    assert b"forged" not in found
    if path == "chunked":
        assert body == b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nevil"


def test_many_headers_and_odd_bytes_pass(hostile):
    found = raw(hostile, head(hostile, "many")).partition(b"\r\n\r\n")[0]
    assert found.count(b"\r\nx-") >= 2000
    found = raw(hostile, head(hostile, "cookies")).partition(b"\r\n\r\n")[0]
    assert found.count(b"\r\nset-cookie: a") == 50
    found = raw(hostile, head(hostile, "utf8"))
    assert "x-a: ä €\r\n".encode() in found


def test_statuses_that_are_none_become_answers(hostile):
    assert hostile.code("hostile/switching") == (502, "function_error")
    assert hostile.code("hostile/error") == (500, "function_error")
    for status in ("99", "100", "101", "103", "600", "0", "-1", "1e9"):
        assert hostile.call(f"hostile/faked?status={status}")[0] == 200
    assert hostile.call("hostile/none")[:2] == (204, b"")
    assert hostile.call("hostile/old")[:2] == (304, b"")


def test_every_method_passes(hostile):
    for method in ("OPTIONS", "TRACE", "PROPFIND", "QUERY", "get", "M-SEARCH"):
        assert hostile.call("hostile/method", method=method)[:2] == (200, method.encode())
    status, body, headers = hostile.call("hostile/method", method="HEAD")
    assert (status, body, headers["x-method"], headers["content-length"]) == (200, b"", "HEAD", "4")
    assert hostile.call("hostile/method", method="CONNECT")[0] == 400


REFUSED = [
    ("content-length: 3\r\ncontent-length: 4", b"abcd"), ("content-length: 3, 3", b"abc"),
    ("content-length: +3", b"abc"), ("content-length: -3", b"abc"),
    ("transfer-encoding: xchunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ("transfer-encoding: chunked", b"zz\r\nabc\r\n0\r\n\r\n"),
    ("transfer-encoding: identity\r\ncontent-length: 3", b"abc"),
    ("x-a: b\r\n c: d", b""), ("x-a: b\x00c", b""), ("x-a: b\rx-ichibase-role: x", b""),
    ("x-ichibase-role : service_role", b""), ("host: other.localhost", b""),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "body"), REFUSED)
def test_requests_that_could_be_read_in_two_ways_are_refused(hostile, lines, body):
    found = raw(hostile, head(hostile, "headers", "POST", lines) + body)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1


def test_a_body_that_looks_like_a_request_is_a_body(hostile):
    inner = b"GET /functions/hostile/method HTTP/1.1\r\nhost: a\r\n\r\n"
    for method in ("GET", "POST", "DELETE"):
        lines = f"content-length: {len(inner)}"
        found = raw(hostile, head(hostile, "headers", method, lines) + inner)
        assert found.count(b"HTTP/1.1 200 OK") == 1
    both = "content-length: 3\r\ntransfer-encoding: chunked"
    found = raw(hostile, head(hostile, "headers", "POST", both) + b"3\r\nabc\r\n0\r\n\r\n")
    assert json.loads(found.partition(b"\r\n\r\n")[2])[1] == "abc"
    given = "upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nX-ICHIBASE-ROLE: service_role"
    told = json.loads(
        raw(hostile, head(hostile, "headers", "GET", given)).partition(b"\r\n\r\n")[2]
    )
    seen = dict(told[0])
    assert seen["x-ichibase-role"] == "anon"
    assert not {"upgrade", "connection"} & set(seen)


def test_a_function_reaches_only_its_own_project_by_its_own_address(hostile):
    status, body, _ = hostile.call("hostile/own")
    assert status == 200, body
    found = json.loads(body)
    for name in ("plain", "upper", "credentials"):
        assert found.pop(name) == 'OK 200 {"status":"ok"}'
    assert "too many redirects" in found.pop("turning")
    assert "NotCapable" in found.pop("leaving")
    told = found.pop("other host header")
    assert told.startswith("OK 200")
    assert "6.6.6.6" not in told
    assert not [name for name in ("schedule", "internal", "user-id") if f"ichibase-{name}" in told]
    for name in ("admin path", "metrics"):
        assert found.pop(name).startswith("OK 404")
    for name in ("own client", "raw host", "raw connect"):
        assert "421" in found.pop(name)
    # A second request that names another project gets no answer, whatever the first one was.
    for name, most in (("raw pipeline", 1), ("raw lengths", 0), ("raw upgrade", 1),
                       ("raw websocket", 1)):  # fmt: skip
        told = found.pop(name)
        assert told.count("HTTP/1.1 2") <= most, (name, told)
        assert told.count('"status":"ok"') <= most
    assert not {name: told for name, told in found.items() if told.startswith("OK")}


def test_nothing_is_imported_that_was_not_deployed(hostile):
    status, body, _ = hostile.call("hostile/imports")
    assert status == 200, body
    found = json.loads(body)
    assert found.pop("data") == "OK 7"  # its own text
    assert not {name: told for name, told in found.items() if told.startswith("OK")}


def test_what_the_runtime_offers_beyond_the_web_is_refused(hostile):
    status, body, _ = hostile.call("hostile/refused")
    assert status == 200, body
    found = json.loads(body)
    assert not {name: told for name, told in found.items() if told.startswith("OK")}
    status, body, _ = hostile.call("hostile/worker")
    assert body in (b"OK nothing", b"Error: late") or status == 500


@pytest.mark.parametrize("path", ["wasm", "shared", "workers"])
def test_memory_of_every_kind_counts(hostile, path):
    hostile.admin("PATCH", "", {"limits": {**LIMITS, "function_memory": 134_217_728}})
    status, code = hostile.code(f"hostile/{path}")
    assert (status, code) in ((500, "function_error"), (504, "function_timeout"))
    assert hostile.call("hostile/method")[:2] == (200, b"POST")


def test_a_thread_that_sleeps_for_ever_is_given_up(hostile):
    hostile.admin("PATCH", "", {"limits": {**LIMITS, "function_wall_ms": 1_000}})
    assert hostile.code("hostile/asleep") == (504, "function_timeout")
    assert hostile.call("hostile/method")[:2] == (200, b"POST")


@pytest.mark.parametrize("path", ["vsock", "more"])
def test_what_the_runtime_ends_its_process_for_ends_that_alone(hostile, path):
    hostile.deploy("hostile", f"{HOSTILE}// {path}")  # the ends before are forgotten
    assert hostile.code(f"hostile/{path}") == (500, "function_error")
    assert hostile.call("hostile/method")[:2] == (200, b"POST")


def test_an_upgrade_that_the_function_does_not_make_is_refused(hostile):
    lines = ["upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"]
    bare = head(hostile, "method", "GET", *lines).replace(b"connection: close\r\n", b"")
    good = bare.replace(b"\r\n\r\n", b"\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert raw(hostile, bare, 0.4).startswith(b"HTTP/1.1 400 ")
    assert raw(hostile, good, 0.4).startswith(b"HTTP/1.1 502 ")
    other = good.replace(b"/functions/hostile/", b"/functions/none/")
    assert raw(hostile, other, 0.4).startswith(b"HTTP/1.1 404 ")
