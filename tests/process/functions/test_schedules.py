"""Functions that run by themselves."""

from __future__ import annotations

import json
import time

import pytest

from tests.process.functions_node import Project
from tests.process.running import wait_until

TICK = """
let runs = 0;
Deno.serve((req: Request) => {
  const schedule = req.headers.get("x-ichibase-schedule");
  if (schedule === null) return Response.json({ runs });
  runs++;
  console.log(JSON.stringify({ schedule, method: req.method, url: req.url,
    role: req.headers.get("x-ichibase-role"), internal: req.headers.get("x-ichibase-internal") }));
  return runs === 2 ? new Response("not today", { status: 503 }) : new Response("done");
});
"""


@pytest.fixture(scope="module")
def clock(project):
    project.node.cli("projects", "create", "clock")
    made = Project(project.node, "clock")
    limits = {"schedules": 2, "schedule_seconds": 1}
    assert made.admin("PATCH", "", {"limits": limits})[0] == 200
    return made


def refusal(project, schedule):
    wanted = {"files": {"index.ts": TICK}, "schedule": schedule}
    status, told = project.admin("PUT", "/functions/tick", wanted)
    return status, told.get("code")


def actions(project):
    return [entry["action"] for entry in project.admin("GET", "/audit")[1]]


def test_a_function_runs_when_it_is_due_with_the_service_key(clock):
    told = clock.deploy("tick", TICK, schedule="every 1 s")
    assert told["schedule"] == ["every 1 s"]
    line = clock.logged('"schedule":"every 1 s"')
    seen = json.loads(line["text"])
    base = f"{clock.node.project('clock')['url']}/functions/tick"
    assert (seen["method"], seen["url"], seen["role"]) == ("POST", base, "service_role")
    assert seen["internal"] is None
    assert line["invocation"]
    failed = clock.logged("schedule 'every 1 s': the function answered 503: not today")
    assert failed["level"] == "error"
    [listed] = clock.admin("GET", "/functions")[1]["functions"]
    assert listed["schedule"] == ["every 1 s"]
    assert listed["last_run"]
    assert wait_until(
        lambda: clock.admin("GET", "/functions")[1]["functions"][0]["last_status"] == 200
    )

    # It wakes its project.
    clock.node.cli("projects", "sleep", "clock")
    assert wait_until(lambda: "project.wake" in actions(clock))
    assert wait_until(lambda: clock.admin("GET", "")[1]["state"] == "active")

    # Nobody from outside can pretend to be the clock.
    spoofed = {"x-ichibase-schedule": "every 1 s", "x-ichibase-internal": "guess"}
    _, body, _ = clock.call("tick", headers={**spoofed, "apikey": clock.service}, key=False)
    assert "runs" in json.loads(body)

    # Another version without a schedule ends it.
    clock.deploy("tick", TICK)
    time.sleep(1.2)
    before = len(clock.lines())
    time.sleep(1.5)
    assert len(clock.lines()) == before
    assert clock.admin("GET", "/functions")[1]["functions"][0]["schedule"] is None


def test_schedules_are_held_to_the_limits_of_the_tier(clock, project):
    assert refusal(clock, "every 0 s") == (400, "invalid_schedule")
    assert refusal(clock, "* * * *") == (400, "invalid_schedule")
    assert refusal(clock, ["@daily", "@hourly", "@weekly"]) == (409, "quota_exceeded")
    clock.deploy("tick", TICK, schedule=["@daily", "0 12 * * mon"])
    assert refusal(clock, ["@daily", "@hourly"])[0] == 201  # its own ones before do not count
    wanted = {"files": {"index.ts": TICK}, "schedule": "@daily"}
    assert clock.admin("PUT", "/functions/other", wanted)[1]["code"] == "quota_exceeded"
    limits = {"schedules": 2, "schedule_seconds": 300}
    assert clock.admin("PATCH", "", {"limits": limits})[0] == 200
    assert refusal(clock, "* * * * *") == (400, "invalid_schedule")
    assert refusal(clock, "*/5 * * * *")[0] == 201


def test_a_schedule_wakes_its_project(clock):
    limits = {"schedules": 2, "schedule_seconds": 1}
    assert clock.admin("PATCH", "", {"limits": limits})[0] == 200
    clock.deploy("tick", TICK, schedule="every 1 s")
    clock.logged('"schedule":"every 1 s"')
    assert clock.admin("POST", "/sleep", {})[0] == 200

    def woken():
        entries = clock.admin("GET", "/audit")[1]
        return [one["action"] for one in entries if one["action"].startswith("project.")][:2]

    assert wait_until(lambda: woken() == ["project.wake", "project.sleep"])
    clock.deploy("tick", TICK)


def test_the_tier_bounds_how_many_functions_there_are(clock):
    assert clock.admin("PATCH", "", {"limits": {"functions": 1}})[0] == 200
    other = {"files": {"index.ts": TICK}}
    status, told = clock.admin("PUT", "/functions/other", other)
    assert (status, told["code"]) == (409, "quota_exceeded")
    assert clock.admin("PUT", "/functions/tick", other)[0] == 201  # it is there already
    assert clock.admin("PATCH", "", {"limits": {"functions": 2}})[0] == 200
    assert clock.admin("PUT", "/functions/other", other)[0] == 201
