"""The loads of a bad neighbour that are programs: `python -m bench.hostile KIND` with what it has
to know as JSON on its standard input. Each goes on until it is killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from bench.neighbour import DOWNLOAD, UPLOAD
from tests.oracle.websocket import TEXT, Client, frame

Told = dict[str, Any]
PAUSE = 0.05  # after a failure
SOCKETS = 20


def _together(*works: Callable[[], None]) -> None:
    for work in works:
        threading.Thread(target=work, daemon=True).start()
    while True:
        time.sleep(60)


# --- the database -------------------------------------------------------------------------------


def _sql(told: Told, *statements: str) -> Callable[[], None]:
    """Runs the statements for ever, and goes on behind one that fails."""

    def work() -> None:
        while True:
            with (
                contextlib.suppress(psycopg.Error),
                psycopg.connect(told["dsn"], autocommit=True) as session,
            ):
                for statement in itertools.cycle(statements):
                    try:
                        session.execute(statement)
                    except psycopg.Error:
                        if session.closed:
                            break
                        time.sleep(PAUSE)
            time.sleep(PAUSE)

    return work


def owner(told: Told) -> None:
    """Writes, sorts and truncates."""
    _together(_sql(
        told, "insert into heap (body) select repeat(md5(a::text), 20) "
        "from generate_series(1, 5000) a",
        "select count(distinct body) from heap", "truncate heap",
    ))  # fmt: skip


def sorts(told: Told) -> None:
    """More than fits the memory of a statement, and more than a statement's files may hold."""
    _together(
        _sql(told, "select count(*) from (select row_number() over (order by md5(body)) from big) "
                   "as numbered"),
        _sql(told, "select count(*) from big a join (select * from big where id > 50000) b "
                   "on a.body = b.body"),
        _sql(told, "select count(*) from (select body, id from big order by body desc) x "
                   "join big using (id)"),
    )  # fmt: skip


def scans(told: Told) -> None:
    _together(*[_sql(told, "select count(*) from big where body like '%zz%'")] * 3)


def writes(told: Told) -> None:
    """As much write-ahead log as goes."""
    _together(*(
        _sql(
            told, f"create table if not exists flow{number} (id int, body text)",
            f"insert into flow{number} select a, repeat(md5(a::text), 30) "
            "from generate_series(1, 20000) a",
            f"update flow{number} set body = body || 'x'", f"delete from flow{number}",
            f"truncate flow{number}",
        )
        for number in range(3)
    ))  # fmt: skip


def commits(told: Told) -> None:
    """One row at a time."""
    _together(*[_sql(told, "insert into ids (n) values (1)")] * 6)


def upkeep(told: Told) -> None:
    _together(
        _sql(told, "create index on big (md5(body))", "drop index big_md5_idx"),
        _sql(told, "vacuum full ids", "analyze big", "reindex table heap"),
    )


def ddl(told: Told) -> None:
    """Changes of the catalog, of which all sessions of the cluster are told."""
    _together(*(
        _sql(told, f"create temp table t{n} (id int primary key, a text, b text, c text)",
             f"drop table t{n}", f"create table d{n} (id int)",
             f"alter table d{n} add column x text", f"drop table d{n}")
        for n in range(3)
    ))  # fmt: skip


def notices(told: Told) -> None:
    """Notifications, which go through a queue of the whole cluster."""
    text = "y" * 7000
    _together(
        *[_sql(told, f"notify flood, '{text}'")] * 3,
        _sql(told, "listen flood", "begin", "select pg_sleep(9)", "commit"),
    )


def sessions(told: Told) -> None:
    """Logs in and leaves."""

    def work() -> None:
        while True:
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(told["dsn"]).close()

    _together(*[work] * 8)


# --- sockets ------------------------------------------------------------------------------------


def _open(told: Told, *subscriptions: dict[str, Any]) -> socket.socket:
    path, headers = f"/realtime?token={told['key']}", (("Host", told["host"]),)
    while True:
        try:
            one = Client.connect("127.0.0.1", told["port"], path, headers)
        except OSError:
            time.sleep(0.1)
            continue
        for ref, more in enumerate(subscriptions):
            said = {"type": "subscribe", "ref": str(ref), **more}
            one.send(TEXT, json.dumps(said).encode())
        one.sock.setblocking(False)
        return one.sock


ROOM = {"kind": "broadcast", "channel": "room:1"}


def _flood(make: Callable[[], socket.socket], data: bytes, count: int, deaf: bool = False) -> None:
    """Sends for ever the same bytes on so many connections, as much as is taken, and reads what
    comes. Those that the server cuts come back. deaf: they read nothing."""
    left: dict[socket.socket, bytes] = {}
    while True:
        while len(left) < count:
            left[make()] = b""
        open_ = list(left)
        readable, writable, _ = select.select([] if deaf else open_, open_, [], 1)
        for sock in readable + writable:
            try:
                if sock in readable and not sock.recv(1 << 20):
                    raise ConnectionResetError
                if sock in writable:
                    rest = left[sock] or data
                    left[sock] = rest[sock.send(rest) :]
            except BlockingIOError:
                continue
            except OSError:
                left.pop(sock, None)
                sock.close()
        time.sleep(0.002)


def _talk(told: Told, frames: bytes, *subscriptions: dict[str, Any], deaf: bool = False) -> None:
    """Sockets that send these frames."""
    _flood(lambda: _open(told, *subscriptions), frames, SOCKETS, deaf)


def _said(size: int, count: int) -> bytes:
    said = {"type": "broadcast", "channel": "room:1", "event": "x", "payload": "y" * size}
    return frame(TEXT, json.dumps(said).encode()) * count


def sockets(told: Told) -> None:
    """Twenty sockets that talk and hear of each row, while their project writes rows."""
    rows = _sql(told, "insert into heap (body) values ('a row that others hear of')")
    threading.Thread(target=rows, daemon=True).start()
    _talk(told, _said(100, 32), ROOM, {"kind": "postgres", "table": "heap"})


def presence(told: Told) -> None:
    states = b"".join(
        frame(TEXT, json.dumps({
            "type": "presence", "channel": "room:1", "state": {"n": n, "text": "z" * 3000}
        }).encode()) for n in range(8)
    )  # fmt: skip
    _talk(told, states, {**ROOM, "presence": True, "state": {"n": 0}})


def frames(told: Told) -> None:
    """Large ones."""
    _talk(told, _said(60_000, 4), ROOM)


def deaf(told: Told) -> None:
    """Nobody reads what all send, of rows and of each other."""
    rows = _sql(
        told, "insert into heap (body) select repeat('x', 20000) from generate_series(1, 50)"
    )
    threading.Thread(target=rows, daemon=True).start()
    _talk(told, _said(20_000, 4), ROOM, {"kind": "postgres", "table": "heap"}, deaf=True)


def upgrades(told: Told) -> None:
    """Opens and closes."""

    def work() -> None:
        while True:
            _open(told, ROOM).close()

    _together(*[work] * 8)


# --- HTTP ---------------------------------------------------------------------------------------


def _connect(told: Told) -> socket.socket:
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", told["port"]), timeout=20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError:
            time.sleep(PAUSE)


def _put(told: Told, name: str, size: int) -> bytes:
    return (
        f"PUT /storage/object/public/{name} HTTP/1.1\r\nHost: {told['host']}\r\n"
        f"authorization: Bearer {told['secret']}\r\ncontent-length: {size}\r\n"
        "content-type: application/octet-stream\r\n\r\n"
    ).encode()


def _uploads(told: Told, name: str, size: int) -> Callable[[], None]:
    body = os.urandom(size)

    def work() -> None:
        while True:
            with contextlib.suppress(OSError), _connect(told) as sock:
                while True:
                    sock.sendall(_put(told, name, size))
                    sock.sendall(body)
                    if not sock.recv(65_536).startswith(b"HTTP/1.1 200"):
                        time.sleep(PAUSE)
                        break

    return work


def uploads(told: Told) -> None:
    """Large files, each in place of the one before."""
    _together(*(_uploads(told, f"up{number}", UPLOAD) for number in range(6)))


def files(told: Told) -> None:
    """Small files."""
    _together(*(_uploads(told, f"small{number}", 1024) for number in range(8)))


def downloads(told: Told) -> None:
    with _connect(told) as sock:
        sock.sendall(_put(told, "large", DOWNLOAD))
        sock.sendall(os.urandom(DOWNLOAD))
        sock.recv(65_536)
    asked = (
        f"GET /cdn/{told['name']}/public/large HTTP/1.1\r\n"
        f"Host: {told['host'].partition('.')[2]}\r\n\r\n"
    ).encode()

    def work() -> None:
        while True:
            with contextlib.suppress(OSError), _connect(told) as sock:
                while True:
                    sock.sendall(asked)
                    left = DOWNLOAD
                    while left > 0:
                        if not (got := len(sock.recv(1 << 20))):
                            raise ConnectionResetError
                        left -= got

    _together(*[work] * 6)


def _stream(told: Told, data: bytes, connections: int) -> None:
    """Connections that send these bytes."""

    def make() -> socket.socket:
        sock = _connect(told)
        sock.setblocking(False)
        return sock

    _flood(make, data, connections)


def malformed(told: Told) -> None:
    _stream(told, b"GET /\x00\x01 HTTP/9.9\r\nno header at all\r\n\r\n", 16)


def pipelined(told: Told) -> None:
    asked = (
        f"GET /postgres/heap?id=eq.1 HTTP/1.1\r\nHost: {told['host']}\r\n"
        f"authorization: Bearer {told['key']}\r\n\r\n"
    ).encode()
    _stream(told, asked * 200, 16)


def slow(told: Told) -> None:
    """A thousand requests that come a byte at a time."""
    head = f"POST /postgres/heap HTTP/1.1\r\nHost: {told['host']}\r\nx-y: ".encode()
    open_: list[socket.socket] = []
    while True:
        while len(open_) < 900:
            sock = _connect(told)
            sock.sendall(head)
            open_.append(sock)
        for sock in list(open_):
            try:
                sock.send(b"a")
            except OSError:
                open_.remove(sock)
                sock.close()
        time.sleep(0.5)


LOADS = {
    load.__name__: load
    for load in (
        owner, sorts, scans, writes, commits, upkeep, ddl, notices, sessions, sockets, presence,
        frames, deaf, upgrades, uploads, files, downloads, malformed, pipelined, slow,
    )
}  # fmt: skip


def main() -> int:
    kind, told = sys.argv[1], json.loads(sys.stdin.read())
    LOADS[kind](told)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
