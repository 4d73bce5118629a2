"""Two nodes on one PostgreSQL server: what clients of one send, those of the other receive."""

from __future__ import annotations

import json
import time
import urllib.request
from urllib.parse import quote

import pytest

from server.realtime.nodes import DEAD_SECONDS
from tests.process.running import RunningNode, wait_until
from tests.server.realtime.world import Talker
from tests.timing import quickest, within

RULES = {
    "channels": {"room:*": {"subscribe": True, "send": True, "presence": True}},
    "tables": {"notes": {"rule": {"public": True}}},
}


@pytest.fixture(scope="module")
def module_nodes(postgres, module_folder):
    """Two nodes that know nothing of each other but the address of their database."""
    # by the socket: the embedded server takes the logins of feeds by no other way
    place = f"host={quote(str(postgres.socket_dir), safe='')}&port={postgres.port}"
    address = f"postgresql://postgres:{postgres.password}@/postgres?{place}"
    made = []
    try:
        for name in ("a", "b"):
            folder = module_folder / name
            folder.mkdir(mode=0o755)
            made.append(RunningNode(folder, environment={"ICHIBASE_DATABASE_URL": address}))
            made[-1].start()
        first = made[0]
        first.sql("create table notes (id int primary key, public bool)")
        first.cli("settings", "default", "set", "realtime", json.dumps(RULES))
        yield made
    finally:
        for node in made:
            node.end()


@pytest.fixture
def nodes(module_nodes):
    """Both run, whatever the test before has left of them."""
    for node in module_nodes:
        if node.process.poll() is not None:
            node.start()
    return module_nodes


class Sockets:
    """Clients of either node, by its own port for sockets."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.open = []

    def to(self, node, who=None):
        who = who or node.project()["anon_key"]
        made = Talker.connect("127.0.0.1", node.realtime_port, f"/realtime?token={who}", ())
        self.open.append(made)
        return made

    def joined(self, node, channel, who=None, **more):
        made = self.to(node, who)
        answer = made.ask(type="subscribe", ref="1", kind="broadcast", channel=channel, **more)
        assert answer["type"] == "subscribed", answer
        return made


@pytest.fixture
def sockets(nodes):
    made = Sockets(nodes)
    yield made
    for client in made.open:
        client.close()


def post(node, path, body, bearer=None, apikey=None):
    headers = {"content-type": "application/json"}
    if bearer:
        headers["authorization"] = f"Bearer {bearer}"
    if apikey:
        headers["apikey"] = apikey
    request = urllib.request.Request(
        node.url + path, json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, json.loads(answer.read())


def drain(client):
    """Reads what has come, up to the answer of a ping."""
    client.say(type="ping")
    found = []
    while (frame := client.hear())["type"] != "pong":
        found.append(frame)
    return found


def meet(one, two, channel):
    """Waits until either hears the other: each node has told that it has sockets of the project."""
    for sender, receiver in ((one, two), (two, one)):
        for _ in range(100):
            sender.say(type="broadcast", channel=channel, event="probe", payload=None)
            time.sleep(0.05)
            if drain(receiver):
                break
        else:
            raise AssertionError("nothing crosses")
    time.sleep(0.2)
    drain(one), drain(two)


def test_messages_cross(nodes, sockets):
    a, b = nodes
    one, two = sockets.joined(a, "room:1"), sockets.joined(b, "room:1")
    meet(one, two, "room:1")
    payload = {"n": 1.10, "big": 123456789012345678901234567890, "text": "ü\x00" * 10}
    raw = json.dumps(payload)
    one.send(1, b'{"type":"broadcast","channel":"room:1","event":"x","payload":%s}' % raw.encode())
    frame = two.hear()
    assert (frame["event"], frame["from"]) == ("x", "")
    assert json.loads(raw)["n"] == frame["payload"]["n"]
    # Too long for a notice, between two that are not: the order stays.
    long = "y" * 30_000
    for number, text in enumerate(("short", long, "short", long, "last")):
        two.say(type="broadcast", channel="room:1", event=str(number), payload=text)
    assert [one.hear()["event"] for _ in range(5)] == ["0", "1", "2", "3", "4"]
    two.silent()  # its own do not come back to it
    keys = a.project()
    body = {"channel": "room:1", "event": "p", "payload": [1]}
    assert post(a, "/realtime/publish", body, keys["service_key"]) == (202, {"delivered": 2})
    assert one.hear()["event"] == two.hear()["event"] == "p"
    one.close()
    assert wait_until(
        lambda: post(a, "/realtime/publish", body, keys["service_key"])[1] == {"delivered": 1}
    )


def test_rows_and_messages_from_sql_are_told_once_by_each(nodes, sockets):
    a, b = nodes
    one, two = sockets.joined(a, "room:9"), sockets.joined(b, "room:9")
    for client in (one, two):
        client.say(type="subscribe", ref="t", kind="postgres", table="notes")
        answer = client.hear(20)  # its node makes its own slot first
        assert answer["type"] == "subscribed", answer
    meet(one, two, "room:9")
    b.sql("select realtime.publish('room:9', 'e', '1'); insert into notes values (1, true)")
    seen = [[client.hear(), client.hear()] for client in (one, two)]
    assert seen[0] == seen[1]  # positions too
    assert {frame["type"] for frame in seen[0]} == {"broadcast", "change"}
    for client in (one, two):
        client.silent()


def test_presence_crosses(nodes, sockets):
    a, b = nodes
    one = sockets.joined(a, "room:5", presence=True, state={"who": "one"})
    state = one.hear()
    (key,) = state["presences"]
    two = sockets.joined(b, "room:5", presence=True, state={"who": "two"})
    entries = dict(two.hear()["presences"])
    if len(entries) == 1:  # it was the node's first socket: the others come a moment later
        entries |= two.hear()["joins"]
    assert {value["state"]["who"] for value in entries.values()} == {"one", "two"}
    diff = one.hear()
    assert [value["state"] for value in diff["joins"].values()] == [{"who": "two"}]
    one.say(type="presence", channel="room:5", state={"who": "one", "x": "z" * 4000})
    assert one.hear()["joins"][key]["state"]["x"]
    diff = two.hear()
    assert diff["joins"][key]["state"]["x"] == "z" * 4000
    assert diff["leaves"][key]["state"] == {"who": "one"}
    three = sockets.joined(b, "room:5", presence=True)
    assert len(three.hear()["presences"]) == 3
    for client in (one, two):
        assert len(client.hear()["joins"]) == 1
    one.close()
    for client in (two, three):
        assert list(client.hear()["leaves"]) == [key]


def test_signing_out_cuts_the_sockets_of_the_other_node(nodes, sockets):
    a, b = nodes
    keys = a.project()
    person = {"email": "two@example.com", "password": "tangerine lamp 41"}
    post(a, "/auth/signup", person, apikey=keys["anon_key"])

    def cut():
        """The seconds until the socket of a session is, after it signed out."""
        _, session = post(a, "/auth/login", person, apikey=keys["anon_key"])
        token = session["access_token"]
        far = sockets.to(b, token)
        far.silent()
        began = time.monotonic()
        refresh = {"refresh_token": session["refresh_token"]}
        assert post(a, "/auth/logout", refresh, token, keys["anon_key"])[0] == 200
        assert far.hear() == {"type": "closing", "reason": "token_revoked", "code": 4001}
        return time.monotonic() - began

    assert quickest(cut, 1) < 1


def present(sockets, node, channel, count, **state):
    """A client who is present, and the keys of all that are once there are so many."""
    made = sockets.joined(node, channel, presence=True, state=state)
    found = dict(made.hear()["presences"])
    while len(found) < count:
        found |= made.hear()["joins"]
    assert len(found) == count
    return made, set(found)


def test_a_realtime_process_that_is_killed_and_comes_back(nodes, sockets):
    a, b = nodes
    for count in (1, 2):
        present(sockets, a, "room:6", count)
    stays, keys = present(sockets, b, "room:6", 3)
    (dead,) = [p for p in a.process_of().children(recursive=True) if p.name() == "ichibase-rt"]
    dead.kill()
    left = set()
    while len(left) < 2:
        left |= set(stays.hear(60)["leaves"])
    assert left < keys
    deadline = time.monotonic() + 60
    while True:
        try:
            back, again = present(sockets, a, "room:6", 2, back=True)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert again - left == (keys - left) | (again - keys)
    assert next(iter(stays.hear()["joins"].values()))["state"] == {"back": True}
    back.say(type="broadcast", channel="room:6", event="x", payload=1)
    assert stays.hear()["event"] == "x"


def test_a_node_that_is_killed_leaves_the_presence(nodes, sockets):
    a, b = nodes
    for count in (1, 2, 3):
        present(sockets, a, "room:7", count)
    stays, keys = present(sockets, b, "room:7", 4)
    began = time.monotonic()
    a.kill()
    left = set()
    while len(left) < 3:
        left |= set(stays.hear(DEAD_SECONDS + 60)["leaves"])
    assert left < keys
    assert within(time.monotonic() - began, DEAD_SECONDS + 4)
    present(sockets, b, "room:7", 2)
