"""One connection: its identity and subscriptions, and what each of its frames does. Frames are
handled at once and in their order; nothing here waits."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson

from ichicore.errors import ApiError
from ichicore.live.hub import Channel, Group, broadcast_frame, event_bits
from ichicore.live.wire import Peer
from ichicore.rules import RuleError
from server.base.project import Identity
from server.realtime import messages, rules
from server.realtime.messages import PONG, BadFrameError, Ref, error, frame
from server.realtime.rules import CHANNEL, WHOLE
from server.realtime.settings import table_name
from server.realtime.tenant import Bucket, Tenant

if TYPE_CHECKING:
    from server.realtime.process import Process

BURST = 150  # frames at once: all subscriptions of a client that has reconnected, and more
MAX_REF = 64
MAX_EVENT = 128
MAX_PRESENT = 512 << 10  # bytes of all states of a channel
MAX_FILTER = 8_192  # bytes
EVENTS = {
    "postgres": ("INSERT", "UPDATE", "DELETE"),
    "mongo": ("insert", "update", "delete"),
}
EXPIRED, KICKED, REVOKED = 4001, 4002, 4001
NO_SUBSCRIBE = "No rule lets you subscribe to this channel."
NO_PRESENCE = "No rule lets you be present in this channel."


class Subscription:
    """What one ref stands for: a group of a source, or a channel. given: the frame."""

    __slots__ = ("channel", "given", "group", "target")

    def __init__(self, given: messages.Subscribe, target: str) -> None:
        self.given = given
        self.target = target
        self.group: Group | None = None
        self.channel: Channel | None = None


class Session:
    __slots__ = (
        "bucket", "held_until", "identity", "key", "kid", "peer", "present", "process", "subs",
        "tenant", "warned",
    )  # fmt: skip

    def __init__(
        self, process: Process, tenant: Tenant, peer: Peer, identity: Identity, kid: str | None
    ) -> None:
        self.process = process
        self.tenant = tenant
        self.peer = peer
        self.identity = identity
        self.kid = kid
        self.key = b"c_" + secrets.token_hex(6).encode()
        self.subs: dict[Ref, Subscription] | None = None
        self.present: dict[str, bytes] | None = None  # channel > value, while present there
        self.bucket: Bucket | None = None
        self.warned = 0.0
        self.held_until = 0.0  # nothing is read of its socket before; 0 while it is
        self.set_expiry()

    # frames in

    def receive(self, data: bytes, text: bool) -> None:
        """One message of the client."""
        now = self.process.now()
        if self.bucket is None:
            self.bucket = Bucket(self.tenant.settings.frames_per_second, BURST, now)
        if not self.bucket.take(now):
            if now - self.warned >= 1.0:
                self.warned = now
                self.peer.send(error("rate_limited", "Too many frames; this one was ignored."))
            return
        if not text:
            self.peer.send(error("bad_frame", "Frames are text."))
            return
        try:
            message = messages.decode(data)
            _handlers[type(message)](self, message)
        except BadFrameError as bad:
            self.peer.send(error(bad.code, bad.detail, bad.ref))

    def _ping(self, message: messages.Ping) -> None:
        self.peer.send(PONG)

    def _subscribe(self, message: messages.Subscribe) -> None:
        ref = message.ref
        if not isinstance(ref, str) or not 0 < len(ref) <= MAX_REF:
            raise BadFrameError("bad_frame", f"ref is a text of 1 to {MAX_REF} characters.")
        subs = self.subs if self.subs is not None else {}
        if ref in subs:
            raise BadFrameError("duplicate_ref", "This ref has a subscription already.", ref)
        if len(subs) >= self.tenant.settings.subscriptions:
            raise BadFrameError(
                "subscription_limit",
                f"A connection has at most {self.tenant.settings.subscriptions} subscriptions.",
                ref,
            )
        if message.kind == "broadcast":
            self._join(message, ref)
        else:
            self._watch(message, ref)

    def _watch(self, message: messages.Subscribe, ref: Ref) -> None:
        """A table or a collection."""
        given = message.table if message.kind == "postgres" else message.collection
        member = "table" if message.kind == "postgres" else "collection"
        if not given or len(given) > 200:
            raise BadFrameError("bad_frame", f"{member} is missing.", ref)
        name = table_name(given) if message.kind == "postgres" else given
        subscription = Subscription(message, name)
        self._enter(subscription, ref)
        self._keep(ref, subscription)
        self.process.subscribed(
            self,
            subscription,
            {"type": "subscribed", "ref": ref, "kind": message.kind, member: name},
        )

    def _enter(self, subscription: Subscription, ref: Ref) -> None:
        """Puts a subscription of rows or documents into its group; BadFrameError."""
        message = subscription.given
        kind, name = message.kind, subscription.target
        rule = self.tenant.rules.source(kind, name)
        if rule is None:
            raise BadFrameError("not_enabled", f"Realtime is not enabled for {name[:100]!r}.", ref)
        events = rule.events
        if message.events is not None:
            known = EVENTS[kind]
            events &= event_bits(event for event in message.events if event in known)
        audience = rule.audience(self.identity)
        if self.identity.role == "service_role":
            audience = WHOLE
        wanted: Any = None
        key: Any = None
        terms = audience.terms
        if message.filter is not None and message.filter is not True and message.filter != {}:
            key = orjson.dumps(message.filter, option=orjson.OPT_SORT_KEYS)
            if len(key) > MAX_FILTER:
                raise BadFrameError("invalid_filter", "The filter is too long.", ref)
            try:
                match = rules.client_filter(message.filter, loose=rule.loose)
            except RuleError as problem:
                raise BadFrameError("invalid_filter", str(problem)[:500], ref) from None
            wanted = match.bind(rules.context_of(self.identity, claims=False))
            if wanted is None:
                raise BadFrameError("invalid_filter", "The filter cannot be evaluated.", ref)
            self._readable(rule, audience, match, ref)
        if audience.never or not events:
            return  # subscribed, and nothing will come
        hub = self.tenant.hub
        source = hub.source(kind, name, rule.fields)
        if terms is None and wanted is not None and source.takes(rules.filter_terms(wanted)):
            terms = rules.filter_terms(wanted)
        subscription.group = source.add(
            self.peer, (audience.key, key, events), events, audience.rule, wanted,
            audience.whole, terms,
        )  # fmt: skip

    @staticmethod
    def _readable(rule: rules.SourceRule, audience: Any, match: Any, ref: Ref) -> None:
        """A filter must not ask for fields that its answers do not show."""
        if rule.fields is None or audience.whole:
            return
        for path in match.paths:
            named = (path, path.removeprefix("old."))  # a filter may mean a field called `old`
            if not all(map(rule.fields.allows, named)):
                raise BadFrameError(
                    "invalid_filter", f"The field {path[:100]!r} cannot be filtered by.", ref
                )

    def _join(self, message: messages.Subscribe, ref: Ref) -> None:
        """A channel."""
        name = message.channel
        if name is None or not CHANNEL.fullmatch(name):
            raise BadFrameError(
                "bad_channel", "A channel has 1 to 128 letters, digits, _ : . and -.", ref
            )
        tenant = self.tenant
        if not tenant.rules.may("subscribe", name, self.identity):
            raise BadFrameError("channel_denied", NO_SUBSCRIBE, ref)
        value = None
        if message.presence:
            if not tenant.rules.may("presence", name, self.identity):
                raise BadFrameError("presence_denied", NO_PRESENCE, ref)
            value = self._value(message.state, ref)
            self._room_for(tenant.hub.channel(name), value, ref)
        subscription = Subscription(message, name)
        others = self._of_channel(name)
        own = message.own or any(other.given.own for other in others)
        subscription.channel = tenant.hub.join(self.peer, name, own)
        self._keep(ref, subscription)
        self.peer.send(
            frame({"type": "subscribed", "ref": ref, "kind": "broadcast", "channel": name})
        )
        if value is not None:
            self._appear(subscription.channel, value)

    def _room_for(self, channel: Channel | None, value: bytes, ref: Ref | None) -> None:
        """The snapshot that each one who joins gets must stay small."""
        if channel is None:
            return
        before = channel.present.get(self.peer)
        size = channel.present_size + len(value) - (0 if before is None else len(before[1]))
        count = len(channel.present) + len(channel.remote)
        many = before is None and count >= self.tenant.settings.presence_members
        if many or size > MAX_PRESENT:
            raise BadFrameError("presence_full", "Too many are present in this channel.", ref)

    def _appear(self, channel: Channel, value: bytes) -> None:
        if self.present is None:
            self.present = {}
        self.present[channel.name] = value
        self.tenant.hub.appear(self.peer, channel, self.key, value)
        if self.process.nodes is not None:
            self.process.nodes.appear(self.tenant.project.id, channel.name, self.key, value)

    def _vanish(self, name: str) -> None:
        """It is present in this channel no longer, as the hub knows already."""
        if self.present is not None and self.present.pop(name, None) is not None:
            if self.process.nodes is not None:
                self.process.nodes.absent(self.tenant.project.id, name, self.key)

    def _value(self, state: Any, ref: Ref | None) -> bytes:
        """What others see of this connection."""
        raw = bytes(state)
        if len(raw) > self.tenant.settings.state_bytes:
            raise BadFrameError(
                "state_too_large", f"A state has at most {self.tenant.settings.state_bytes} bytes.",
                ref,
            )  # fmt: skip
        return b'{"uid":' + orjson.dumps(self.identity.uid or "") + b',"state":' + raw + b"}"

    def _keep(self, ref: Ref, subscription: Subscription) -> None:
        if self.subs is None:
            self.subs = {}
        self.subs[ref] = subscription

    def has(self, ref: Ref, subscription: Subscription) -> bool:
        """Whether this subscription still stands."""
        return self.peer.open and self.subs is not None and self.subs.get(ref) is subscription

    def _of_channel(self, name: str) -> list[Subscription]:
        return [
            sub
            for sub in (self.subs or {}).values()
            if sub.channel is not None and sub.target == name
        ]

    def _unsubscribe(self, message: messages.Unsubscribe) -> None:
        subscription = (self.subs or {}).pop(message.ref, None)
        if subscription is None:
            raise BadFrameError("unknown_ref", "There is no such subscription.", message.ref)
        self._exit(subscription)
        self.peer.send(frame({"type": "unsubscribed", "ref": message.ref}))

    def _exit(self, subscription: Subscription) -> None:
        """Takes a subscription, which is no longer in `subs`, out of the hub."""
        hub = self.tenant.hub
        group, channel = subscription.group, subscription.channel
        if group is not None:
            group.source.remove(self.peer, group)
            if not group.source.groups:
                hub.drop(group.source)
            subscription.group = None
        elif channel is not None:
            left = self._of_channel(subscription.target)
            if not left:
                hub.leave(self.peer, channel)
                self._vanish(channel.name)
            else:
                hub.join(self.peer, channel.name, any(sub.given.own for sub in left))
                if not any(sub.given.presence for sub in left):
                    hub.absent(self.peer, channel)
                    self._vanish(channel.name)
            subscription.channel = None

    def _member(self, name: str, code: str) -> Channel:
        """The channel, when this connection has subscribed to it."""
        channel = self.tenant.hub.channel(name)
        if channel is None or self.peer not in channel.members:
            raise BadFrameError(code, "You have not subscribed to this channel.")
        return channel

    def _broadcast(self, message: messages.Broadcast) -> None:
        tenant = self.tenant
        name = message.channel
        channel = self._member(name, "broadcast_denied")
        if tenant.settings.client_broadcast == "off" and self.identity.role != "service_role":
            raise BadFrameError("broadcast_denied", "Clients do not send in this project.")
        if not tenant.rules.may("send", name, self.identity):
            raise BadFrameError("broadcast_denied", "No rule lets you send to this channel.")
        payload = bytes(message.payload)
        if len(payload) > tenant.settings.payload_bytes:
            raise BadFrameError(
                "payload_too_large",
                f"A payload has at most {tenant.settings.payload_bytes} bytes.",
            )
        event = message.event
        if event is not None and len(event) > MAX_EVENT:
            raise BadFrameError("bad_frame", f"An event has at most {MAX_EVENT} characters.")
        self._count()
        event_json = None if event is None else orjson.dumps(event)
        sender = orjson.dumps(self.identity.uid or "")
        out = broadcast_frame(channel, event_json, payload, sender)
        tenant.hub.send(channel, out, self.peer)
        nodes = self.process.nodes
        if nodes is not None and tenant.project.id in nodes.wanted:
            nodes.send(tenant.project.id, name, event_json, payload, sender)

    def _presence(self, message: messages.Presence) -> None:
        channel = self._member(message.channel, "presence_denied")
        if not self.tenant.rules.may("presence", channel.name, self.identity):
            raise BadFrameError("presence_denied", NO_PRESENCE)
        value = self._value(message.state, None)
        if self.peer not in channel.present:
            raise BadFrameError(
                "presence_denied", "Subscribe with presence before you tell of your state."
            )
        self._room_for(channel, value, None)
        self._count()
        self._appear(channel, value)

    def _count(self) -> None:
        """One message of the project's allowance."""
        tenant = self.tenant
        if not tenant.messages.take(self.process.now()):
            raise BadFrameError("rate_limited", "The project sends too many messages.")
        tenant.received += 1

    # identity

    def set_expiry(self) -> None:
        """When the sweep is to report this connection."""
        exp = self.identity.exp
        self.peer.expires = 0.0 if exp is None else exp + self.tenant.settings.token_grace_seconds

    def _token(self, message: messages.Token) -> None:
        try:
            identity, kid = self.process.verify(self.tenant, message.token)
        except ApiError as refused:
            raise BadFrameError("invalid_token", refused.message) from None
        if identity.uid != self.identity.uid or identity.role != self.identity.role:
            raise BadFrameError("invalid_token", "The token belongs to somebody else.")

        def change() -> None:
            self.identity = identity
            self.kid = kid

        self.tenant.reindex(self, change)
        self.set_expiry()
        self.review()
        self.peer.send(frame({"type": "token_refreshed", "exp": identity.exp}))

    def review(self) -> None:
        """Asks the rules again about all that this connection has: they or its identity have
        changed. What is no longer allowed ends with an error frame."""
        for ref, subscription in list((self.subs or {}).items()):
            group = subscription.group
            try:
                if subscription.given.kind == "broadcast":
                    self._review_channel(subscription, ref)
                    continue
                subscription.group = None
                self._enter(subscription, ref)
            except BadFrameError as bad:
                if self.subs is not None:
                    self.subs.pop(ref, None)
                self._exit(subscription)
                self.peer.send(error(bad.code, bad.detail, ref))
            if group is not None:
                group.source.remove(self.peer, group)
                if not group.source.groups:
                    self.tenant.hub.drop(group.source)

    def _review_channel(self, subscription: Subscription, ref: Ref) -> None:
        name = subscription.target
        if not self.tenant.rules.may("subscribe", name, self.identity):
            raise BadFrameError("channel_denied", NO_SUBSCRIBE, ref)
        if self.present and name in self.present:
            if not self.tenant.rules.may("presence", name, self.identity):
                self._vanish(name)
                if subscription.channel is not None:
                    self.tenant.hub.absent(self.peer, subscription.channel)
                self.peer.send(error("presence_denied", NO_PRESENCE, ref))

    # the end

    def close(self, reason: str, code: int) -> None:
        """Tells the client why, then closes."""
        self.peer.close(code, reason.encode(), messages.closing(reason, code))

    def ended(self) -> None:
        """The connection is closed: takes everything out of the hub."""
        subs, self.subs = self.subs or {}, None
        hub = self.tenant.hub
        for subscription in subs.values():
            group, channel = subscription.group, subscription.channel
            if group is not None:
                group.source.remove(self.peer, group)
                if not group.source.groups:
                    hub.drop(group.source)
            elif channel is not None:
                hub.leave(self.peer, channel)
        for name in list(self.present or ()):
            self._vanish(name)
        self.tenant.remove(self)


_handlers: dict[type, Any] = {
    messages.Ping: Session._ping,
    messages.Subscribe: Session._subscribe,
    messages.Unsubscribe: Session._unsubscribe,
    messages.Broadcast: Session._broadcast,
    messages.Presence: Session._presence,
    messages.Token: Session._token,
}
