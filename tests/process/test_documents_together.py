"""Documents with the other services of a node: changes over sockets, decisions by a function."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import urllib.error
import urllib.request

import jwt
import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode
from tests.process.sockets import open_socket
from tests.timing import quickest, within

ANN = "11111111-1111-4111-8111-111111111111"
BOB = "22222222-2222-4222-8222-222222222222"
OWN = {"user_id": "${auth.uid}"}
RULES = {"version": 1, "collections": {"orders": {
    "read": {"filter": OWN}, "insert": {"set": OWN}, "update": {"filter": OWN},
    "delete": {"filter": OWN}}}}  # fmt: skip
REALTIME = {"collections": {"orders": {"enabled": True, "rule": OWN, "fields": {"deny": ["cost"]}}}}
POLICY = """
Deno.serve(async (request) => {
  const asked = await request.json();
  if (asked.collection === 'broken') throw new Error('no');
  if (asked.collection === 'odd') return new Response('[1]');
  if (!asked.user_id) return Response.json({ allow: false, reason: `not for ${asked.role}` });
  return Response.json({
    allow: true, merge_filter: { user_id: asked.user_id }, merge_doc: { user_id: asked.user_id },
  });
});
"""


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_DEFAULT_FLAVOR": "both"})
    try:
        running.start()
        running.known = running.project()
        running.cli("settings", "default", "set", "mongo", json.dumps({"rules": RULES}))
        running.cli("settings", "default", "set", "realtime", json.dumps(REALTIME))
        deadline = time.monotonic() + 180
        while call(running, "count", "orders", {}, key="service_key")[0] != 200:
            assert time.monotonic() < deadline, running.log.read_text()
            time.sleep(0.1)
        yield running
    finally:
        running.end()


def token(node, uid):
    now = int(time.time())
    claims = {"sub": uid, "role": "authenticated", "aud": "authenticated", "iat": now,
              "exp": now + 900, "session_id": "s"}  # fmt: skip
    kid = jwt.get_unverified_header(node.known["anon_key"].removeprefix("ich_pub_"))["kid"]
    return jwt.encode(claims, node.known["jwt_secret"], "HS256", headers={"kid": kid})


def call(node, operation, collection, body, uid=None, key="anon_key"):
    headers = {"apikey": node.known[key], "content-type": "application/json"}
    if uid:
        headers["authorization"] = f"Bearer {token(node, uid)}"
    request = urllib.request.Request(
        f"{node.url}/mongo/v1/{operation}/{collection}", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_sockets_see_what_their_user_may_read(node):
    """The same rule: Ann's socket tells of Ann's orders, with the fields she may see."""

    async def watch():
        sockets = {uid: await open_socket(node.url, token(node, uid)) for uid in (ANN, BOB)}
        for socket in sockets.values():
            socket.send(type="subscribe", ref="s", kind="mongo", collection="orders")
            while (frame := await socket.next())["type"] != "subscribed":
                assert frame["type"] != "error", frame

        async def write(*arguments):
            return await asyncio.to_thread(call, node, *arguments)

        async def change(uid):
            while (frame := await sockets[uid].next())["type"] != "change":
                pass
            return frame

        assert (await write("insertOne", "orders", {"doc": {"_id": 1, "cost": 5}}, ANN))[0] == 200
        frame = await change(ANN)
        assert (frame["event"], frame["collection"]) == ("insert", "orders")
        assert frame["record"] == {"_id": 1, "user_id": ANN}
        assert (await write("insertOne", "orders", {"doc": {"_id": 2}}, BOB))[0] == 200
        assert (await change(BOB))["record"]["_id"] == 2
        body = {"filter": {}, "update": {"$set": {"n": 1}}}
        assert (await write("updateMany", "orders", body, ANN))[1]["matched"] == 1
        frame = await change(ANN)
        assert (frame["event"], frame["record"]["n"], frame["record"]["_id"]) == ("update", 1, 1)
        assert (await write("deleteMany", "orders", {"filter": {}}, ANN))[1] == {"deleted": 1}
        frame = await change(ANN)
        assert (frame["event"], frame["old"]["_id"]) == ("delete", 1)
        await asyncio.sleep(0.3)
        for uid, socket in sockets.items():
            rest = [socket.frames.get_nowait()[1] for _ in range(socket.frames.qsize())]
            assert not [f for f in rest if f["type"] == "change"], (uid, rest)
            socket.close()

    asyncio.run(watch())


OWN = """
Deno.serve(async () => {
  const key = Deno.env.get("ICHIBASE_SERVICE_KEY")!;
  const call = async (op: string, body: unknown) => {
    const answer = await fetch(`${Deno.env.get("ICHIBASE_MONGO_URL")}/mongo/v1/${op}/own`, {
      method: "POST", headers: { apikey: key, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    return [answer.status, await answer.json()];
  };
  const inserted = await call("insertOne", { doc: { _id: "f", n: 1 } });
  return Response.json([inserted[0], await call("find", { filter: { _id: "f" } })]);
});
"""


def test_a_function_reaches_the_documents_of_its_project(node):
    project = Project(node)
    project.deploy("own", OWN)
    status, body, _ = project.call("own")
    assert status == 200, body
    inserted, (found, told) = json.loads(body)
    assert (inserted, found, told["docs"]) == (200, 200, [{"_id": "f", "n": 1}])


def test_a_function_decides(node):
    project = Project(node)
    project.deploy("_mongo_policy", POLICY)
    node.cli("settings", "default", "set", "mongo", json.dumps({"mode": "function"}))
    deadline = time.monotonic() + 180
    while call(node, "insertOne", "notes", {"doc": {"_id": "a"}}, ANN)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert call(node, "insertOne", "notes", {"doc": {"_id": "b", "user_id": ANN}}, BOB)[0] == 200
    docs = call(node, "find", "notes", {}, ANN)[1]["docs"]
    assert docs == [{"_id": "a", "user_id": ANN}]
    assert call(node, "count", "notes", {}, BOB)[1] == {"count": 1}
    status, told = call(node, "find", "notes", {})
    assert (status, told["code"], told["detail"]) == (403, "policy_denied", "not for anon")
    status, told = call(node, "find", "notes", {}, key="service_key")
    assert (status, told["detail"]) == (403, "not for service_role")
    body = {"filter": {"_id": "a"}, "update": {"$set": {"user_id": BOB}}}
    assert call(node, "updateOne", "notes", body, ANN)[1]["code"] == "policy_denied"
    ops = [{"op": "insertOne", "doc": {"_id": "c"}}, {"op": "deleteMany", "filter": {}}]
    done = call(node, "bulkWrite", "notes", {"ops": ops, "ordered": True}, ANN)[1]
    assert (done["inserted"], done["deleted"]) == (1, 2)
    assert call(node, "count", "notes", {}, BOB)[1] == {"count": 1}
    for collection in ("broken", "odd"):
        status, told = call(node, "find", collection, {}, ANN)
        assert (status, told["code"]) == (403, "policy_denied"), collection

    def took():
        times = []
        for _ in range(50):
            began = time.perf_counter()
            assert call(node, "count", "notes", {}, ANN)[0] == 200
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    assert within(quickest(took, 0.25), 0.25)
