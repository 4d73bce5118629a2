"""Edge functions of a running node: deployed on the admin port, called over HTTP."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

from tests.process.functions_node import Project
from tests.process.running import wait_until

HELLO = """
Deno.serve(async (req: Request) => {
  const url = new URL(req.url);
  console.log("called", url.pathname);
  return Response.json({
    method: req.method, path: url.pathname, query: url.search, body: await req.text(),
    role: req.headers.get("x-ichibase-role"), user: req.headers.get("x-ichibase-user-id"),
    project: Deno.env.get("ICHIBASE_PROJECT_URL"), secret: Deno.env.get("GREETING"),
  });
});
"""


def test_a_function_is_deployed_called_and_replaced(project):
    assert project.call("hello")[0] == 404
    assert project.deploy("hello", HELLO)["version"] == 1
    status, body, _ = project.call("hello/a%20b/c?x=1&y=%2F", b"some text")
    assert status == 200
    answer = json.loads(body)
    assert answer == {
        "method": "POST", "path": "/functions/hello/a%20b/c", "query": "?x=1&y=%2F",
        "body": "some text", "role": "anon", "user": None, "project": project.node.url,
    }  # fmt: skip
    assert project.call("hello", key=False)[0] == 401
    assert (
        project.deploy("hello", "export default { fetch: () => new Response('two') }")["version"]
        == 2
    )
    assert project.call("hello")[1] == b"two"
    assert project.admin("POST", "/functions/hello/rollback", {})[1]["version"] == 1
    assert json.loads(project.call("hello")[1])["method"] == "POST"
    assert project.admin("PUT", "/secrets", {"values": {"GREETING": "good day"}})[0] == 200
    deadline = time.monotonic() + 60
    while json.loads(project.call("hello")[1]).get("secret") != "good day":
        assert time.monotonic() < deadline
    assert "good day" not in json.dumps(project.admin("GET", "/secrets")[1])
    lines = project.admin("GET", "/function-logs?function=hello")[1]["lines"]
    assert lines[0]["text"] == "called /functions/hello/a%20b/c"
    assert lines[0]["invocation"]


def test_a_fault_in_the_sources_is_refused_with_its_place(project):
    status, told = project.admin(
        "PUT", "/functions/bad", {"files": {"index.ts": "const a: number = 'x';\nDeno.serve(a);"}}
    )
    assert (status, told["code"]) == (400, "build_failed"), told
    assert "details" in told, told
    first = told["details"]["errors"][0]
    assert (first["file"], first["line"], first["code"]) == ("index.ts", 1, "TS2322")


def test_an_uncaught_error_is_logged_with_its_place_and_not_told(project):
    project.deploy(
        "thrower",
        {
            "lib.ts": "export interface X { a: number }\n\nexport function boom(x: X): never {\n"
            "  throw new Error('the secret is ' + x.a);\n}\n",
            "index.ts": "import { boom } from './lib.ts';\nDeno.serve(() => boom({ a: 42 }));\n",
        },
    )
    status, body, headers = project.call("thrower")
    assert status == 500
    assert json.loads(body)["code"] == "function_error"
    assert b"42" not in body
    identity = headers["x-request-id"]
    lines = project.admin("GET", f"/function-logs?invocation={identity}")[1]["lines"]
    assert "the secret is 42" in lines[0]["text"]
    assert "lib.ts:4:9" in lines[0]["text"]
    project.deploy(
        "thrower",
        """
      class Late { go() { throw new TypeError("late", { cause: new Error("the root") }); } }
      Deno.serve(() => {
        console.error(new Error("shown"));
        setTimeout((late: Late) => late.go(), 1, new Late());
        return new Response();
      });""",
    )
    status, _, headers = project.call("thrower")
    identity = headers["x-request-id"]
    assert status == 200
    assert project.logged("[cause]: Error: the root", invocation=identity)
    texts = [line["text"] for line in project.lines(invocation=identity)]
    assert "index.ts:2:" in texts[1]
    assert not [text for text in texts if "boot.js" in text or "ext:" in text]


def test_lines_belong_to_the_invocation_that_wrote_them_across_what_it_awaits(project):
    project.deploy(
        "apart",
        """
      import { AsyncLocalStorage } from "node:async_hooks";
      const own = new AsyncLocalStorage<string>();
      const waiting: (() => void)[] = [];
      Deno.serve((request) => own.run(new URL(request.url).search, async () => {
        const text = own.getStore();
        console.log("began " + text);
        if (waiting.push(() => {}) < 2) await new Promise<void>((done) => waiting[0] = done);
        else waiting[0]();
        await new Promise((done) => setTimeout(done, 5));
        await request.text();
        queueMicrotask(() => console.log("ended " + own.getStore()));
        return new Response(text);
      }));""",
    )
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(project.call, f"apart?{n}") for n in (1, 2)]
    for number, call in enumerate(calls, 1):
        status, body, headers = call.result()
        assert (status, body) == (200, f"?{number}".encode())
        identity = headers["x-request-id"]
        assert project.logged("ended", invocation=identity)
        texts = [line["text"] for line in project.lines(invocation=identity)]
        assert texts == [f"began ?{number}", f"ended ?{number}"]


def test_globals_that_load_late_can_be_replaced_and_are_found(project):
    project.deploy(
        "globals",
        """
      const names = ["setTimeout", "setInterval", "WebSocket"];
      const seen = names.map((name) => name in globalThis && Object.hasOwn(globalThis, name));
      const scope = globalThis as unknown as Record<string, unknown>;
      const native = setTimeout;
      scope.setTimeout = () => 7;
      const faked = [setTimeout(() => {}, 1), native.name, setInterval.name];
      scope.setTimeout = native;
      scope.WebSocket = class Own {};
      const own = (scope.WebSocket as { name: string }).name;
      Deno.serve(async () => {
        await new Promise((done) => setTimeout(done, 1));
        return Response.json([seen, faked, own]);
      });""",
    )
    status, body, _ = project.call("globals")
    assert status == 200, body
    assert json.loads(body) == [[True] * 3, [7, "setTimeout", "setInterval"], "Own"]


def test_each_function_has_its_metrics(project):
    project.deploy("counted", "Deno.serve((r) => { if (r.method === 'PUT') throw 1; "
                   "const b = performance.now(); "
                   "for (let n = 0; performance.now() < b + 60 || n < 2e6; n++); "
                   "return new Response(); });")  # fmt: skip
    statuses = [project.call("counted", method=method)[0] for method in ("POST", "POST", "PUT")]
    assert statuses == [200, 200, 500]
    labels = 'project="default",function="counted"'
    wanted = {
        f'ichibase_function_calls_total{{{labels},outcome="ok"}}': 2,
        f'ichibase_function_calls_total{{{labels},outcome="failed"}}': 1,
        f"ichibase_function_seconds_total{{{labels}}}": 0.12,
        f"ichibase_function_cpu_seconds_total{{{labels}}}": 0.02,
        f"ichibase_function_memory_bytes{{{labels}}}": 1_000_000,
    }  # fmt: skip

    def told():
        headers = {"authorization": f"Bearer {project.token}"}
        text = project.node.get("/metrics", headers, admin=True)[1].decode()
        found = dict(line.rpartition(" ")[::2] for line in text.splitlines() if line[:1] != "#")
        return {name: float(found.get(name, 0)) for name in wanted}

    if not wait_until(lambda: all(told()[name] >= least for name, least in wanted.items())):
        raise AssertionError(told())
    project.deploy("counted", "Deno.serve(() => { for (;;); });")
    # On a busy machine it may take long to get that much of a processor.
    limits = {"function_cpu_ms": 300, "function_wall_ms": 55_000}
    assert project.admin("PATCH", "", {"limits": limits})[0] == 200
    assert project.code("counted") == (504, "function_timeout")
    project.admin("PATCH", "", {"limits": {}})
    wanted[f'ichibase_function_ends_total{{{labels},reason="cpu"}}'] = 1
    assert wait_until(lambda: list(told().values())[-1] >= 1)


def test_of_a_project_that_is_gone_nothing_stays(project):
    node = project.node
    node.cli("projects", "create", "brief")
    brief = Project(node, "brief")
    brief.deploy("hello", "console.log('up'); Deno.serve(() => new Response('hello'));")
    assert brief.call("hello")[1] == b"hello"
    brief.logged("up")
    control = json.loads((node.data_dir / "run" / "node.json").read_text())["config"]
    with psycopg.connect(control["control_dsn"], autocommit=True) as database:
        query = "select id from projects where slug = 'brief'"
        identity = database.execute(query).fetchone()[0]
        logs = node.data_dir / "functions" / "logs" / identity
        assert logs.exists()
        database.execute("delete from projects where id = %s", (identity,))

    def left():
        told = json.loads(node.cli("functions", "status", "--json").stdout)["processes"]
        return logs.exists() or any(one["project"] == "brief" for one in told)

    assert wait_until(lambda: not left())
    assert not (node.data_dir / "functions" / "cache" / identity).exists()
