"""Who receives a change, plainly: every subscription is asked, one after the other."""

from __future__ import annotations


def receivers(kind, subscriptions, event, record, old):
    """{connection: whether the old row goes along} for subscriptions of the form
    (connection, rule, filter, events); rule and filter have test(document, old, partial) or are
    None. Columns that a row lacks may have any value."""
    subject = old if event == "DELETE" else record
    found = {}
    partial = 0
    if kind == "postgres":
        partial = 1 if event == "INSERT" else 3
    elif event == "UPDATE" and old is None:
        partial = 2
    for connection, rule, wanted, events in subscriptions:
        if event not in events:
            continue
        if rule is not None and (subject is None or not rule.test(subject, old, partial)):
            continue
        if wanted is not None and (subject is None or not wanted.test(subject, old, partial)):
            continue
        shown = old is not None and (
            event == "DELETE" or rule is None or bool(rule.test(old, old, partial))
        )
        found[connection] = shown
    return found


class Ends:
    """What a `Wire` tells of its connections: accepts whatever comes and keeps nothing."""

    def request(self, peer, head):
        peer.upgrade(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", None)

    def message(self, peer, data, text):
        pass

    def closed(self, peer, code):
        pass

    def slow(self, peer):
        pass

    def wake(self):
        pass
