"""A free project that does all it can: what keeps it busy, by kind.

Elsewhere its clients would be other machines: here, what makes the load runs at a low priority and
lets everything else interrupt it, as far as the system lets it. `bench.hostile` holds the loads
that are programs of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.base import processor

SETTLE = 1.0  # seconds from the beginning of an attack until it is in full swing
BIG_ROWS = 400_000  # about 280 MB with the index, of the 500 that a free project may have
DOCUMENTS = 20_000
UPLOAD, DOWNLOAD = 8 << 20, 32 << 20  # bytes of a file
SQL = (
    "create table heap (id bigint generated always as identity primary key, body text)",
    "create table big (id int primary key, kind int, body text)",
    "create table ids (id bigint generated always as identity primary key, n int)",
    """create function burn() returns bigint language sql volatile as
      'select count(*) from generate_series(1, 300000) a where md5(a::text) < ''8'''""",
    """create function spin() returns int language plpgsql volatile as
      'declare n int := 0; begin loop n := (n * 31 + 7) % 1000003; end loop; return n; end'""",
    "create function nap() returns int language sql volatile as 'select 1 from pg_sleep(4)'",
    """create function huge() returns json language sql volatile as
      'select json_agg(b) from (select * from big limit 160000) b'""",
    *(f"""insert into big select a, a % 1000, repeat(md5(a::text), 18)
      from generate_series({first + 1}, {first + BIG_ROWS // 4}) a"""
      for first in range(0, BIG_ROWS, BIG_ROWS // 4)),
)  # fmt: skip
FUNCTIONS = {
    "spin": """Deno.serve(() => {
  const end = Date.now() + 400; let n = 0;
  while (Date.now() < end) for (let i = 0; i < 1e5; i++) n = (n * 31 + i) | 0;
  return new Response(String(n));
});""",
    "bomb": """Deno.serve(() => {
  const kept = [];
  for (;;) kept.push(new Uint8Array(4 << 20).fill(kept.length));
});""",
    "chatter": """Deno.serve(() => {
  for (let i = 0; i < 20000; i++) console.log("x".repeat(500), i);
  return new Response("said");
});""",
    "flood": """const part = new Uint8Array(1 << 20).fill(97);
Deno.serve(() => new Response(new ReadableStream({
  start(out) { for (let i = 0; i < 24; i++) out.enqueue(part); out.close(); } })));""",
}
SETTINGS = {
    "realtime": {
        "tables": {"public.heap": {"enabled": True, "rule": {}}},
        "channels": {"room:*": {"subscribe": True, "send": True, "presence": True}},
        "frames_per_second": 10_000, "payload_bytes": 65_536,
    },
    "auth": {"rate_limits": {
        name: {"count": 1_000_000, "seconds": 1}
        for name in ("login_per_ip_and_email", "login_per_email", "login_per_ip", "login_project",
                     "signup_per_ip", "signup_project")
    }, "lockout": {"free": 1_000_000, "free_per_email": 1_000_000}},
}  # fmt: skip
GROUPS = {
    "sql": ("burn", "owner"),
    "queries": ("loops", "sorts", "scans", "answers", "naps"),
    "writes": ("writes", "commits", "upkeep", "ddl", "notices", "sessions"),
    "documents": ("point", "unindexed", "pipelines", "bulk"),
    "functions": ("spin", "bombs", "chatter", "streams"),
    "sockets": ("sockets", "presence", "frames", "deaf", "upgrades"),
    "storage": ("uploads", "downloads", "files"),
    "auth": ("signups", "logins"),
    "requests": ("refused", "strangers", "malformed", "heads", "pipelined", "bodies", "reconnects",
                 "slow"),
}  # fmt: skip
GROUPS["four"] = ("burn", "owner", "point", "unindexed", "spin", "sockets")
GROUPS["together"] = ("burn", "owner", "sorts", "writes", "point", "unindexed", "spin", "sockets",
                      "uploads", "signups", "refused")  # fmt: skip
KINDS = tuple(dict.fromkeys(kind for kinds in GROUPS.values() for kind in kinds))
# Of the document API: one find after the other of a small collection that grows; searches, sorts,
# groups and patterns over all documents; large writes.
FIND = {"filter": {"n": {"$gte": 5}, "body": {"$regex": "^a.*z$"}}, "limit": 100}
UNINDEXED = (
    ("find", {"filter": {"body": {"$regex": "a.*b.*c.*zz$"}}, "limit": 100}),
    ("find", {"filter": {"word": "none"}, "limit": 100}),
    ("find", {"filter": {}, "sort": {"word": -1, "n": 1}, "limit": 1000}),
    ("count", {"filter": {"n": {"$gte": 3}, "word": {"$ne": "w7"}}}),
)
PIPELINES = (
    [{"$group": {"_id": "$word", "total": {"$sum": "$n"}, "most": {"$max": "$n"}}}],
    [{"$match": {"n": {"$gte": 10}}}, {"$sort": {"body": 1}},
     {"$group": {"_id": {"k": "$kind", "w": "$word"}, "n": {"$sum": 1}}}],
)  # fmt: skip


def document(number: int) -> dict[str, Any]:
    return {"n": number, "kind": number % 100, "word": f"w{number % 977}",
            "body": f"{number * 2654435761 % 2**32:08x}" * 12}  # fmt: skip


def _wrk(url: str, headers: dict[str, str], lua: str, connections: int = 8) -> Callable[[], Any]:
    """A closed loop of clients that ask again as soon as they are answered, whatever the answer."""

    def start() -> Any:
        script = tempfile.NamedTemporaryFile("w", suffix=".lua")  # noqa: SIM115
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
        script.write("\n".join(lines) + "\n" + lua)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "20s", "-s",
                   script.name, url]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_elsewhere
        )
        return process, script

    return start


def _in_turn(requests: list[tuple[str, str, str]]) -> str:
    """Lua of wrk that asks for one (method, path, body) after the other."""
    made = ", ".join(
        f"wrk.format({json.dumps(method)}, {json.dumps(path)}, nil, [==[{body}]==])"
        for method, path, body in requests
    )
    return (
        f"local made, n = {{}}, 0 init = function() made = {{ {made} }} end "
        "request = function() n = n + 1 return made[n % #made + 1] end"
    )


def _elsewhere() -> None:
    """Where Linux weighs sessions against each other, the measured client must not share its own
    with the load."""
    os.setsid()
    os.nice(10)
    processor.turns(0, processor.BEHIND)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("10\n")


def _helper(kind: str, told: str) -> Callable[[], Any]:
    def start() -> Any:
        command = [sys.executable, "-m", "bench.hostile", kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=_elsewhere)
        assert process.stdin is not None
        process.stdin.write(told.encode())
        process.stdin.close()
        return process, None

    return start


class Attack:
    """What a free project's clients, functions and owner do as fast as they are let.

    url: of the node. headers: of the project's client. project: of the admin API's answer to its
    creation."""

    def __init__(self, url: str, headers: dict[str, str], project: dict[str, Any]) -> None:
        post = {**headers, "content-type": "application/json", "apikey": project["anon_key"]}
        secret = {**post, "apikey": project["service_key"],
                  "authorization": f"Bearer {project['service_key']}"}  # fmt: skip
        told = json.dumps({
            "port": int(url.rpartition(":")[2]), "host": headers["Host"], "name": project["name"],
            "key": project["anon_key"], "secret": project["service_key"],
            "dsn": project["database_url"],
        })  # fmt: skip

        def calls(path: str, connections: int = 8) -> Callable[[], Any]:
            return _wrk(url, post, _in_turn([("POST", path, "{}")]), connections)

        def documents(requests: list[tuple[str, Any]], collection: str) -> Callable[[], Any]:
            return _wrk(url, secret, _in_turn([
                ("POST", f"/mongo/v1/{operation}/{collection}", json.dumps(body))
                for operation, body in requests
            ]))  # fmt: skip

        many = [document(number) for number in range(500)]
        sign = (
            "math.randomseed(os.time()) local n = math.random(1e9) request = function() n = n + 1 "
            'return wrk.format("POST", "/auth/{path}", nil, \'{{"email":"u\' .. n .. '
            '\'@example.com","password":"tangerine lamp 41"}}\') end'
        )
        self._parts: dict[str, Callable[[], Any]] = {
            "burn": calls("/postgres/rpc/burn"),
            "loops": calls("/postgres/rpc/spin"),
            "naps": calls("/postgres/rpc/nap", 64),
            "answers": _wrk(url, post, _in_turn([
                ("POST", "/postgres/rpc/huge", "{}"),
                ("GET", "/postgres/big?select=id,body,kind&limit=200000", ""),
            ]), 4),
            "point": documents(
                [("insertOne", {"doc": {"n": 6, "body": "abc"}}), ("find", FIND)], "heap"
            ),
            "unindexed": documents(list(UNINDEXED), "big"),
            "pipelines": documents([("aggregate", {"pipeline": p}) for p in PIPELINES], "big"),
            "bulk": documents([
                ("insertMany", {"docs": many}),
                ("updateMany", {"filter": {"n": {"$gte": 3}}, "update": {"$inc": {"kind": 1}}}),
                ("deleteMany", {"filter": {"n": {"$lt": 450}}}),
            ], "flow"),
            "spin": calls("/functions/spin"),
            "bombs": calls("/functions/bomb"),
            "chatter": calls("/functions/chatter"),
            "streams": calls("/functions/flood"),
            "signups": _wrk(url, post, sign.format(path="signup"), 32),
            "logins": _wrk(url, post, sign.format(path="login"), 32),
            "refused": _wrk(url, post, _in_turn([("GET", "/postgres/heap?id=eq.1", "")]), 256),
            "strangers": _wrk(url, {**post, "authorization": "Bearer x.y.z"},
                              _in_turn([("GET", "/postgres/heap?id=eq.1", ""),
                                        ("GET", "/auth/me", "")]), 64),
            "heads": _wrk(url, {**post, "x-much": "a" * 60_000},
                          _in_turn([("GET", "/postgres/heap?id=eq.1", "")])),
            "bodies": _wrk(url, post, (
                "local many = {} init = function() "
                "many[1] = wrk.format('POST', '/postgres/heap', nil, '[' .. "
                "string.rep('{\"body\":\"abcdefghij\"},', 45000) .. '{}]') "
                "many[2] = wrk.format('POST', '/postgres/heap', nil, '[' .. "
                "string.rep('{\"none\":1},', 700000) .. '{\"none\":1}]') "
                "wrk.headers['content-type'] = 'text/csv' "
                "many[3] = wrk.format('POST', '/postgres/heap', nil, 'none\\n' .. "
                "string.rep('1\\n', 500000)) end "
                "local n = 0 request = function() n = n + 1 return many[n % 3 + 1] end"
            ), 4),
            "reconnects": _wrk(url, {**post, "connection": "close"},
                               _in_turn([("GET", "/postgres/heap?id=eq.1", "")]), 64),
        }  # fmt: skip
        for kind in KINDS:
            self._parts.setdefault(kind, _helper(kind, told))

    @contextmanager
    def going(self, kinds: tuple[str, ...]) -> Iterator[None]:
        begun = [self._parts[kind]() for kind in kinds]
        processes = [process for process, _ in begun]
        try:
            time.sleep(SETTLE)
            yield
            for process in processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a load ended: {process.args}")
        finally:
            for process in processes:
                process.kill()
                process.wait()
