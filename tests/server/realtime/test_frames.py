"""What each frame of a client does."""

import pytest

from tests.server.realtime.frames import RULES, join, row, watch
from tests.server.realtime.world import SECRET, key, project, token


@pytest.fixture
def one(world):
    return world(project(SECRET, RULES))


# tables and collections


def test_answers_to_a_subscription_name_the_normal_target(one):
    client = one.connect(token("u1"))
    assert watch(client) == {
        "type": "subscribed", "ref": "s1", "kind": "postgres", "table": "public.messages"
    }  # fmt: skip
    assert client.ask(type="subscribe", ref="s2", kind="mongo", collection="orders") == {
        "type": "subscribed", "ref": "s2", "kind": "mongo", "collection": "orders"
    }  # fmt: skip


def test_a_row_goes_to_those_its_rule_names(one):
    a, b, c, server = (
        one.connect(token("u1")), one.connect(token("u2")), one.connect(token("u3")),
        one.connect(key("service_role")),
    )  # fmt: skip
    anonymous = one.connect()
    for client in (a, b, c, server, anonymous):
        watch(client)
    one.change(row(record={"id": 1, "sender": "u1", "recipient": "u2", "secret": 5}, position="7"))
    told = {
        "type": "change", "event": "INSERT", "table": "public.messages",
        "record": {"id": 1, "sender": "u1", "recipient": "u2"}, "position": "7",
    }  # fmt: skip
    assert a.hear() == b.hear() == told
    assert server.hear()["record"]["secret"] == 5
    for client in (a, b, c, server, anonymous):
        client.silent()


def test_one_frame_however_many_subscriptions_match(one):
    client = one.connect(token("u1"))
    watch(client, "news", "s1")
    watch(client, "public.news", "s2", events=["INSERT"])
    watch(client, "news", "s3", filter={"n": 1})
    one.change(row(table="public.news", record={"n": 1}))
    assert client.hear()["record"] == {"n": 1}
    client.silent()
    assert client.ask(type="unsubscribe", ref="s1") == {"type": "unsubscribed", "ref": "s1"}
    assert client.ask(type="unsubscribe", ref="s2")["type"] == "unsubscribed"
    one.change(row(table="public.news", record={"n": 2}), row(table="public.news", record={"n": 1}))
    assert client.hear()["record"] == {"n": 1}
    client.silent()


def test_events_and_filters_narrow(one):
    inserts, wrong, filtered = (one.connect(token("u1")) for _ in range(3))
    watch(inserts, "news", events=["INSERT"])
    watch(wrong, "news", events=["insert"])
    watch(filtered, "news", filter={"n": {"$gt": 5}, "tag": "a"})
    one.change(
        row(table="public.news", record={"n": 9, "tag": "a"}),
        row("UPDATE", "public.news", {"n": 7, "tag": "a"}, {"n": 1, "tag": "a"}),
        row("DELETE", "public.news", None, {"n": 9, "tag": "a"}),
        row("DELETE", "public.news", None, {"n": 1, "tag": "a"}),
    )
    assert inserts.hear()["event"] == "INSERT"
    inserts.silent()
    wrong.silent()
    assert [filtered.hear()["event"] for _ in range(3)] == ["INSERT", "UPDATE", "DELETE"]
    filtered.silent()


def test_order_is_kept(one):
    client = one.connect()
    watch(client, "news")
    one.change(*[row(table="public.news", record={"n": n}) for n in range(3000)])
    assert [client.hear()["record"]["n"] for _ in range(3000)] == list(range(3000))


def test_the_old_row_comes_only_when_it_passes_too(one):
    client = one.connect(token("u1"))
    watch(client)
    one.change(
        row("UPDATE", record={"sender": "u1", "t": 2}, old={"sender": "u1", "t": 1, "secret": 1}),
        row("UPDATE", record={"sender": "u1", "t": 3}, old={"sender": "u9", "t": 2}),
        row("UPDATE", record={"sender": "u9", "t": 4}, old={"sender": "u1", "t": 3}),
        row("DELETE", old={"recipient": "u1", "t": 4}),
        row("DELETE", old={"id": 4}),
    )
    assert client.hear()["old"] == {"sender": "u1", "t": 1}
    assert "old" not in client.hear()
    last = client.hear()
    assert (last["event"], last["old"]) == ("DELETE", {"recipient": "u1", "t": 4})
    assert "record" not in last
    client.silent()


def test_numbers_and_texts_meet_in_rules_of_tables(world):
    rules = {"tables": {"t": {"rule": {"owner": "$auth.claims.number"}}}}
    one = world(project(SECRET, rules))
    clients = [one.connect(token("u", number=n)) for n in ("12", 12, "12.0", "abc")]
    for client in clients:
        watch(client, "t")
    one.change(row(table="public.t", record={"owner": 12}))
    assert [c.hear()["record"] for c in clients[:2]] == [{"owner": 12}] * 2
    clients[3].silent()
    one.change(row(table="public.t", record={"owner": "abc"}))
    assert clients[3].hear()["record"] == {"owner": "abc"}
    clients[0].silent()


HIDING = [
    {"secret": {"$ne": True}}, {"secret": None}, {"secret": {"$exists": False}},
    {"secret": {"$nin": [True]}}, {"secret": {"$not": {"$eq": True}}}, {"$nor": [{"secret": True}]},
    {"secret.a": {"$ne": 1}}, {"$and": [{"id": 1}, {"$nor": [{"id": 2}, {"secret": 1}]}]},
]  # fmt: skip


@pytest.mark.parametrize("rule", HIDING)
def test_columns_that_the_log_lacks_let_nobody_through(world, rule):
    """The key alone of an old row, long values that did not change, generated columns."""
    one = world(project(SECRET, {"tables": {"t": {"rule": rule}, "free": {"rule": True}}}))
    client, server = one.connect(token("u1")), one.connect(key("service_role"))
    filtered = one.connect(token("u1"))
    watch(filtered, "free", filter=rule)
    for each in (client, server):
        watch(each, "t")
    for table in ("public.t", "public.free"):
        one.change(
            row("INSERT", table, {"id": 1, "t": "generated column"}),
            row("UPDATE", table, {"id": 1, "t": "long value"}, {"id": 1}),
            row("DELETE", table, old={"id": 1}),
            row("UPDATE", table, {"id": 1, "secret": False}, {"id": 1}),
        )
    assert [server.hear()["event"] for _ in range(4)] == ["INSERT", "UPDATE", "DELETE", "UPDATE"]
    for each in (client, filtered):
        if "$exists" not in str(rule) and "None" not in str(rule):
            last = each.hear()
            assert last["record"] == {"id": 1, "secret": False}
            assert ("old" in last) == (each is filtered)
        each.silent()


def test_columns_that_the_log_lacks_do_not_matter_to_what_is_certain(one):
    client = one.connect(token("u1"))
    watch(client)
    one.change(
        row("UPDATE", record={"id": 1, "recipient": "u1"}, old={"id": 1}),
        row("UPDATE", record={"id": 2, "recipient": "u2"}, old={"id": 2}),
        row("DELETE", old={"recipient": "u1"}),
    )
    assert [client.hear()["event"] for _ in range(2)] == ["UPDATE", "DELETE"]
    client.silent()


def test_rules_over_the_identity_alone(one):
    pro, free = one.connect(token("u1", plan="pro")), one.connect(token("u2"))
    watch(pro, "paid")
    watch(free, "paid")
    one.change(row(table="public.paid", record={"n": 1}))
    assert pro.hear()["record"] == {"n": 1}
    free.silent()


def test_without_a_rule_only_the_secret_key_receives(one):
    server, user = one.connect(key("service_role")), one.connect(token("u1"))
    watch(server, "hidden")
    watch(user, "hidden")
    one.change(row(table="public.hidden", record={"n": 1}))
    assert server.hear()["record"] == {"n": 1}
    user.silent()


def test_events_that_the_rule_leaves_out_are_not_told(one):
    client = one.connect()
    assert watch(client, "app.inserts")["table"] == "app.inserts"
    one.change(
        row("UPDATE", "app.inserts", {"n": 1}, {"n": 0}), row(table="app.inserts", record={"n": 2})
    )
    assert client.hear()["record"] == {"n": 2}


@pytest.mark.parametrize("table", ["off", "nothing", "public.off", "other.messages", "pg_class"])
def test_what_is_not_enabled(one, table):
    client = one.connect(key("service_role"))
    answer = client.ask(type="subscribe", ref="s9", kind="postgres", table=table)
    assert (answer["type"], answer["ref"], answer["code"]) == ("error", "s9", "not_enabled")
    client.silent()


@pytest.mark.parametrize(
    "given", [{"$where": "1"}, {"a": {"$nope": 1}}, {"a": {"$regex": "("}}, {"$and": 5}]
)
def test_bad_filters(one, given):
    client = one.connect()
    answer = client.ask(type="subscribe", ref="s1", kind="postgres", table="news", filter=given)
    assert (answer["code"], answer["ref"]) == ("invalid_filter", "s1")
    client.silent()


def test_filters_read_no_hidden_fields_and_no_variables(one):
    client = one.connect(token("u1"))
    answer = client.ask(
        type="subscribe", ref="s1", kind="postgres", table="messages", filter={"secret": 5}
    )
    assert answer["code"] == "invalid_filter"
    client.ask(type="subscribe", ref="n", kind="postgres", table="nested", filter={"a": 5})
    for hidden in ({"old": 5}, {"old.a": 5}, {"old": {"$elemMatch": {"a": 5}}}):
        answer = client.ask(
            type="subscribe", ref="s1", kind="postgres", table="nested", filter=hidden
        )
        assert answer["code"] == "invalid_filter", hidden
    watch(client, filter={"sender": "$auth.uid"})
    one.change(row(record={"sender": "u1"}))
    client.silent()


def test_documents_come_from_the_workers(one):
    mine, other = one.connect(token("u1")), one.connect(token("u2"))
    for client in (mine, other):
        client.ask(type="subscribe", ref="s1", kind="mongo", collection="orders")
    one.call(
        lambda: one.process.documents(
            {
                "project": "p1", "collection": "orders",
                "events": [
                    {"event": "insert", "record": {"_id": "a", "user_id": "u1"}, "old": None},
                    {"event": "delete", "record": {"_id": "a"},
                     "old": {"_id": "a", "user_id": "u1"}},
                    {"event": "delete", "record": {"_id": "b"}, "old": {"_id": "b"}},
                ],
            }
        )
    )  # fmt: skip
    first, second = mine.hear(), mine.hear()
    assert first.pop("position") < second["position"]
    assert first == {
        "type": "change", "event": "insert", "collection": "orders",
        "record": {"_id": "a", "user_id": "u1"},
    }  # fmt: skip
    assert second["old"] == {"_id": "a", "user_id": "u1"}
    mine.silent()
    other.silent()


# channels


def test_a_broadcast_goes_to_the_others(one):
    a, b, outside = (
        one.connect(token("u1")), one.connect(), one.connect(token("u2"))
    )  # fmt: skip
    join(a)
    join(b)
    join(outside, "room:2")
    a.say(type="broadcast", channel="room:1", event="chat", payload={"t": 1.50, "ü": [None]})
    assert b.hear() == {
        "type": "broadcast", "channel": "room:1", "event": "chat",
        "payload": {"t": 1.5, "ü": [None]}, "from": "u1",
    }  # fmt: skip
    a.silent()
    outside.silent()


def test_frames_are_handled_in_order_without_waiting(one):
    a, b = one.connect(token("u1")), one.connect()
    join(b)
    a.say(type="subscribe", ref="x", kind="broadcast", channel="room:1", self=True)
    a.say(type="broadcast", channel="room:1", event="now")
    a.say(type="unsubscribe", ref="x")
    a.say(type="broadcast", channel="room:1", event="late")
    assert [a.hear()["type"] for _ in range(4)] == [
        "subscribed", "broadcast", "unsubscribed", "error"
    ]  # fmt: skip
    assert b.hear() == {
        "type": "broadcast", "channel": "room:1", "event": "now", "payload": None, "from": "u1"
    }  # fmt: skip
    b.silent()


def test_who_may_do_what_in_channels(one):
    user, anonymous = one.connect(token("u1")), one.connect()

    def code(client, **frame):
        answer = client.ask(**frame)
        return answer.get("code") or answer["type"]

    def subscribe(client, channel, ref):
        return code(client, type="subscribe", ref=ref, kind="broadcast", channel=channel)

    assert subscribe(anonymous, "room:1", "1") == "subscribed"
    assert code(anonymous, type="broadcast", channel="room:1") == "broadcast_denied"
    assert subscribe(user, "room:closed:1", "2") == "channel_denied"  # the longest pattern decides
    assert subscribe(user, "nowhere", "3") == "channel_denied"
    assert subscribe(user, "mine:u1:a", "4") == "subscribed"
    assert subscribe(user, "mine:u2:a", "5") == "channel_denied"
    assert subscribe(anonymous, "mine::a", "6") == "channel_denied"
    assert subscribe(user, "read", "7") == "subscribed"
    assert code(user, type="broadcast", channel="read") == "broadcast_denied"
    assert code(user, type="broadcast", channel="room:77") == "broadcast_denied"  # not subscribed
    assert subscribe(user, "user:u1", "8") == "subscribed"
    assert subscribe(user, "user:u2", "9") == "channel_denied"
    assert subscribe(anonymous, "user:", "10") == "channel_denied"
    assert code(user, type="broadcast", channel="user:u1") == "broadcast_denied"
    for name in ("", "a b", "ä", "x" * 129, "a\n", "a/b"):
        assert subscribe(user, name, "11") == "bad_channel"


def test_clients_can_be_kept_from_sending(world):
    one = world(project(SECRET, {**RULES, "client_broadcast": "off"}))
    client = one.connect(token("u1"))
    join(client)
    assert client.ask(type="broadcast", channel="room:1")["code"] == "broadcast_denied"


def test_the_server_publishes_to_channels_and_users(one):
    a, a2, b, watcher = (
        one.connect(token("u1")), one.connect(token("u1")), one.connect(token("u2")), one.connect()
    )  # fmt: skip
    for client, uid in ((a, "u1"), (a2, "u1"), (b, "u2")):
        join(client, f"user:{uid}")
    join(watcher)
    join(a, ref="c2")
    assert one.publish("user:u1", "user:u2", "user:nobody", payload=b'{"x":1}') == 3
    told = {
        "type": "broadcast",
        "channel": "user:u1",
        "event": "e",
        "payload": {"x": 1},
        "from": "",
    }
    assert a.hear() == a2.hear() == told
    assert b.hear()["channel"] == "user:u2"
    assert one.publish("room:1", event=None) == 2
    assert watcher.hear() == {"type": "broadcast", "channel": "room:1", "payload": 1, "from": ""}
    assert one.publish("room:1", project="other") == 0
    assert one.publish("empty") == 0
    watcher.silent()


def test_two_subscriptions_of_one_channel(one):
    a, b = one.connect(token("u1")), one.connect(token("u2"))
    join(a, ref="1")
    join(a, ref="2")
    join(b)
    b.say(type="broadcast", channel="room:1", event="x")
    assert a.hear()["event"] == "x"
    a.silent()
    a.ask(type="unsubscribe", ref="1")
    b.say(type="broadcast", channel="room:1", event="y")
    assert a.hear()["event"] == "y"
    a.ask(type="unsubscribe", ref="2")
    b.say(type="broadcast", channel="room:1", event="z")
    a.silent()


# presence


def test_presence_from_coming_to_going(one):
    a, b, plain = one.connect(token("u1")), one.connect(token("u2")), one.connect()
    join(plain)
    a.say(
        type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True, state={"n": 1}
    )
    assert a.hear()["type"] == "subscribed"
    first = a.hear()
    (key_a,) = first["presences"]
    assert first == {
        "type": "presence_state", "channel": "room:1",
        "presences": {key_a: {"uid": "u1", "state": {"n": 1}}},
    }  # fmt: skip
    b.say(type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True)
    assert b.hear()["type"] == "subscribed"
    (key_b,) = set(b.hear()["presences"]) - {key_a}
    assert a.hear() == {
        "type": "presence_diff", "channel": "room:1",
        "joins": {key_b: {"uid": "u2", "state": None}}, "leaves": {},
    }  # fmt: skip
    b.say(type="presence", channel="room:1", state={"typing": True})
    changed = {
        "type": "presence_diff", "channel": "room:1",
        "joins": {key_b: {"uid": "u2", "state": {"typing": True}}},
        "leaves": {key_b: {"uid": "u2", "state": None}},
    }  # fmt: skip
    assert a.hear() == b.hear() == changed
    b.close()
    assert a.hear() == {
        "type": "presence_diff", "channel": "room:1", "joins": {},
        "leaves": {key_b: {"uid": "u2", "state": {"typing": True}}},
    }  # fmt: skip
    assert a.ask(type="unsubscribe", ref="1")["type"] == "unsubscribed"
    assert a.ask(type="presence", channel="room:1", state=1)["code"] == "presence_denied"
    a.silent()
    plain.silent()
    assert one.call(lambda: list(one.process.tenants["p1"].hub.channels)) == ["room:1"]


def test_presence_needs_its_rule_and_room(world):
    rules = {**RULES, "presence_members": 2}
    one = world(project(SECRET, rules))
    client = one.connect(token("u1"))
    answer = client.ask(type="subscribe", ref="1", kind="broadcast", channel="read", presence=True)
    assert (answer["code"], answer["ref"]) == ("presence_denied", "1")
    for number in range(3):
        last = one.connect(token(f"u{number}"))
        answer = last.ask(
            type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True
        )
    assert answer["code"] == "presence_full"


def test_the_states_of_a_channel_are_limited_together(one):
    clients = [one.connect(token(f"u{n}")) for n in range(140)]
    codes = []
    for client in clients:
        answer = client.ask(
            type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True,
            state="x" * 4_000,
        )  # fmt: skip
        codes.append(answer.get("code"))
    fitting = codes.count(None)
    assert 125 < fitting < 135
    assert set(codes[fitting:]) == {"presence_full"}
    hub = one.process.tenants["p1"].hub
    assert hub.channel("room:1").present_size <= 512 << 10
    for client in clients[:fitting]:
        client.close()
    late = clients[139]
    late.silent()
    answer = late.ask(type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True)
    assert answer["type"] == "subscribed"
    assert len(late.hear()["presences"]) == 1


def test_silence_leaves_the_presence(one):
    a, b = one.connect(token("u1")), one.connect(token("u2"))
    for client in (a, b):
        client.ask(type="subscribe", ref="1", kind="broadcast", channel="room:1", presence=True)
    assert [a.hear()["type"] for _ in range(2)] == ["presence_state", "presence_diff"]
    one.sweep(50)
    a.silent()  # a is heard of at 50 seconds, b is not
    one.sweep(61)
    assert a.hear()["leaves"]
    assert b.hear()["type"] == "presence_state"
    assert b.hear() is None
