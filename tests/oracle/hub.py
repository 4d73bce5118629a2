"""Who receives a change, plainly: every subscription is asked, one after the other."""

from __future__ import annotations


def receivers(subscriptions, event, record, old):
    """{connection: whether the old row goes along} for subscriptions of the form
    (connection, rule, filter, events); rule and filter have test(document, old) or are None."""
    subject = old if event == "DELETE" else record
    found = {}
    for connection, rule, wanted, events in subscriptions:
        if event not in events:
            continue
        if rule is not None and (subject is None or not rule.test(subject, old)):
            continue
        if wanted is not None and (subject is None or not wanted.test(subject, old)):
            continue
        shown = old is not None and (event == "DELETE" or rule is None or bool(rule.test(old, old)))
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
