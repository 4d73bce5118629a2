"""Edge functions of a running node: deployed on the admin port, called over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import psycopg
import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode, wait_until

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


class Admin:
    """The admin port and the functions of a node."""

    def __init__(self, node):
        self.node = node
        self.token = (node.data_dir / "secrets" / "admin_token").read_text().strip()
        project = node.project()
        self.anon, self.service = project["anon_key"], project["service_key"]

    def send(self, method, path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.node.admin_port}/admin/v1/projects/default/{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {self.token}"}, method=method,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def deploy(self, name, text, **more):
        files = text if isinstance(text, dict) else {"index.ts": text}
        status, told = self.send("PUT", f"functions/{name}", {"files": files, **more})
        assert status == 201, told
        return told

    def call(self, path, body=None, method=None, headers=None, key=True):
        """(status, body, headers) of a call."""
        given = {"apikey": self.anon} if key else {}
        request = urllib.request.Request(
            f"{self.node.url}/functions/{path}", body, {**given, **(headers or {})},
            method=method or "POST",
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@pytest.fixture(scope="module")
def functions(module_folder):
    running = RunningNode(module_folder)
    running.start()
    try:
        yield Admin(running)
    finally:
        running.stop()


def test_a_function_is_deployed_called_and_replaced(functions):
    assert functions.call("hello")[0] == 404
    assert functions.deploy("hello", HELLO)["version"] == 1
    status, body, _ = functions.call("hello/a%20b/c?x=1&y=%2F", b"some text")
    assert status == 200
    answer = json.loads(body)
    assert answer == {
        "method": "POST", "path": "/functions/hello/a%20b/c", "query": "?x=1&y=%2F",
        "body": "some text", "role": "anon", "user": None, "project": functions.node.url,
    }  # fmt: skip
    assert functions.call("hello", key=False)[0] == 401
    assert (
        functions.deploy("hello", "export default { fetch: () => new Response('two') }")["version"]
        == 2
    )
    assert functions.call("hello")[1] == b"two"
    assert functions.send("POST", "functions/hello/rollback", {})[1]["version"] == 1
    assert json.loads(functions.call("hello")[1])["method"] == "POST"
    assert functions.send("PUT", "secrets", {"values": {"GREETING": "good day"}})[0] == 200
    deadline = time.monotonic() + 5
    while json.loads(functions.call("hello")[1]).get("secret") != "good day":
        assert time.monotonic() < deadline
    assert "good day" not in json.dumps(functions.send("GET", "secrets")[1])
    lines = functions.send("GET", "function-logs?function=hello")[1]["lines"]
    assert lines[0]["text"] == "called /functions/hello/a%20b/c"
    assert lines[0]["invocation"]


def test_a_fault_in_the_sources_is_refused_with_its_place(functions):
    status, told = functions.send(
        "PUT", "functions/bad", {"files": {"index.ts": "const a: number = 'x';\nDeno.serve(a);"}}
    )
    assert (status, told["code"]) == (400, "build_failed"), told
    assert "details" in told, told
    first = told["details"]["errors"][0]
    assert (first["file"], first["line"], first["code"]) == ("index.ts", 1, "TS2322")


def test_an_uncaught_error_is_logged_with_its_place_and_not_told(functions):
    functions.deploy(
        "thrower",
        {
            "lib.ts": "export interface X { a: number }\n\nexport function boom(x: X): never {\n"
            "  throw new Error('the secret is ' + x.a);\n}\n",
            "index.ts": "import { boom } from './lib.ts';\nDeno.serve(() => boom({ a: 42 }));\n",
        },
    )
    status, body, headers = functions.call("thrower")
    assert status == 500
    assert json.loads(body)["code"] == "function_error"
    assert b"42" not in body
    identity = headers["x-request-id"]
    lines = functions.send("GET", f"function-logs?invocation={identity}")[1]["lines"]
    assert "the secret is 42" in lines[0]["text"]
    assert "lib.ts:4:9" in lines[0]["text"]


def test_of_a_project_that_is_gone_nothing_stays(functions):
    node = functions.node
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
