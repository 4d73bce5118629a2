"""A project's rules and the frames of its clients, for the tests of what becomes of them."""

from ichicore.live.change import Change

RULES = {
    "channels": {
        "room:*": {
            "subscribe": {"auth.role": {"$in": ["anon", "authenticated"]}},
            "send": {"auth.role": "authenticated"},
            "presence": True,
        },
        "room:closed*": {},
        "read": {"subscribe": True},
        "mine:${auth.uid}:*": {"subscribe": True, "send": True},
    },
    "tables": {
        "messages": {
            "rule": {"$or": [{"sender": "$auth.uid"}, {"recipient": "$auth.uid"}]},
            "fields": {"deny": ["secret"]},
        },
        "news": {"rule": True},
        "nested": {"rule": True, "fields": {"deny": ["old"]}},  # a column of this name
        "paid": {"rule": {"auth.claims.plan": "pro"}},
        "off": {"enabled": False, "rule": True},
        "hidden": {},
        "app.inserts": {"rule": True, "events": ["INSERT"]},
    },
    "collections": {"orders": {"rule": {"user_id": "$auth.uid"}}},
}


def row(event="INSERT", table="public.messages", record=None, old=None, position="", **more):
    return Change("postgres", table, event, record=record, old=old, position=position, **more)


def watch(client, table="messages", ref="s1", **more):
    answer = client.ask(type="subscribe", ref=ref, kind="postgres", table=table, **more)
    assert answer["type"] == "subscribed", answer
    return answer


def join(client, channel="room:1", ref="c1", **more):
    answer = client.ask(type="subscribe", ref=ref, kind="broadcast", channel=channel, **more)
    assert answer["type"] == "subscribed", answer
    return answer
