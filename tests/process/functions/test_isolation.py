"""Functions on machines that allow less: without bubblewrap, and on a node that is not root."""

from __future__ import annotations

import json
import os

import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode
from tests.process.test_node import interpreter_for_all

PROBE = """
const tried = async (work: () => unknown) => {
  try { await work(); return "open"; } catch (e) { return (e as Error).name; }
};
const kept: Uint8Array[] = [];
Deno.serve(async (req: Request) => {
  const path = new URL(req.url).pathname.split("/")[3];
  if (path === "loop") for (;;);
  if (path === "buffers") for (;;) kept.push(new Uint8Array(16 << 20).fill(7));
  const six = () => Deno.connect({ hostname: "2606:4700:4700::1111", port: 53 });
  return Response.json({
    read: await tried(() => Deno.readTextFileSync("/etc/passwd")),
    write: await tried(() => Deno.writeTextFileSync("/tmp/x", "x")),
    run: await tried(() => new Deno.Command("/bin/true").outputSync()),
    loopback: await tried(() => Deno.connect({ hostname: "127.0.0.1", port: 22 })),
    six: await tried(six),
    own: await fetch(Deno.env.get("ICHIBASE_PROJECT_URL") + "/healthz").then((r) => r.status),
  });
});
"""


def check(node, project):
    limits = {"function_cpu_ms": 2_000, "function_memory": 134_217_728}
    assert project.admin("PATCH", "", {"limits": limits})[0] == 200
    project.deploy("probe", PROBE)
    status, body, _ = project.call("probe")
    assert status == 200, body
    found = json.loads(body)
    assert found.pop("own") == 200
    assert "open" not in found.values(), found
    assert project.code("probe/loop") == (504, "function_timeout")
    assert project.code("probe/buffers") == (500, "function_error")
    assert project.call("probe")[0] == 200
    told = json.loads(node.cli("functions", "status", "--json").stdout)
    return told


def test_without_bubblewrap_the_rest_holds_and_the_log_says_so(folder):
    running = RunningNode(folder, environment={"PATH": "/usr/sbin:/sbin"})
    running.start()
    try:
        told = check(running, Project(running))
        assert any(line.startswith("NOT IN FORCE: no namespaces") for line in told["isolation"])
        assert "isolation: NOT IN FORCE: no namespaces" in running.log.read_text()
        cell = told["processes"][0]
        status = (f"/proc/{cell['pid']}/status", "NoNewPrivs:\t1", "Seccomp:\t2")
        with open(status[0]) as file:
            text = file.read()
        assert status[1] in text
        assert status[2] in text
        if os.geteuid() == 0:
            assert cell["uid"] > 1_000_000_000
    finally:
        running.stop()


def test_on_a_node_that_is_not_root_the_rest_holds(folder):
    if os.geteuid() != 0:
        pytest.skip("already the case in every other test")
    python, path = interpreter_for_all()
    home = folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    running = RunningNode(home, account=(65534, 65534), python=python)
    running.environment["PYTHONPATH"] = path
    running.start()
    try:
        told = check(running, Project(running))
        assert "NOT IN FORCE: processes run under the node's own account" in str(told["isolation"])
    finally:
        running.stop()
