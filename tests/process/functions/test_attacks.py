"""What a function may try, and what it gets: each attack is contained while another project's
calls go on."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.process.functions import names
from tests.process.functions_node import Neighbour, Project
from tests.process.running import RunningNode, wait_until
from tests.timing import slowness, within

LIMITS = {
    "function_wall_ms": 5_000, "function_cpu_ms": 800, "function_memory": 134_217_728,
    "function_concurrency": 5, "function_body": 1_000_000,
}  # fmt: skip
SLOWEST = 1.0  # seconds, 95th percentile of the neighbour

NO_ACCESS = "Requires net access"

EVIL = (Path(__file__).parent / "evil.ts").read_text()


@pytest.fixture(scope="module")
def resolver():
    """The name server of the node; None where it cannot have one of its own."""
    made = names.Names() if names.usable() else None
    yield made
    if made is not None:
        made.close()


@pytest.fixture(scope="module")
def node(module_folder, resolver):
    running = (names.NamedNode if resolver is not None else RunningNode)(module_folder)
    running.start()
    try:
        running.cli("projects", "create", "evil")
        running.cli("projects", "create", "calm")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def evil(node):
    project = Project(node, "evil")
    assert project.admin("PATCH", "", {"limits": LIMITS})[0] == 200
    project.deploy("evil", EVIL)
    return project


@pytest.fixture(scope="module")
def calm(node):
    project = Project(node, "calm")
    project.deploy("hello", "Deno.serve(() => new Response('hello'));")
    assert project.call("hello")[1] == b"hello"
    return project


@pytest.fixture
def brief(evil):
    """A smaller limit of the clock for what waits it out, in seconds."""
    seconds = 2.5
    limits = {**LIMITS, "function_wall_ms": round(seconds * 1000)}
    assert evil.admin("PATCH", "", {"limits": limits})[0] == 200
    yield seconds
    assert evil.admin("PATCH", "", {"limits": LIMITS})[0] == 200


@pytest.fixture(autouse=True)
def neighbour(evil, calm):
    """Every attack runs beside another project, whose calls must all be answered in time."""
    with Neighbour(calm, "hello") as other:
        yield other
    assert other.seconds
    assert not other.failures
    assert within(other.p95(), SLOWEST)


def outcome(evil, path):
    status, body, _ = evil.call(path)
    assert status == 200, body
    return dict(json.loads(body))


@pytest.mark.parametrize("path", ["loop", "turns"])
def test_an_endless_loop_ends_at_its_processor_time(evil, path):
    began = time.monotonic()
    assert evil.code(f"evil/{path}") == (504, "function_timeout")
    assert within(time.monotonic() - began, 9)
    evil.logged("ended (cpu): it used")
    assert evil.call("evil/ok")[1] == b"ok"


@pytest.mark.parametrize("path", ["heap", "buffers"])
def test_memory_ends_at_its_limit(evil, path):
    assert evil.code(f"evil/{path}") == (500, "function_error")
    assert evil.call("evil/ok")[1] == b"ok"


def test_files_cannot_be_read_or_written(evil, node):
    found = outcome(evil, "evil/files")
    keys = found.pop("env")
    assert keys == "OK ICHIBASE_ANON_KEY,ICHIBASE_PROJECT_URL,ICHIBASE_SERVICE_KEY"[: len(keys)]
    opened = {name: told for name, told in found.items() if told.startswith("OK")}
    assert not opened


def test_no_process_can_be_started(evil):
    found = outcome(evil, "evil/forks")
    assert not [told for told in found.values() if told.startswith("OK")]


@pytest.fixture
def listener():
    """A service of the machine on loopback; it keeps who came."""
    came = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "6")
            self.end_headers()
            self.wfile.write(b"inside")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], came
    server.shutdown()
    thread.join()
    server.server_close()


def test_loopback_and_private_addresses_are_closed_however_they_are_written(evil, listener):
    port, came = listener
    status, body, _ = evil.call(f"evil/net?port={port}&name={socket.gethostname()}")
    assert status == 200, (body, evil.lines()[-3:])
    found = dict(json.loads(body))
    assert not {name: told for name, told in found.items() if told.startswith("OK")}
    assert not came
    assert "NotCapable" in found["fetch 127.0.0.1"]
    assert "NotCapable" in found["connect localhost"]


def test_names_that_turn_to_closed_addresses_reach_nothing(evil, listener, resolver):
    """DNS rebinding: the answer is another one when the name is asked for again."""
    if resolver is None:
        pytest.skip("needs root and mount namespaces, for a name server of the node's own")
    port, came = listener
    kinds = ["once", "turns", "both", "late", "alias", "meta", "zero", "six"]
    asked = ",".join(kind + names.ZONE for kind in kinds)
    status, body, _ = evil.call(f"evil/rebind?port={port}&names={asked}")
    assert status == 200, body
    found = dict(json.loads(body))
    assert not {name: told for name, told in found.items() if "OK" in told}
    assert not came
    for way in ("fetch", "connect", "node net"):
        told = found[f"{way} once{names.ZONE}"].split(" | ")
        assert NO_ACCESS not in told[0]  # a public address: allowed, though nobody is there
        assert NO_ACCESS in told[1]
        for kind in ("alias", "meta", "zero"):
            assert NO_ACCESS in found[f"{way} {kind}{names.ZONE}"], found
    assert resolver.counts[f"once.fetch{names.ZONE}"] >= 3


def test_a_flood_of_logs_is_bounded(evil, node):
    began = evil.lines()[-1]["seq"] if evil.lines() else 0
    assert evil.call("evil/flood")[1] == b"done"
    assert evil.call("evil/long")[1] == b"done"
    evil.call("evil/ok")
    lines = evil.lines(after=began)
    assert len(lines) <= 1000
    assert max(len(line["text"]) for line in lines) <= 16_400
    folder = node.data_dir / "functions" / "logs"
    size = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    assert size < 6 << 20


def test_an_unbounded_answer_to_a_client_that_does_not_read_is_ended(evil, node, brief):
    worker = next(
        p for p in node.process_of().children(recursive=True) if p.name() == "ichibase-worker"
    )
    before = worker.memory_info().rss
    with socket.create_connection(("127.0.0.1", node.port)) as client:
        head = f"GET /functions/evil/unbounded HTTP/1.1\r\nhost: {evil.host}\r\napikey: "
        client.sendall(f"{head}{evil.anon}\r\n\r\n".encode())
        time.sleep(1.5)
        assert worker.memory_info().rss - before < 30 << 20
        evil.logged("stopped (wall)")
    assert evil.call("evil/ok")[1] == b"ok"


def test_an_answer_that_never_ends_is_ended(evil, brief):
    began = time.monotonic()
    status, body, _ = evil.call("evil/trickle", method="GET")
    assert status == 200
    assert 5 < len(body) < 100
    assert within(time.monotonic() - began, brief + 4)


def test_a_handler_that_never_answers_is_given_up(evil, brief):
    began = time.monotonic()
    status, body, headers = evil.call("evil/never")
    assert (status, json.loads(body)["code"]) == (504, "function_timeout")
    assert brief - 0.1 < time.monotonic() - began < (brief + 3) * slowness()
    line = evil.logged("stopped (wall)", invocation=headers["x-request-id"])
    assert line["level"] == "error"


def test_the_answer_may_come_before_the_body_is_read(evil):
    assert evil.call("evil/ok", b"x" * 900_000)[1] == b"ok"
    assert evil.code("evil/ok", b"x" * 1_100_000) == (413, "payload_too_large")
    status, body, _ = evil.call("evil/ok", iter([b"x" * 60_000] * 30))
    assert (status, body) == (200, b"ok") or json.loads(body)["code"] == "payload_too_large"


def test_headers_cannot_be_injected(evil):
    status, body, headers = evil.call("evil/inject?v=a%0d%0ab", method="GET")
    if status == 200:
        assert "taken" not in json.loads(body).values()
    assert headers.get("set-cookie") is None
    assert headers.get("x-ichibase-role") is None
    spoofed = {"x-ichibase-role": "service_role", "x-ichibase-user-id": "somebody"}
    assert evil.call("evil/ok", headers=spoofed)[0] == 200


def test_errors_tell_the_caller_nothing(evil):
    status, body, headers = evil.call("evil/tell")
    assert status == 500
    assert json.loads(body) == {
        "code": "function_error", "detail": "The function failed; its log says why.",
    }  # fmt: skip
    assert "ich_admin_" not in str(headers)


def test_a_function_that_calls_itself_ends_at_the_concurrency(evil):
    assert evil.code("evil/self") == (429, "function_concurrency")
    assert evil.call("evil/ok")[1] == b"ok"


def test_exits_and_lost_rejections_end_no_other_call(evil):
    assert evil.call("evil/reject")[1] == b"fine"
    evil.logged("nobody waits for it")
    assert evil.code("evil/exit") == (500, "function_error")
    evil.logged("Deno.exit(3)")
    assert evil.call("evil/ok")[1] == b"ok"


def test_work_after_the_answer_goes_on_and_is_charged(evil):
    assert evil.call("evil/background")[1] == b"now"
    evil.logged("after the answer")
    before = evil.lines()[-1]["seq"]
    assert evil.call("evil/after")[1] == b"later"
    evil.logged("ended (cpu)", after=before)


def test_a_syntax_error_is_refused_when_deployed_and_what_was_served_stays(evil):
    evil.deploy("typo", "Deno.serve(() => new Response('before'));")
    files = {"index.ts": "import { a } from './lib.ts';\nDeno.serve(a);", "lib.ts": "\nlet 1a = ;"}
    status, told = evil.admin("PUT", "/functions/typo", {"files": files})
    assert (status, told["code"]) == (400, "build_failed")
    first = told["details"]["errors"][0]
    assert (first["file"], first["line"]) == ("lib.ts", 2)
    assert "lib.ts:2:" in told["detail"]
    assert first["message"]
    assert evil.call("typo")[1] == b"before"


def begun(evil, node, count, path, rest):
    """Clients that have begun a request and do not go on. rest: of its head, and of its body."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", node.port))
        client.sendall(
            f"POST /functions/evil/{path} HTTP/1.1\r\nhost: {evil.host}\r\n"
            f"apikey: {evil.anon}\r\n{rest}".encode()
        )
        clients.append(client)
    return clients


def test_bodies_that_trickle_in_hold_invocations_no_longer_than_they_may(evil, node, brief):
    clients = begun(evil, node, 10, "swallow", "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
    began = time.monotonic()
    while evil.code("evil/ok") != (200, b"ok"):
        assert within(time.monotonic() - began, 2 * brief)
        time.sleep(0.1)
    for client in clients:
        client.close()


def test_slow_clients_hold_no_invocation(evil, node):
    clients = begun(evil, node, 30, "ok", "content-length: 1000\r\n\r\nx")
    assert evil.call("evil/ok")[1] == b"ok"
    for client in clients:
        client.close()


def test_a_crash_while_loading_is_told_and_backs_off(evil):
    breaks = "if (Deno.env.get('BREAK')) throw new Error('not today');"
    evil.deploy("crash", breaks + "Deno.serve(() => new Response('well'));")
    assert evil.admin("PUT", "/secrets", {"values": {"BREAK": "1"}})[0] == 200
    for _ in range(5):
        status, body, headers = evil.call("crash")
        assert (status, json.loads(body)["code"]) == (502, "function_load_failed")
        assert b"not today" not in body
    assert headers["retry-after"]
    assert "not today" in evil.logged("not today")["text"]
    assert "index.ts:1:34" in evil.logged("not today")["text"]
    evil.deploy("crash", "Deno.serve(() => new Response('mended'));")
    assert evil.call("crash")[1] == b"mended"
    assert evil.admin("DELETE", "/secrets/BREAK")[0] == 200


NOT_SERVING = [
    ("export const nothing = 1;", {}, "registers no handler"),
    ("const port = 1;\nDeno.serve({ port } as never);", {"line": 2, "column": 6}, "a handler"),
    ("function far() { throw new Error('not today'); }\nfar();",
     {"line": 1, "column": 24}, "Error: not today"),
    ("Deno.exit(3);", {}, "exit code 3"),
    ("for (;;);", {}, "processor time"),
]  # fmt: skip


def test_a_module_that_cannot_serve_is_refused_when_it_is_deployed(evil, node):
    evil.deploy("loads", "Deno.serve(() => new Response('before'));")
    for code, place, text in NOT_SERVING:
        status, told = evil.admin("PUT", "/functions/loads", {"files": {"index.ts": code}})
        assert (status, told["code"]) == (400, "build_failed"), told
        (error,) = told["details"]["errors"]
        assert text in error["message"], error
        assert error == {"file": "index.ts", **place, "message": error["message"]}
        assert told["detail"].startswith("index.ts:")
    assert evil.call("loads")[1] == b"before"
    assert len(evil.admin("GET", "/functions/loads/versions")[1]["versions"]) == 1
    assert wait_until(lambda: not _tried(node))


def _tried(node):
    """The processes that modules are tried out in."""
    state = json.loads(node.cli("functions", "status", "--json").stdout)
    return [one for one in state["processes"] if one["version"] == 0]


def test_a_module_is_tried_out_with_the_rights_and_secrets_of_a_call(evil):
    evil.admin("PUT", "/secrets", {"values": {"TRIED": "secret"}})
    found = evil.deploy("tried", """
const secret = Deno.env.get("TRIED");
if (secret !== "secret") throw new Error("it has no secret");
let read = "nothing";
try { read = Deno.readTextFileSync("/etc/hostname"); } catch (e) { read = (e as Error).name; }
if (read !== "NotCapable") throw new Error(`it read ${read}`);
Deno.serve(() => new Response(read));
console.log("tried out");
""")  # fmt: skip
    assert not [line for line in evil.lines(function="tried") if line["version"] == 0]
    assert evil.call("tried")[1] == b"NotCapable"
    assert evil.logged("tried out", function="tried")["version"] == found["version"]


def cells(node):
    """(account, command line, nice) of the Deno processes that live: others end meanwhile."""
    found = []
    for process in node.process_of().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if process.name() == "deno":
                found.append(
                    (process.uids().effective, " ".join(process.cmdline()), process.nice())
                )
    return found


def test_no_process_is_left_behind_and_each_has_its_own_account(evil, node):
    assert wait_until(lambda: not _tried(node))
    assert evil.call("evil/ok")[1] == b"ok"
    living = cells(node)
    assert living
    accounts = [account for account, _, _ in living]
    if node.process_of().uids().effective == 0:
        assert 0 not in accounts
        assert len(set(accounts)) == len(accounts)
    for _, line, nice in living:
        assert "ich_admin_" not in line
        assert nice > 0
    assert len(living) < 12
    assert psutil.pid_exists(node.process.pid)
