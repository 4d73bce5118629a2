"""Edge functions called by Supabase's published client, as the project's own client calls them, and
by curl."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from server.functions.confine import deno_binary
from tests.process.functions_node import Project

MIRROR = """
Deno.serve(async (req: Request) => {
  const url = new URL(req.url);
  switch (url.pathname.split("/")[3]) {
    case "text": return new Response("some text");
    case "bytes": return new Response(new Uint8Array([97, 98, 99]),
      { headers: { "content-type": "application/octet-stream" } });
    case "events": return new Response(ReadableStream.from(["data: 1\\n\\n", "data: 2\\n\\n"])
      .pipeThrough(new TextEncoderStream()), { headers: { "content-type": "text/event-stream" } });
    case "throw": throw new Error("inside");
    case "teapot": return Response.json({ code: "own_code", detail: "short" }, { status: 418 });
    case "empty": return new Response(null, { status: 204 });
    case "slow": await new Promise((r) => setTimeout(r, 2000)); return new Response("late");
  }
  const type = req.headers.get("content-type");
  const form: Record<string, string> = {};
  let text = "";
  if (type?.startsWith("multipart/form-data")) {
    for (const [name, value] of await req.formData()) {
      form[name] = typeof value === "string" ? value : `${value.name}:${await value.text()}`;
    }
  } else text = await req.text();
  return Response.json({
    method: req.method, url: req.url, type, text, form, own: req.headers.get("x-own"),
    role: req.headers.get("x-ichibase-role"), user: req.headers.get("x-ichibase-user-id"),
  });
});
"""


@pytest.fixture(scope="module")
def project(node):
    made = Project(node)
    made.deploy("mirror", MIRROR)
    return made


def test_every_call_gives_what_the_clients_expect(modules, project):
    token = project.user_token("functions@example.com")
    done = subprocess.run(
        ["node", "functions.mjs", f"{project.node.url}/functions", project.anon, token],
        cwd=modules, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr[-3000:]


def test_the_published_client(project):
    folder = os.environ.get("ICHIBASE_CLIENT")
    if not folder:
        pytest.skip("ICHIBASE_CLIENT names no checkout of the published client")
    gateway = Path(folder) / "examples" / "nextjs" / "edge_functions" / "files.ts"
    project.deploy("files", gateway.read_text())
    done = subprocess.run(
        [str(deno_binary()), "run", "--quiet", "--allow-all", "--unstable-sloppy-imports",
         str(Path(__file__).parent / "functions_ichibase.ts"), str(Path(folder) / "src"),
         project.node.url, project.anon],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr[-3000:]


def test_curl(project):
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")

    def curl(path, *arguments):
        url = f"{project.node.url}/functions/{path}"
        done = subprocess.run(
            ["curl", "-sS", "-w", "\n%{http_code}", url, *arguments],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    key = ["-H", f"apikey: {project.anon}"]
    status, body = curl("mirror", *key, "-d", '{"name":"Ann"}')
    told = json.loads(body)
    assert (status, told["text"]) == (200, '{"name":"Ann"}')
    assert told["type"] == "application/x-www-form-urlencoded"
    bearer = ["-H", f"Authorization: Bearer {project.service}"]
    assert json.loads(curl("mirror", *bearer, "-X", "DELETE")[1])["role"] == "service_role"
    assert json.loads(curl("mirror", *key, "-F", "a=b")[1])["form"] == {"a": "b"}
    assert curl("mirror/text", *key, "--http1.0")[1] == "some text"
    assert curl("mirror/events", *key, "-N")[1] == "data: 1\n\ndata: 2\n\n"
    assert curl("mirror/empty", *key, "-I")[0] == 204
    assert curl("mirror") == (401, curl("mirror")[1])
    assert json.loads(curl("nothing", *key)[1])["code"] == "function_not_found"
