"""Functions of a node with two HTTP workers and a registry of its own: what is imported is frozen
when it is deployed, and the limits are the project's, not a worker's."""

from __future__ import annotations

import json
import shutil
import threading

import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode, wait_until
from tests.registry import Registry, usual

LIMIT = 4
IMPORTS = """
import twice from "npm:twice@^1.0.0";
import { greet } from "jsr:@test/greet@1";
import { shout } from "%s/plain/shout.ts";
console.log("loaded");
const later = async (name: string) => {
  try { await import(name); return "open"; } catch (e) { return (e as Error).message; }
};
Deno.serve(async (req) => Response.json({
  said: shout(greet("Ann")), number: twice(21), version: twice.version,
  later: await Promise.all(
    ["npm:twice@1", "jsr:@test/greet@1", "%s/plain/shout.ts", "npm:other"].map(later)),
}));
"""
HOLD = """
const waiting: (() => void)[] = [];
Deno.serve(async (req) => {
  if (req.url.endsWith("/go")) for (const go of waiting.splice(0)) go();
  else if (req.url.endsWith("/count")) return new Response(`${waiting.length}`);
  else await new Promise<void>((go) => waiting.push(go));
  return new Response("done");
});
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    made = Registry(tmp_path_factory.mktemp("registry"), usual())
    publish(made, "1.0.0")
    made.jsr("@test/greet", "1.0.0", "export const greet = (name: string): string => `hi ${name}`;")
    made.files["/plain/shout.ts"] = b"export const shout = (a: string): string => a.toUpperCase();"
    yield made
    made.close()


def publish(registry, version):
    code = f"module.exports = (n) => n * 2; module.exports.version = '{version}';"
    types = "declare function twice(n: number): number; declare namespace twice {"
    types += " const version: string } export = twice;"
    files = {"index.js": code.encode(), "index.d.ts": types.encode()}
    registry.npm("twice", version, files, main="index.js", types="index.d.ts")


@pytest.fixture(scope="module")
def project(module_folder, registry):
    running = RunningNode(
        module_folder, environment={"ICHIBASE_WORKERS": "2", **registry.environment}
    )
    running.start()
    try:
        made = Project(running)
        assert made.admin("PATCH", "", {"limits": {"function_concurrency": LIMIT}})[0] == 200
        yield made
    finally:
        running.stop()


def test_imports_are_resolved_when_deployed_and_frozen(project, registry):
    text = IMPORTS % (registry.url, registry.url)
    project.deploy("frozen", text)
    fetched = len(registry.asked)
    assert {"/npm/twice", "/@test/greet/1.0.0/mod.ts", "/plain/shout.ts"} <= set(registry.asked)
    told = json.loads(project.call("frozen")[1])
    assert (told["said"], told["number"], told["version"]) == ("HI ANN", 42, "1.0.0")
    assert len(told["later"]) == 4
    assert "open" not in told["later"]

    # A newer version is there; another process is started from what was frozen, without a cache.
    publish(registry, "1.1.0")
    shutil.rmtree(project.node.data_dir / "functions" / "cache")
    assert project.admin("PUT", "/secrets", {"values": {"A": "1"}})[0] == 200
    assert wait_until(lambda: project.call("frozen")[0] == 200 and len(
        [line for line in project.lines() if line["text"] == "loaded"]) == 2)  # fmt: skip
    assert json.loads(project.call("frozen")[1])["version"] == "1.0.0"
    assert len(registry.asked) == fetched

    # The next deployment keeps to the same versions, unless it is told to take newer ones.
    project.deploy("frozen", text + "\n")
    assert json.loads(project.call("frozen")[1])["version"] == "1.0.0"
    project.deploy("frozen", text, update=True)
    assert json.loads(project.call("frozen")[1])["version"] == "1.1.0"


def test_the_limit_of_calls_at_once_holds_over_all_workers(project):
    """Whichever worker a call comes to: as many as the tier has run, the rest are refused."""
    project.deploy("hold", HOLD)
    seen, threads = [], []

    def call():
        seen.append(project.code("hold", headers={"x-request-id": "the-same-for-all"}))

    def call_more(count):
        new = [threading.Thread(target=call) for _ in range(count)]
        threads.extend(new)
        for thread in new:
            thread.start()

    def running():
        status, body, _ = project.call("hold/count")
        return int(body) if status == 200 else None  # None when it is itself one too many

    def full():
        """Whether as many run as may. A call may have been refused while the workers were settling
        who has the last one; another one is not."""
        waiting = sum(thread.is_alive() for thread in threads)
        call_more(LIMIT - waiting)
        return waiting == LIMIT and running() is None and len(threads) - len(seen) == LIMIT

    assert running() == 0
    for _ in range(2):
        seen.clear()
        threads.clear()
        call_more(4 * LIMIT)
        assert wait_until(full)
        assert set(seen) == {(429, "function_concurrency")}
        headers = {"authorization": f"Bearer {project.token}"}
        raw = project.node.get("/admin/v1/functions", headers, admin=True)[1]
        told = json.loads(raw)["processes"]
        assert [one["leases"] for one in told if one["function"] == "hold"] == [2]
        refused = len(seen)
        for _ in range(3):
            assert project.code("hold/go") == (429, "function_concurrency")
        assert len(seen) == refused
        project.admin("PATCH", "", {"limits": {"function_concurrency": LIMIT + 2}})
        assert wait_until(lambda: running() == LIMIT)
        assert project.call("hold/go")[1] == b"done"
        for thread in threads:
            thread.join()
        assert seen.count((200, b"done")) == LIMIT
        project.admin("PATCH", "", {"limits": {"function_concurrency": LIMIT}})
        assert wait_until(lambda: running() == 0)
