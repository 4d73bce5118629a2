"""What a function may be written as, who may call it, and how its answers travel."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

import psutil
import pytest

from server.functions.sockets import BINARY, CLOSE, TEXT, Reader, encode
from tests.process.running import wait_until
from tests.server.functions.test_shapes import SHAPES, TYPED_DEFAULT
from tests.timing import quickest, within

PARTS = """
let poured = 0;
Deno.serve(async (req: Request, info) => {
  const url = new URL(req.url);
  switch (url.pathname.split("/")[3]) {
    case "echo":
      return new Response(req.body, { headers: { "x-type": req.headers.get("content-type") ?? "" } });
    case "trickle": {
      let n = 0;
      return new Response(new ReadableStream({
        async pull(c) {
          if (n++ === 5) return c.close();
          await new Promise((r) => setTimeout(r, 100));
          c.enqueue(new TextEncoder().encode(`${n}\\n`));
        },
      }), { headers: { "content-type": "text/event-stream" } });
    }
    case "sip": { // reads a piece now and the rest later
      const reader = req.body!.getReader();
      let size = (await reader.read()).value!.length;
      await new Promise((r) => setTimeout(r, 1500));
      for (let part; !(part = await reader.read()).done;) size += part.value.length;
      return new Response(`${size}`);
    }
    case "pour":
      return new Response(new ReadableStream({
        pull(c) { c.enqueue(new Uint8Array(1 << 16)); poured++; },
      }));
    case "poured":
      return new Response(`${poured << 16}`);
    case "large":
      return new Response(new Uint8Array(8_000_000).fill(97));
    case "wait":
      console.log("a client waits");
      req.signal.addEventListener("abort", () => console.log("the client has left"));
      await new Promise((r) => setTimeout(r, 20_000));
      return new Response("late");
    case "heavy":
      return new Response("x", { headers: { "x-heavy": "y".repeat(1_000_000) } });
    case "empty":
      return new Response(null, { status: 204 });
    case "headers":
      return Response.json(Object.fromEntries(req.headers));
    case "socket": {
      const protocol = url.searchParams.get("protocol");
      const offered = req.headers.get("sec-websocket-protocol");
      const { socket, response } = Deno.upgradeWebSocket(req, protocol ? { protocol } : {});
      socket.onopen = () => socket.send(offered ?? "welcome");
      socket.onmessage = (e) => {
        if (e.data === "bye") socket.close();
        else if (e.data === "enough") socket.close(4001, "enough said");
        else if (e.data === "exit") Deno.exit(1);
        else socket.send(e.data);
      };
      return response;
    }
    case "own": {
      const base = Deno.env.get("ICHIBASE_PROJECT_URL");
      const headers = { apikey: Deno.env.get("ICHIBASE_SERVICE_KEY")! };
      const answer = await fetch(`${base}/functions/parts/echo`, {
        method: "POST", headers: { ...headers, "x-forwarded-for": "1.2.3.4" }, body: "to myself",
      });
      return new Response(`${answer.url === base + "/functions/parts/echo"} ${await answer.text()}`);
    }
    default: {
      const copy = new Request(req);
      return Response.json({
        url: req.url, copied: copy.url, cloned: req.clone().url, method: req.method,
        headers: Object.fromEntries(req.headers), remote: info.remoteAddr,
        env: [Deno.env.get("A_SECRET") ?? null, (await import("node:process")).default.env.A_SECRET ?? null],
      }, { headers: { "access-control-allow-origin": "*", "x-own": "1", "set-cookie": "a=b" } });
    }
  }
});
"""  # noqa: E501


@pytest.fixture(scope="module")
def parts(project):
    project.deploy("parts", PARTS)
    return project


def test_every_shape_of_handler_passes_the_check_of_types(project):
    """What each of them does is in tests/server/functions/test_shapes.py."""
    calls = [shape for shape in SHAPES.values() if "export" not in shape]
    parts = [f"const shape{n} = async () => {{ {shape} }};" for n, shape in enumerate(calls)]
    used = ", ".join(f"shape{n}" for n in range(len(calls)))
    project.deploy("shapes", "\n".join([*parts, f"export const all = [{used}];", TYPED_DEFAULT]))
    assert project.call("shapes")[:2] == (200, b"1")


def test_the_auth_switch(project):
    text = PARTS.replace('"parts/', '"switch/')
    bearer = {"authorization": f"Bearer {project.user_token('ann@example.com')}"}
    broken = {"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x"}
    project.deploy("switch", text, auth="user")
    assert project.code("switch") == (401, "missing_token")
    assert project.code("switch", key=False) == (401, "missing_api_key")
    assert project.code("switch", headers=broken)[0] == 401
    status, body, _ = project.call("switch", headers=bearer)
    told = json.loads(body)["headers"]
    assert (status, told["x-ichibase-role"]) == (200, "authenticated")
    assert told["x-ichibase-user-id"]
    project.deploy("switch", text, auth="none")
    spoofed = {"x-ichibase-role": "service_role", "x-ichibase-user-id": "somebody", **broken}
    status, body, _ = project.call("switch", key=False, headers=spoofed)
    assert status == 200
    told = json.loads(body)["headers"]
    assert not [name for name in told if name.startswith("x-ichibase-")]
    assert told["authorization"] == broken["authorization"]
    assert project.code("_mongo_policy") == (404, "function_not_found")
    assert project.code("..%2fswitch") == (404, "function_not_found")


def test_the_request_arrives_as_it_was_sent(parts):
    given = {"content-type": "text/x-y", "x-own": "a", "cookie": "a=1; b=2", "te": "trailers",
             "x-forwarded-for": "6.6.6.6", "x-request-id": "mine-1"}  # fmt: skip
    _, body, headers = parts.call("parts/a%2Fb/%C3%A4?x=%20&y", b"body", "PATCH", given)
    told = json.loads(body)
    base = f"http://{parts.host}/functions/parts"
    assert told["url"] == told["copied"] == told["cloned"]
    assert told["url"] in (f"{base}/a%2Fb/%C3%A4?x=%20&y", f"{base}/a/b/%C3%A4?x=%20&y")
    assert told["method"] == "PATCH"
    seen = told["headers"]
    assert seen["x-request-id"] == headers["x-request-id"] == "mine-1"
    assert seen["x-forwarded-for"] == told["remote"]["hostname"]
    assert (seen["content-type"], seen["cookie"], seen["apikey"]) == (
        "text/x-y", "a=1; b=2", parts.anon)  # fmt: skip
    assert "te" not in seen
    assert headers["x-own"] == "1"
    assert headers["set-cookie"] == "a=b"
    assert headers["access-control-allow-origin"] is None
    assert parts.call("parts/empty")[:2] == (204, b"")
    assert parts.code("parts/heavy") == (502, "function_error")
    assert parts.call("parts/large", method="HEAD")[:2] == (200, b"")


def test_header_values_beyond_ascii_pass_as_they_are(parts):
    cookie, city = "name=Zoë%41; b=2".encode(), "São Paulo".encode("latin-1")

    def call(head, body=b""):
        with socket.create_connection(("127.0.0.1", parts.node.port), timeout=60) as client:
            start = f"POST /functions/parts/headers?é HTTP/1.1\r\nhost: {parts.host}\r\n".encode()
            key = f"apikey: {parts.anon}\r\nconnection: close\r\n".encode()
            client.sendall(start + key + head + b"\r\n" + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        return answer.split()[1], answer.rpartition(b"\r\n\r\n")[2]

    plain = b"x-share: 5%%\r\ncookie: %b\r\nx-city: %b\r\n" % (cookie, city)
    chunked = b"transfer-encoding: chunked\r\n"
    for status, body in (call(plain), call(plain + chunked, b"2\r\nhi\r\n0\r\n\r\n")):
        assert status == b"200", body
        headers = json.loads(body)
        assert headers["cookie"].encode("latin-1") == cookie
        assert headers["x-city"].encode("latin-1") == city
        assert headers["x-share"] == "5%"
        assert not [name for name in headers if name.startswith("x-encoded")]
    for name in (b"authorization", b"x-forwarded-for", b"content-type"):
        status, body = call(name + b": \xc3\xa9\r\n")
        assert (status, json.loads(body)["code"]) == (b"400", "bad_request"), name


def test_bodies_pass_whole_both_ways(parts):
    raw = os.urandom(5_000_000)
    assert parts.call("parts/echo", raw)[1] == raw
    pieces = [os.urandom(70_000) for _ in range(40)]
    assert parts.call("parts/echo", iter(pieces))[1] == b"".join(pieces)
    status, body, headers = parts.call("parts/large")
    assert (status, len(body), headers["content-length"]) == (200, 8_000_000, "8000000")


def test_an_answer_that_does_not_wait_for_the_body(parts):
    """On one connection: the client sends all of each body before it reads."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", parts.node.port, timeout=60)
    ) as connection:
        for size in (8_000_000, 10, 20_000_000, 0):
            given = {"host": parts.host, "apikey": parts.anon}
            connection.request("POST", "/functions/parts/poured", bytes(size), given)
            answer = connection.getresponse()
            assert (answer.status, answer.read().isdigit()) == (200, True), size


def test_answers_stream(parts):
    for _ in range(3):  # a client that is not given the processor finds pieces together
        with socket.create_connection(("127.0.0.1", parts.node.port)) as client:
            head = f"GET /functions/parts/trickle HTTP/1.1\r\nhost: {parts.host}\r\napikey: "
            client.sendall(f"{head}{parts.anon}\r\nconnection: close\r\n\r\n".encode())
            arrived, text = [], b""
            while data := client.recv(65536):
                text += data
                arrived.append(time.monotonic())
        assert text.count(b"\n") >= 5
        if len(arrived) >= 5:
            break
    assert len(arrived) >= 5
    assert arrived[-1] - arrived[0] > 0.3


def memory(project):
    """Bytes of the process that serves HTTP."""
    return sum(
        process.memory_info().rss
        for process in project.node.process_of().children(recursive=True)
        if process.name() == "ichibase-worker"
    )


def test_a_function_that_reads_slowly_slows_its_client(project, parts):
    size = 120 << 20
    parts.admin("PATCH", "", {"limits": {"function_body": 2 * size}})
    before = memory(project)
    with socket.create_connection(("127.0.0.1", parts.node.port)) as client:
        head = f"POST /functions/parts/sip HTTP/1.1\r\nhost: {parts.host}\r\napikey: {parts.anon}"
        client.sendall(f"{head}\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n".encode())
        client.settimeout(0.8)
        sent, piece = 0, bytes(1 << 20)
        try:
            while sent < size:
                sent += client.send(piece)
        except TimeoutError:
            pass
        assert sent < 40 << 20  # what the kernel keeps on its way
        assert memory(project) - before < 20 << 20
        client.settimeout(60)
        while sent < size:
            sent += client.send(piece[: size - sent])
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.endswith(f"{size}".encode())


def test_a_client_that_reads_slowly_slows_its_function(project, parts):
    before = memory(project)
    with socket.create_connection(("127.0.0.1", parts.node.port)) as client:
        head = f"GET /functions/parts/pour HTTP/1.1\r\nhost: {parts.host}\r\napikey: {parts.anon}"
        client.sendall(f"{head}\r\n\r\n".encode())
        client.recv(1000)

        def stands_still():
            poured = int(parts.call("parts/poured")[1])
            assert poured < 40 << 20
            time.sleep(0.5)
            return poured > 0 and int(parts.call("parts/poured")[1]) == poured

        assert wait_until(stands_still)
        assert memory(project) - before < 20 << 20


def test_a_client_that_leaves_aborts_the_signal(parts):
    with socket.create_connection(("127.0.0.1", parts.node.port)) as client:
        head = f"GET /functions/parts/wait HTTP/1.1\r\nhost: {parts.host}\r\napikey: "
        client.sendall(f"{head}{parts.anon}\r\n\r\n".encode())
        parts.logged("a client waits")
    parts.logged("the client has left")


def test_a_function_reaches_its_own_project(parts):
    assert parts.call("parts/own")[1] == b"true to myself"


REACH = """
const tried = async (hostname: string, port = 80) => {
  const late = new Promise<Deno.Conn>((_, no) => setTimeout(() => no(new Error("late")), 500));
  try {
    await Promise.race([Deno.connect({ hostname, port }), late]);
    return "allowed";
  } catch (e) { return (e as Error).name === "NotCapable" ? "closed" : "allowed"; }
};
Deno.serve(async () => Response.json({
  listed: await tried("11.77.53.1"), port: await tried("11.77.53.2", 8080),
  other: await tried("11.77.53.3"), wrong: await tried("11.77.53.2", 80),
  inside: await tried("127.0.0.1"), name: await tried("example.org", 443),
  mail: await tried("11.77.53.1", 25),
  own: (await fetch(Deno.env.get("ICHIBASE_PROJECT_URL") + "/healthz")).status,
}));
"""


def test_a_list_of_hosts_narrows_what_a_function_reaches(project):
    hosts = ["11.77.53.1", "11.77.53.2:8080", "127.0.0.1"]
    project.deploy("reach", REACH, outbound=hosts)
    assert json.loads(project.call("reach")[1]) == {
        "listed": "allowed", "port": "allowed", "other": "closed", "wrong": "closed",
        "inside": "closed", "name": "closed", "mail": "closed", "own": 200,
    }  # fmt: skip
    project.deploy("reach", REACH, outbound=[])
    told = json.loads(project.call("reach")[1])
    assert set(told.values()) == {"closed", 200}
    files = {"files": {"index.ts": REACH}}
    for host in ("http://a.b", "a b", "a.b:99999", "", "10.0.0.0/8"):
        status, told = project.admin("PUT", "/functions/reach", {**files, "outbound": [host]})
        assert (status, told["code"]) == (400, "invalid_outbound")


def test_secrets_arrive_and_are_not_shown(parts):
    assert parts.admin("PUT", "/secrets", {"values": {"A_SECRET": "xyzzy"}})[0] == 200
    assert wait_until(lambda: json.loads(parts.call("parts")[1])["env"] == ["xyzzy", "xyzzy"])
    assert "xyzzy" not in json.dumps(parts.admin("GET", "/secrets"))
    for name, value in (("ICHIBASE_X", "1"), ("1A", "x"), ("A", "\x00"), ("B", "x" * 50_000),
                        ("ICHIBASE_REDIS_URL", "http://x")):  # fmt: skip
        assert parts.admin("PUT", "/secrets", {"values": {name: value}})[1]["code"] == (
            "invalid_secret"
        )
    redis = {"ICHIBASE_REDIS_URL": "rediss://:xyzzy@redis.example.com:6379"}
    assert parts.admin("PUT", "/secrets", {"values": redis})[0] == 200
    for process in parts.node.process_of().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            assert "xyzzy" not in " ".join(process.cmdline())
    data = parts.node.data_dir
    for path in data.rglob("*"):
        if path.is_file() and "pgdata" not in path.parts:
            assert b"xyzzy" not in path.read_bytes(), path
    rows = parts.node.cli("functions", "secrets", "list").stdout
    assert "A_SECRET" in rows
    assert "xyzzy" not in rows


class Client:
    """A WebSocket client of the tests."""

    def __init__(self, project, path, **headers):
        self.socket = socket.create_connection(("127.0.0.1", project.node.port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /functions/{path} HTTP/1.1", f"host: {project.host}", "upgrade: websocket",
                 "connection: Upgrade", "sec-websocket-version: 13", f"sec-websocket-key: {key}",
                 *(f"{name}: {value}" for name, value in headers.items())]  # fmt: skip
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.socket.recv(1)
            if not piece:
                break
            head += piece
        self.head = head.decode()
        self.status = int(head.split()[1])
        accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        assert self.status != 101 or base64.b64encode(accept) in head
        self.reader = Reader()
        self.waiting = []

    def send(self, kind, data):
        self.socket.sendall(encode(kind, data))

    def receive(self):
        while not self.waiting:
            data = self.socket.recv(65536)
            if not data:
                return None
            self.waiting += self.reader.feed(data)
        return self.waiting.pop(0)


def test_sockets_are_relayed(parts):
    refused = Client(parts, "parts/socket")
    assert refused.status == 401
    refused.socket.close()
    refused = Client(parts, "parts/empty", apikey=parts.anon)
    assert refused.status == 502
    refused.socket.close()
    client = Client(parts, f"parts/socket?token={parts.anon}")
    assert client.status == 101
    assert client.receive() == (TEXT, b"welcome")
    for kind, data in ((TEXT, "grüße".encode()), (BINARY, os.urandom(200_000)), (TEXT, b"")):
        client.send(kind, data)
        assert client.receive() == (kind, data)
    client.send(TEXT, b"bye")
    assert client.receive() in (None, (CLOSE, b""), (CLOSE, b"\x03\xe8"))
    client.socket.close()


def test_subprotocols_and_close_codes_pass(parts):
    offer = {"apikey": parts.anon, "sec-websocket-protocol": "chat.v2, chat.v1"}

    def opened(path, **headers):
        client = Client(parts, path, **{**offer, **headers})
        if client.status != 101:
            client.socket.close()
            return client.status
        assert client.receive() == (TEXT, b"chat.v2, chat.v1")
        return client

    for wanted in ("chat.v1", "chat.v2"):
        client = opened(f"parts/socket?protocol={wanted}")
        lines = client.head.lower().split("\r\n")
        assert lines.count(f"sec-websocket-protocol: {wanted}") == 1
        client.send(TEXT, b"enough")
        assert client.receive() == (CLOSE, b"\x0f\xa1enough said")
        client.send(CLOSE, b"\x0f\xa1")
        assert client.receive() is None
        client.socket.close()
    client = opened("parts/socket")  # the function takes none of them
    assert "sec-websocket-protocol" not in client.head.lower()
    client.send(TEXT, b"exit")
    assert client.receive() == (CLOSE, b"\x03\xf3")  # 1011: it ended without a word
    client.socket.close()
    assert opened("parts/socket?protocol=other") == 500  # Deno refuses what was not offered
    for _ in range(20):  # each gets its own, at the same time
        clients = [opened(f"parts/socket?protocol=chat.v{n}") for n in (1, 2)]
        for number, client in enumerate(clients, 1):
            assert f"sec-websocket-protocol: chat.v{number}\r\n" in client.head.lower()
            client.socket.close()


# Says "three" only where it is held as in production.
SERVED = """
console.log("at work");
let said = "three";
try { Deno.readTextFileSync("/etc/passwd"); said = "it reads"; } catch { /* as it should */ }
try { await Deno.connect({ hostname: "127.0.0.1", port: 22 }); said = "it connects"; } catch (e) {
  if ((e as Error).name !== "NotCapable") said = (e as Error).name;
}
Deno.serve(() => new Response(said));
"""


def test_the_command_line(project, tmp_path):
    node = project.node
    run = ["functions"]
    folder = tmp_path / "functions"
    there = ["--dir", str(folder)]
    assert "wrote" in node.cli(*run, "new", "greet", *there).stdout
    assert "deployed greet version 1" in node.cli(*run, "deploy", "greet", *there).stdout
    said = node.cli(*run, "invoke", "greet", "-d", '{"name":"Ann"}').stdout
    assert json.loads(said) == {"message": "Hello, Ann!"}
    source = folder / "greet" / "index.ts"
    source.write_text("const x: number = 'y';\nDeno.serve(() => new Response(x + ''));\n")
    refused = node.cli(*run, "deploy", "greet", *there, ok=False)
    assert refused.returncode == 1
    assert "greet: index.ts:1:7: Type 'string' is not assignable to type 'number'" in refused.stderr
    (folder / "_shared").mkdir()
    (folder / "_shared" / "two.ts").write_text("export const two = 'two';")
    source.write_text("import { two } from '../_shared/two.ts';\nconsole.log('at work'); "
                      "Deno.serve(() => new Response(two));\n")  # fmt: skip
    (folder / "greet" / "index.ts~").write_text("an editor's copy")
    refused = node.cli(*run, "new", "_shared2", *there, ok=False)
    assert "is no name of a function" in refused.stderr
    watching = subprocess.Popen(
        **node.command(*run, "serve", *there), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert wait_until(lambda: project.call("greet")[1] == b"two")
        source.write_text(SERVED)
        assert wait_until(lambda: project.call("greet")[1] == b"three")
        time.sleep(1.0)
    finally:
        watching.terminate()
        output = watching.communicate(timeout=60)[0]
    assert "/functions/greet serves version 3" in output
    assert "at work" in output
    kept = json.loads(node.cli(*run, "versions", "greet", "--json").stdout)
    assert [version["version"] for version in kept] == [3, 2, 1]
    assert "serving version 1" in node.cli(*run, "rollback", "greet", "--version", "1").stdout
    assert wait_until(lambda: b"Hello" in project.call("greet", b"{}")[1])
    assert "greet" in node.cli(*run, "list").stdout
    node.cli(*run, "secrets", "set", "ONE=1", "TWO=two words")
    node.cli(*run, "secrets", "set", "--env-file", "-", input="# a\nexport THREE='3'\n")
    names = json.loads(node.cli(*run, "secrets", "list", "--json").stdout)
    assert {"ONE", "TWO", "THREE"} <= {name["name"] for name in names}
    node.cli(*run, "secrets", "unset", "ONE")
    refused = node.cli(*run, "secrets", "unset", "ONE", ok=False)
    assert "secret_not_found" in refused.stderr
    assert "at work" in node.cli(*run, "logs", "greet").stdout
    assert "isolation" in node.cli(*run, "status").stdout
    node.cli(*run, "delete", "greet", "--yes")
    assert project.code("greet") == (404, "function_not_found")


def test_a_call_that_a_dead_process_has_not_read_goes_to_another(parts):
    """Between the end of a process and the word of it, calls of every kind come to it."""
    calm = """
      Deno.serve(async (req) => {
        if (req.url.endsWith("/exit")) Deno.exit(3);
        return new Response(await req.text());
      });"""
    parts.deploy("mortal", calm)
    assert parts.call("mortal", b"x")[1] == b"x"
    stop, wrong, answered = threading.Event(), [], []

    def calling(method, body):
        while not stop.is_set():
            status, found, _ = parts.call("mortal", body, method)
            answered.append(1)
            if (status, found) != (200, body or b""):
                wrong.append((method, status, found))

    def alive():
        told = json.loads(parts.node.cli("functions", "status", "--json").stdout)["processes"]
        return [p["pid"] for p in told if p["function"] == "mortal" and p["state"] == "ready"]

    kinds = [("GET", None), ("POST", b"small"), ("POST", b"x" * 200_000)]
    threads = [threading.Thread(target=calling, args=kind) for kind in kinds[:2]]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            assert wait_until(alive)
            before = alive()
            for pid in before:
                os.kill(pid, signal.SIGSTOP)  # what comes now is not read
            time.sleep(0.1)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda before=before: set(alive()) - set(before))
            here = len(answered)
            assert wait_until(lambda here=here: len(answered) > here + 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    parts.deploy("mortal", calm + "// its past is forgotten")
    for method, body in kinds:  # one that did read it is not given another
        assert parts.code("mortal/exit", body, method) == (500, "function_error")
    ends = [line for line in parts.lines(function="mortal") if "Deno.exit(3)" in line["text"]]
    assert len(ends) == len(kinds)


def test_a_call_from_inside_is_quick_and_meets_the_function(parts):
    """As the document gateway calls `_mongo_policy`."""
    from server.base.functions import Functions

    parts.deploy("_mongo_policy", """
      Deno.serve(async (req) => Response.json({ allow: (await req.json()).op === "find" }));
    """)  # fmt: skip
    functions = Functions(parts.node.data_dir)

    async def measure():
        project_id = await id_of(parts)

        class Limits:
            function_wall_ms, function_cpu_ms, function_memory = 5_000, 2_000, 134_217_728
            function_concurrency, function_bundle, functions, cpu_weight = 5, 1 << 20, 10, 100

        class Asking:
            limits = Limits
            id = project_id
            slug, url, flavor = "default", parts.node.url, "postgres"
            anon_key, service_key = parts.anon, parts.service
            settings: dict = {}

        answer = await functions.call_internal(Asking, "_mongo_policy", b'{"op":"find"}')
        assert json.loads(answer) == {"allow": True}
        times = []
        for _ in range(200):
            began = time.perf_counter()
            await functions.call_internal(Asking, "_mongo_policy", b'{"op":"x"}')
            times.append(time.perf_counter() - began)
        await functions.stop()
        return sorted(times)[len(times) // 2]

    # a millisecond and less on a quiet machine
    assert within(quickest(lambda: asyncio.run(measure()), 0.005), 0.005)


async def id_of(project):
    import psycopg

    control = json.loads((project.node.data_dir / "run" / "node.json").read_text())
    async with await psycopg.AsyncConnection.connect(control["config"]["control_dsn"]) as database:
        rows = await database.execute("select id from projects where slug = %s", (project.name,))
        return (await rows.fetchone())[0]
