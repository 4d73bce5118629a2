"""Who may connect, for how long, and what a connection may cost."""

import asyncio
import socket
import time

import msgspec
import pytest

from ichicore.live.change import Change
from server.base.limits import DEFAULT_TIERS
from server.realtime import pace
from tests.oracle.websocket import CLOSE, TEXT, frame
from tests.process.running import wait_until
from tests.server.realtime.world import SECRET, key, project, token

OTHER = "another-secret-of-another-project-entirely"
RULES = {
    "channels": {"*": {"subscribe": True, "send": True, "presence": True}},
    "tables": {"t": {"rule": {"user_id": "$auth.uid"}}},
}


@pytest.fixture
def one(world):
    return world(
        project(SECRET, RULES, cors=["https://app.example", "http://localhost:*"]),
        project(OTHER, RULES, slug="other", id="p2"),
    )


def refused(one, who=None, **how):
    with pytest.raises(ConnectionRefusedError) as error:
        one.connect(who, **how)
    return error.value.args[0]


def error(client):
    """The next error frame."""
    while (found := client.hear())["type"] != "error":
        pass
    return found


# opening


def test_the_token_is_needed_and_must_be_good(one):
    assert refused(one, path="/realtime") == 401
    assert refused(one, path="/realtime?token=") == 401
    assert refused(one, "nonsense") == 401
    assert refused(one, token("u1", secret=OTHER)) == 401
    assert refused(one, key(secret=OTHER)) == 401
    assert refused(one, key(slug="other")) == 401
    assert refused(one, key().removeprefix("ich_pub_")) == 401
    assert refused(one, key("service_role").replace("ich_admin_", "ich_pub_")) == 401
    assert refused(one, "x" * 9_000) == 401
    assert refused(one, token("u1", role="service_role")) == 401
    one.connect(key())
    one.connect(key("service_role"))
    one.connect(token("u1"))
    one.connect(path=f"/realtime?a=1&token={token('u1').replace('.', '%2E')}&b")


def test_projects_are_told_apart_by_host(one):
    assert refused(one, slug="nope") == 404
    assert refused(one, token("u1"), slug="other") == 401
    other = one.connect(token("u1", secret=OTHER), slug="other")
    mine = one.connect(token("u1"))
    for client in (other, mine):
        assert client.ask(type="subscribe", ref="1", kind="broadcast", channel="room")
        assert client.ask(type="subscribe", ref="2", kind="postgres", table="t")
    assert one.publish("room", project="p2") == 1
    one.change(Change("postgres", "public.t", "INSERT", record={"user_id": "u1"}), project="p2")
    assert [other.hear()["type"] for _ in range(2)] == ["broadcast", "change"]
    mine.say(type="broadcast", channel="room", event="x")
    mine.silent()
    other.silent()


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True), ("https://app.example", True), ("http://localhost:3000", True),
        ("https://evil.example", False), ("https://app.example.evil.example", False),
        ("null", False), ("", False), ("https://app.example:8443", False),
    ],
)  # fmt: skip
def test_pages_of_unlisted_origins_are_refused(one, origin, allowed):
    headers = () if origin is None else (("Origin", origin),)
    if allowed:
        one.connect(headers=headers)
    else:
        assert refused(one, headers=headers) == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Connection", "keep-alive, Upgrade")], 101),  # Firefox
        ([("connection", "UPGRADE"), ("upgrade", "WebSocket")], 101),
        ([("Upgrade", None)], 426), ([("Connection", None)], 426),
        ([("Connection", "close")], 426), ([("Upgrade", "h2c")], 426),
        ([("Sec-WebSocket-Version", "8")], 426), ([("Sec-WebSocket-Version", None)], 426),
        ([("Sec-WebSocket-Key", None)], 400), ([("Sec-WebSocket-Key", "short")], 400),
        ([("Sec-WebSocket-Key", "ä")], 400), ([("Host", None)], 400), ([("Host", "a b")], 400),
        ([("Host", "localhost"), ("Host", "localhost")], 400),
        ([("Content-Length", "5")], 400), ([("Transfer-Encoding", "chunked")], 400),
        ([("Bad Name", "x")], 101), ([(" folded", "x")], 400), ([("X" * 17_000, "x")], 431),
        ([("Sec-WebSocket-Extensions", "permessage-deflate")], 101),
        ([("Sec-WebSocket-Protocol", "chat")], 101),
    ],
)  # fmt: skip
def test_upgrade_headers(one, headers, status):
    if status == 101:
        client = one.connect(headers=headers)
        client.silent()
    else:
        assert refused(one, headers=headers) == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /nowhere HTTP/1.1", 404), ("GET /realtime/publish HTTP/1.1", 404),
        ("POST /realtime HTTP/1.1", 405), ("GET /realtime", 400), ("", 400),
        ("GET /realtime HTTP/2", 400), ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz HTTP/1.0", 200), ("GET  /realtime HTTP/1.1", 400),
    ],
)  # fmt: skip
def test_other_requests(one, line, status):
    with socket.create_connection(("127.0.0.1", one.port)) as sock:
        sock.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while more := sock.recv(4096):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == status
    assert msgspec.json.decode(body)


def test_the_tier_limits_the_sockets(world):
    limits = msgspec.structs.replace(DEFAULT_TIERS["free"], realtime_connections=2)
    one = world(project(SECRET, RULES, limits=limits))
    first = one.connect()
    one.connect()
    assert refused(one) == 429
    first.send(CLOSE, b"\x03\xe8")
    assert first.hear() == ("close", 1000)
    one.connect()


def test_sockets_that_open_too_fast_wait_and_are_refused(world):
    one = world(project(SECRET, RULES, tier="free"))
    one.connect()

    def hasten():
        """As if so many had been opened that the next one's turn comes in 0.3 seconds."""
        one.process.paces._pace("openings", "p1").next = (
            one.process.paces.clock() + pace.OPENINGS / pace.AHEAD + 0.3
        )

    one.call(hasten)
    began = time.monotonic()
    one.connect().silent()
    assert time.monotonic() - began > 0.2
    one.call(lambda: one.process.paces._pace("openings", "p1").delay(0.0, 1.0, 1.0, count=10**9))
    assert refused(one) == 429


def test_a_socket_wakes_its_project_and_waits_for_that(world):
    asleep = project(SECRET, RULES, state="sleeping")
    one = world(asleep)
    assert refused(one) == 503  # where nobody can wake it
    woken = []

    async def wake(slug):
        woken.append(slug)
        await asyncio.sleep(0.2)
        one.directory.set(slug, msgspec.structs.replace(asleep, state="active"))

    one.process.wake_project = wake
    client = one.connect()
    client.silent()
    assert woken == ["default"]


def test_a_socket_of_a_project_that_is_not_woken_is_refused(world):
    one = world(project(SECRET, RULES, state="sleeping"))

    async def fail(slug):
        raise OSError("the control database is away")

    one.process.wake_project = fail
    assert refused(one) == 503


def test_a_project_that_was_just_made_is_looked_for(world):
    one = world()
    asked = []

    async def look(slug):
        asked.append(slug)
        if slug == "default":
            one.directory.set(slug, project(SECRET, RULES))

    one.process.look_for = look
    one.connect().silent()
    assert refused(one, slug="nobody") == 404
    assert refused(one, headers=[("Host", "a.example.org")]) == 404
    assert asked == ["default", "nobody"]


def test_of_who_sends_too_fast_no_more_is_read_for_a_while(world):
    one = world(project(SECRET, RULES, tier="free"), project(OTHER, RULES, slug="other", id="p2"))
    loud, other = one.connect(), one.connect(key(secret=OTHER, slug="other"), slug="other")
    rate = pace.FRAMES * DEFAULT_TIERS["free"].realtime_messages
    count = int(rate * 1.5)
    began = time.monotonic()
    loud.sock.sendall(b"".join(frame(TEXT, b'{"type":"pong"}') for _ in range(count)))
    other.silent()
    sessions = {name: one.process.tenants[name].sessions for name in ("p1", "p2")}
    assert wait_until(lambda: any(session.held_until for session in sessions["p1"]))
    assert not any(session.held_until for session in sessions["p2"])
    loud.say(type="ping")
    while loud.hear() != {"type": "pong"}:
        pass
    assert time.monotonic() - began > (count - rate) / rate * 0.8


@pytest.mark.parametrize("tier", ["free", "pro"])
def test_changes_of_a_light_project_come_at_its_pace(world, tier):
    limits = DEFAULT_TIERS[tier]
    rate = pace.DELIVERIES * limits.realtime_messages
    one = world(project(SECRET, {"tables": {"t": {"rule": {}}}}, tier=tier))
    clients = [one.connect() for _ in range(20)]
    for client in clients:
        client.ask(type="subscribe", ref="1", kind="postgres", table="t")
    count = int(DEFAULT_TIERS["free"].realtime_messages * pace.DELIVERIES / len(clients))
    changes = [
        Change("postgres", "public.t", "INSERT", record={"n": number}) for number in range(count)
    ]
    began = time.monotonic()
    one.change(*changes)
    for client in clients:
        assert [client.hear()["record"]["n"] for _ in range(count)] == list(range(count))
    took = time.monotonic() - began
    if limits.cpu_weight < 100:
        assert took > count * len(clients) / rate * 0.9
    else:
        assert ("deliveries", "p1") not in one.process.paces._paces


def test_the_tier_limits_the_messages(world):
    limits = msgspec.structs.replace(DEFAULT_TIERS["free"], realtime_messages=2)
    one = world(project(SECRET, {**RULES, "frames_per_second": 1_000}, limits=limits))
    client = one.connect()
    client.ask(type="subscribe", ref="1", kind="broadcast", channel="room")
    for _ in range(4):
        client.say(type="broadcast", channel="room")
    client.silent()
    assert client.ask(type="broadcast", channel="room")["code"] == "rate_limited"


# the life of a token


def test_a_token_may_have_expired_within_the_grace(one):
    client = one.connect(token("u1", lifetime=-200))
    client.silent()
    assert refused(one, token("u1", lifetime=-400)) == 401
    one.sweep(clock=90)
    client.silent()
    one.sweep(clock=110)
    assert client.hear() == {"type": "closing", "reason": "token_expired", "code": 4001}
    assert client.hear() == ("close", 4001)


def test_a_fresh_token_prolongs_the_connection(one):
    client = one.connect(token("u1", lifetime=100))
    client.ask(type="subscribe", ref="1", kind="postgres", table="t")
    fresh = token("u1", lifetime=1000)
    answer = client.ask(type="token", token=fresh)
    assert answer["type"] == "token_refreshed"
    assert abs(answer["exp"] - time.time() - 1000) < 5
    for wrong in (token("u2"), key(), key("service_role"), "x", token("u1", secret=OTHER),
                  token("u1", lifetime=-400)):  # fmt: skip
        assert client.ask(type="token", token=wrong)["code"] == "invalid_token"
    one.change(Change("postgres", "public.t", "INSERT", record={"user_id": "u1"}))
    assert client.hear()["type"] == "change"
    one.sweep(clock=500)
    client.silent()


def test_other_claims_of_a_fresh_token_count_at_once(world):
    rules = {
        "channels": {"vip": {"subscribe": {"auth.claims.plan": "pro"}, "presence": True}},
        "tables": {"t": {"rule": {"plan": "$auth.claims.plan"}}},
    }
    one = world(project(SECRET, rules))
    client = one.connect(token("u1", plan="pro"))
    client.ask(type="subscribe", ref="1", kind="broadcast", channel="vip")
    client.ask(type="subscribe", ref="2", kind="postgres", table="t")
    assert client.ask(type="token", token=token("u1", plan="free")) | {"detail": ""} == {
        "type": "error", "ref": "1", "code": "channel_denied", "detail": ""
    }  # fmt: skip
    assert client.hear()["type"] == "token_refreshed"
    one.change(*[
        Change("postgres", "public.t", "INSERT", record={"plan": plan}) for plan in ("pro", "free")
    ])  # fmt: skip
    assert client.hear()["record"] == {"plan": "free"}
    assert one.publish("vip") == 0


def test_revoked_sessions_are_cut_at_once(one):
    a, b, c, other = (
        one.connect(token("u1", session_id="s1")), one.connect(token("u1", session_id="s2")),
        one.connect(token("u2")), one.connect(token("u1", secret=OTHER), slug="other"),
    )  # fmt: skip
    one.call(lambda: one.process.revoked({"project": "p1", "session_id": "s1"}))
    assert a.hear() == {"type": "closing", "reason": "token_revoked", "code": 4001}
    assert a.hear() == ("close", 4001)
    assert refused(one, token("u1", session_id="s1")) == 401
    b.silent()
    one.call(
        lambda: one.process.revoked({"project": "p1", "user_id": "u1", "before": time.time() + 1})
    )
    assert b.hear()["reason"] == "token_revoked"
    c.silent()
    other.silent()
    for message in ({}, {"project": 5}, {"project": "nope", "session_id": "x"}):
        one.call(lambda message=message: one.process.revoked(message))
    one.connect(token("u1", iat=int(time.time()) + 5))  # signed in again


def test_a_session_revoked_before_the_first_socket_is_refused(one):
    one.call(lambda: one.process.revoked({"project": "p1", "session_id": "early"}))
    assert refused(one, token("u1", session_id="early")) == 401
    one.connect(token("u1", session_id="other"))


def test_a_revoked_session_stays_so_when_its_project_is_brought_back(one):
    one.connect(token("u1", session_id="other"))
    one.call(lambda: one.process.revoked({"project": "p1", "session_id": "left"}))
    one.call(lambda: one.process.revoked({"project": "p1", "session_id": "old", "exp": 1}))
    found = one.directory.get("default")
    one.call(lambda: one.directory.set("default", None))
    one.call(lambda: one.directory.set("default", found))
    assert refused(one, token("u1", session_id="left")) == 401
    one.connect(token("u1", session_id="other"))


def test_a_key_that_is_taken_away_ends_its_sockets(one):
    client, server = one.connect(token("u1")), one.connect(key("service_role"))
    changed = project(OTHER, RULES, kid="k2")
    one.call(lambda: one.directory.set("default", changed))
    for each in (client, server):
        assert each.hear()["reason"] == "token_revoked"
    assert refused(one, token("u1")) == 401
    one.connect(token("u1", secret=OTHER, kid="k2"))


def test_a_project_that_is_removed_ends_its_sockets(one):
    client, other = one.connect(), one.connect(key(secret=OTHER, slug="other"), slug="other")
    one.call(lambda: one.directory.set("default", None))
    assert client.hear() == {"type": "closing", "reason": "project_removed", "code": 4000}
    assert client.hear() == ("close", 4000)
    other.silent()
    assert refused(one) == 404


def test_changed_rules_count_for_what_is_subscribed_already(one):
    a, b = one.connect(token("u1")), one.connect(token("u2"))
    for client in (a, b):
        client.ask(type="subscribe", ref="1", kind="postgres", table="t")
        client.ask(type="subscribe", ref="2", kind="broadcast", channel="room", presence=True)
        client.hear()
    a.hear()
    rules = {
        "tables": {"t": {"rule": {"other": "$auth.uid"}, "fields": {"deny": ["x"]}}},
        "channels": {"*": {"subscribe": {"auth.uid": "u1"}}},
    }
    one.call(lambda: one.directory.set("default", project(SECRET, rules)))
    assert (error(b)["code"], error(a)["code"]) == ("channel_denied", "presence_denied")
    one.change(
        Change("postgres", "public.t", "INSERT", record={"user_id": "u1"}),
        Change("postgres", "public.t", "INSERT", record={"other": "u1", "x": 1}),
    )
    assert a.hear()["record"] == {"other": "u1"}
    a.silent()
    b.silent()
    one.call(lambda: one.directory.set("default", project(SECRET, {})))
    assert {a.hear()["code"], a.hear()["code"]} == {"not_enabled", "channel_denied"}
    assert b.hear()["code"] == "not_enabled"
    hub = one.process.tenants["p1"].hub
    assert (hub.sources, hub.channels) == ({}, {})


def test_settings_that_cannot_be_used_allow_nothing(world):
    one = world(project(SECRET, {"channels": {"*": {"subscribe": True}}, "nonsense": 1}))
    client = one.connect()
    answer = client.ask(type="subscribe", ref="1", kind="broadcast", channel="room")
    assert answer["code"] == "channel_denied"


# what a connection may cost


def test_nothing_is_left_of_connections_that_are_gone(one):
    for abrupt in (True, False):
        clients = [one.connect(token(f"u{n}")) for n in range(20)]
        for client in clients:
            client.ask(type="subscribe", ref="1", kind="postgres", table="t", filter={"a": 1})
            client.ask(type="subscribe", ref="2", kind="broadcast", channel="room", presence=True)
        for client in clients:
            if not abrupt:
                client.send(CLOSE)
                while client.hear() is not None:
                    pass
            client.close()
    tenant = one.process.tenants["p1"]
    left = (
        tenant.hub.sources, tenant.hub.channels, tenant.sessions, tenant.by_user, tenant.by_login,
        one.process.wire.peers,
    )  # fmt: skip
    assert wait_until(lambda: one.call(lambda: not any(left)))


def test_a_client_that_never_reads_is_let_go_and_costs_little(world):
    one = world(project(SECRET, RULES), max_buffer=300_000, close_seconds=60)
    lazy, brisk = one.connect(), one.connect()
    lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for client in (lazy, brisk):
        client.ask(type="subscribe", ref="1", kind="broadcast", channel="room")
    payload = b'"' + b"x" * 100_000 + b'"'
    most = 0
    for _ in range(1000):
        reached = one.publish("room", payload=payload)
        assert brisk.hear()["type"] == "broadcast"
        most = max(most, one.call(lambda: sum(peer.queued for peer in one.process.wire.peers)))
        if reached == 1:
            break
    assert most <= 300_000
    assert one.publish("room") == 1
    last = None
    while (found := lazy.hear()) is not None:
        if found == ("close", 1013):
            break
        last = found
    assert last == {"type": "closing", "reason": "slow_consumer", "code": 1013}
    assert brisk.hear()["payload"] == 1
    brisk.silent()


def test_a_million_subscriptions_are_a_hundred(one):
    client = one.connect()
    codes = set()
    for number in range(140):
        answer = client.ask(
            type="subscribe", ref=f"r{number}", kind="broadcast", channel=f"room{number}"
        )
        codes.add(answer.get("code"))
    assert codes == {None, "subscription_limit"}
    assert one.call(lambda: len(one.process.tenants["p1"].hub.channels)) == 100


def test_connections_that_say_nothing_are_closed(one):
    with socket.create_connection(("127.0.0.1", one.port)) as sock:
        assert wait_until(lambda: one.call(lambda: one.process.wire.peers))
        one.sweep(11)
        sock.settimeout(60)
        assert sock.recv(10) == b""


def test_half_messages_are_bounded_and_end(one):
    client = one.connect()
    for _ in range(60):
        client.send(0 if _ else TEXT, b"x" * 1_000, fin=False)
    client.send(0, b"x" * 10_000, fin=False)
    assert client.hear() == ("close", 1009)


def test_a_burst_of_connections_is_served(one):
    clients = [one.connect(token(f"u{n % 7}")) for n in range(300)]
    for client in clients:
        client.say(type="subscribe", ref="1", kind="broadcast", channel="room")
    for client in clients:
        assert client.hear()["type"] == "subscribed"
    assert one.publish("room") == 300
    for client in clients:
        assert client.hear()["type"] == "broadcast"


def test_stopping_tells_the_clients(world):
    one = world(project(SECRET, RULES))
    client = one.connect()
    client.sock.sendall(frame(TEXT, b'{"type":"ping"}'))
    assert client.hear() == {"type": "pong"}
    one.call(lambda: None)
    stopping = asyncio.run_coroutine_threadsafe(one.process.stop(5), one.loop)
    assert client.hear() == {"type": "closing", "reason": "shutdown", "code": 4000}
    assert client.hear() == ("close", 4000)
    client.send(CLOSE, b"\x0f\xa0")
    assert client.hear() is None
    client.close()
    stopping.result(60)
