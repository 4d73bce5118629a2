"""The realtime process of a node: its connections, its projects, and what others tell it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ichicore.errors import ApiError
from ichicore.live.change import Change
from ichicore.live.hub import WAIT
from ichicore.live.wire import Peer, Wire
from server.base.context import Directory
from server.base.events import Events, Failed, Noted
from server.base.hosts import HostRule, unknown
from server.base.keys import Denied, forget, revoke
from server.base.metrics import LIVE
from server.base.processor import FULL
from server.base.project import Identity, Project
from server.base.usage import Usage
from server.realtime import handshake, messages
from server.realtime.nodes import Nodes
from server.realtime.pace import Paces
from server.realtime.session import EXPIRED, REVOKED, Session, Subscription
from server.realtime.streams import DocumentFeeds, notice
from server.realtime.tenant import Tenant

FLUSH = 160  # connections written to before the loop may do something else, about a millisecond
PUMP = 1_000  # decisions and frames before the loop may do something else
PART = 100  # the same, of a project of less than a full weight
WAIT_SECONDS = 0.002  # between looks at receivers that lag
MOST_PATIENT = 10_000  # changes: documents come from workers that cannot be held up
SWEEP_SECONDS = 1.0
LINGER_TICKS = 30  # between looks at streams of projects without sockets
HELD_SECONDS = 20  # that a request waits for its project
PACKETS = 64  # connections of a worker that are taken before the loop may do something else
FULL_SECONDS = 0.5  # without accepting, when there is no room for another connection
SHUTDOWN = 4000
BACKLOG = 4096


class Process:
    """The handler of a Wire. feeds: starts and stops what brings changes (server.realtime.feeds).
    ready: tells whether the projects have been read."""

    def __init__(
        self,
        directory: Directory,
        hosts: HostRule,
        events: Events,
        usage: Usage | None,
        ready: Callable[[], bool],
        feeds: Any = None,
        **options: int,
    ) -> None:
        self.directory = directory
        self.hosts = hosts
        self.events = events
        self.usage = usage
        self.ready = ready
        self.connected: Callable[[], bool] = lambda: True  # with the control database
        self.feeds = feeds
        self.streams: DocumentFeeds | None = None
        self.nodes: Nodes | None = None
        self.wire = Wire(self, max_frames=500, **options)
        self.tenants: dict[str, Tenant] = {}  # by project id
        self.denied: dict[str, Denied] = {}  # by project id, connected to or not
        self.now = time.monotonic
        self.accepted = 0
        self.refused = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[socket.socket] = []
        self._channels: set[socket.socket] = set()  # of workers
        self._sweeper: asyncio.Task[None] | None = None
        self._pumping: set[str] = set()
        self._moment = 0  # of the documents told last, nanoseconds
        self.wake_project: Callable[[str], Awaitable[Any]] | None = None
        self.look_for: Callable[[str], Awaitable[Any]] | None = None
        self.paces = Paces()
        self._held: set[asyncio.Task[None]] = set()
        directory.on_change(self._changed)

    # listening

    def start(self) -> None:
        """Begins, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.wire.fileno(), self._ready)
        self.wire.sweep(int(self.now()), time.time())
        self._sweeper = self._loop.create_task(self._sweep(), name="sweep")

    def listen(self, listener: socket.socket) -> None:
        """Takes the connections of a socket that listens; it is closed with the process."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._watch(listener)

    def _watch(self, listener: socket.socket) -> None:
        assert self._loop is not None
        if listener.fileno() >= 0:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            self.wire.accept(listener.fileno())
        except OSError as error:
            assert self._loop is not None
            self.events.emit(
                Noted("no room for more connections", errno.errorcode[error.errno or 0])
            )
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(FULL_SECONDS, self._watch, listener)

    def listen_to_workers(self, listener: socket.socket) -> None:
        """Takes what workers hand over at a socket of packets: each brings a request and the
        connection that it came on."""
        listener.setblocking(False)
        self._listeners.append(listener)
        assert self._loop is not None
        self._loop.add_reader(listener.fileno(), self._accept_worker, listener)

    def _accept_worker(self, listener: socket.socket) -> None:
        assert self._loop is not None
        with contextlib.suppress(OSError):
            channel, _ = listener.accept()
            channel.setblocking(False)
            self._channels.add(channel)
            self._loop.add_reader(channel.fileno(), self._take, channel)

    def _take(self, channel: socket.socket) -> None:
        for _ in range(PACKETS):
            try:
                head, found, _, _ = socket.recv_fds(channel, handshake.MAX_HEAD + 1, 1)
            except BlockingIOError:
                return
            except OSError:
                head, found = b"", []
            if not head and not found:
                assert self._loop is not None
                self._loop.remove_reader(channel.fileno())
                self._channels.discard(channel)
                channel.close()
                return
            for descriptor in found:  # none, when this process has no room for another one
                with contextlib.suppress(OSError):
                    self.wire.take(descriptor, head)

    async def stop(self, seconds: float = 2.0) -> None:
        """Tells all clients, gives them a moment to take it in, ends."""
        assert self._loop is not None
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener.fileno())
                listener.close()
        for number, peer in enumerate(list(self.wire.peers)):
            if isinstance(peer.owner, Session):
                peer.owner.close("shutdown", SHUTDOWN)
            if number % 500 == 499:
                await asyncio.sleep(0)
        deadline = self.now() + seconds
        while self.wire.peers and self.now() < deadline:
            await asyncio.sleep(0.02)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        if self.feeds is not None:
            await self.feeds.stop()
        if self.streams is not None:
            await self.streams.stop()
        if self.nodes is not None:
            await self.nodes.stop()
        self._loop.remove_reader(self.wire.fileno())
        for channel in self._channels:
            self._loop.remove_reader(channel.fileno())
            channel.close()
        self.wire.close_all()

    # the handler of the Wire

    def _ready(self) -> None:
        self.wire.ready()

    def wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self.wire.flush(FLUSH):
            assert self._loop is not None
            self._loop.call_soon(self._flush)

    def request(self, peer: Peer, head: bytes) -> None:
        self._attempt(peer, lambda: self._serve(peer, head))

    def _serve(self, peer: Peer, head: bytes) -> None:
        """Answers what asks for the process's state, opens a socket for the rest. ApiError."""
        if len(head) > handshake.MAX_HEAD:
            raise ApiError(431, "headers_too_large", "The request's headers are too large.")
        upgrade = handshake.Upgrade(head)
        if upgrade.path in ("/healthz", "/readyz"):
            ready = upgrade.path == "/healthz" or (self.ready() and self.connected())
            answer = {"status": "ok"}
            if not ready:
                answer = {"code": "unavailable", "detail": "Starting, or the database is away."}
            peer.refuse(handshake.answer(200 if ready else 503, answer))
            return
        self._open(peer, upgrade, not peer.local)

    def _attempt(self, peer: Peer, serve: Callable[[], None]) -> None:
        """Answers a request, whatever goes wrong."""
        try:
            serve()
        except ApiError as error:
            self.refused += 1
            peer.refuse(handshake.refusal(error))
        except Exception:
            self._fault("opening a socket")
            peer.refuse(
                handshake.answer(
                    500, {"code": "internal", "detail": "The server could not serve this request."}
                )
            )

    def _open(self, peer: Peer, upgrade: handshake.Upgrade, wait: bool) -> None:
        """wait: for the project to be found or awake, and for its turn; else it is so already."""
        if upgrade.method != "GET":
            raise ApiError(405, "method_not_allowed", "Sockets are opened with GET.")
        if upgrade.path != "/realtime":
            raise ApiError(404, "not_found", "There is nothing at this path.")
        if not self.ready():
            raise ApiError(
                503, "unavailable", "The server is starting.", headers=(("retry-after", "1"),)
            )
        slug = self.hosts.slug(upgrade.headers.get("host", ""))
        project = None if slug is None else self.directory.get(slug)
        if project is None:
            if slug is None or not wait or self.look_for is None:
                raise unknown()
            self._later(peer, upgrade, self.look_for(slug))
            return
        if project.state != "active":
            self._not_active(project, peer, upgrade, wait)
            return
        if wait:
            delay = self.paces.opening(project.id, project.limits)
            if delay is None:
                raise ApiError(
                    429, "rate_limited", "The project opens too many sockets.",
                    headers=(("retry-after", "5"),),
                )  # fmt: skip
            if delay:
                self._later(peer, upgrade, asyncio.sleep(delay))
                return
        tenant = self.tenant(project)
        origin = upgrade.headers.get("origin")
        if origin is not None and not tenant.cors.allows(origin):
            raise ApiError(403, "forbidden", "This origin is not in the project's list.")
        identity, kid = self.verify(tenant, upgrade.token)
        response = upgrade.accept()
        if len(tenant.sessions) >= tenant.most:
            raise ApiError(
                429, "quota_exceeded", "The project has too many sockets.",
                headers=(("retry-after", "5"),),
            )  # fmt: skip
        session = Session(self, tenant, peer, identity, kid)
        peer.upgrade(response, session)
        tenant.add(session)
        self.accepted += 1
        if self.nodes is not None:
            self.nodes.want(project.id)
        if self.feeds is not None:
            self.feeds.wanted(tenant)
        self._review_stream(tenant)

    def _not_active(
        self, project: Project, peer: Peer, upgrade: handshake.Upgrade, wait: bool
    ) -> None:
        """Refuses a socket, or wakes a sleeping project for it."""
        if project.state == "suspended":
            raise ApiError(403, "project_suspended", "This project is suspended.")
        if wait and project.state in ("sleeping", "outdated") and self.wake_project is not None:
            self._later(peer, upgrade, self.wake_project(project.slug))
            return
        raise ApiError(
            503, "project_waking", "The project was asleep and is waking; try again in a moment.",
            headers=(("retry-after", "1"),),
        )  # fmt: skip

    def _later(self, peer: Peer, upgrade: handshake.Upgrade, first: Awaitable[Any]) -> None:
        """Opens a socket once something has been done; its client waits."""
        assert self._loop is not None
        peer.hold(HELD_SECONDS)

        async def go_on() -> None:
            try:
                await first
            except Exception as error:
                self.events.emit(Noted("a socket's project was not read", str(error)))
            if peer.waiting:
                self._attempt(peer, lambda: self._open(peer, upgrade, False))

        task = self._loop.create_task(go_on(), name="open a socket")
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    def message(self, peer: Peer, data: bytes, text: bool) -> None:
        session: Session = peer.owner
        project = session.tenant.project
        if delay := self.paces.frame(project.id, project.limits):
            self._hold(session, delay)
        try:
            session.receive(data, text)
        except Exception:
            self._fault("handling a frame")
            peer.send(messages.error("internal", "The server could not handle this frame."))

    def _hold(self, session: Session, delay: float) -> None:
        """Reads no more of a socket for so many seconds; the last call counts."""
        assert self._loop is not None
        if not session.held_until:
            session.peer.hold()
            self._loop.call_later(delay, self._read_on, session)
        session.held_until = self.now() + delay

    def _read_on(self, session: Session) -> None:
        assert self._loop is not None
        left = session.held_until - self.now()
        if left > 0.001:
            self._loop.call_later(left, self._read_on, session)
            return
        session.held_until = 0.0
        session.peer.go_on()

    def closed(self, peer: Peer, code: int) -> None:
        session = peer.owner
        if isinstance(session, Session):
            try:
                session.ended()
            except Exception:
                self._fault("ending a connection")

    def slow(self, peer: Peer) -> None:
        if isinstance(peer.owner, Session):
            peer.owner.close("slow_consumer", 1013)

    def _fault(self, doing: str) -> None:
        self.events.emit(Failed(doing, traceback.format_exc()))

    # projects and identities

    def tenant(self, project: Project) -> Tenant:
        """What is kept for a project, made on first use."""
        found = self.tenants.get(project.id)
        if found is None:
            denied = self.denied.setdefault(project.id, Denied())
            found = self.tenants[project.id] = Tenant(project, self.now(), denied)
            if found.problem:
                self._problem(found)
        return found

    def _problem(self, tenant: Tenant) -> None:
        self.events.emit(
            Noted(f"the realtime settings of {tenant.project.slug} cannot be used", tenant.problem)
        )

    def verify(self, tenant: Tenant, token: str) -> tuple[Identity, str | None]:
        """The identity of a key or token, which may have expired within the project's grace, and
        the id of the key that signed it. ApiError 401."""
        now = time.time()
        bare = token.removeprefix("ich_pub_").removeprefix("ich_admin_")
        try:
            identity = tenant.ring.token(token, now)
        except ApiError as error:
            if error.code != "token_expired":
                raise
            exp = _part(bare, 1).get("exp")
            if not isinstance(exp, int | float) or exp + tenant.settings.token_grace_seconds < now:
                raise
            identity = tenant.ring.token(token, float(exp))
        kid = _part(bare, 0).get("kid")
        return identity, kid if isinstance(kid, str) else None

    def _changed(self, project: Project | None, slug: str) -> None:
        if project is None or project.state != "active":
            reason = "project_removed"
            if project is not None:
                reason = "sleep" if project.state == "sleeping" else f"project_{project.state}"
            for tenant in [t for t in self.tenants.values() if t.project.slug == slug]:
                for session in list(tenant.sessions):
                    session.close(reason, SHUTDOWN)
                del self.tenants[tenant.project.id]
                if self.nodes is not None:
                    self.nodes.unwant(tenant.project.id)
                if self.feeds is not None:
                    self.feeds.unwanted(tenant)
                if self.streams is not None:
                    self.streams.end(tenant.project.id)
            if project is None:
                forget(self.denied, {one.id for one in self.directory.all()})
            return
        known = self.tenants.get(project.id)
        if known is None:
            return
        before = known.kids
        known.use(project)
        taken = bool(before - known.kids)  # a key that signed tokens counts no longer
        if known.problem:
            self._problem(known)
        for session in list(known.sessions):
            if session.kid not in known.kids if session.kid is not None else taken:
                session.close("token_revoked", REVOKED)
            else:
                session.set_expiry()
                session.review()
        if self.feeds is not None:
            self.feeds.changed(known)
        self._review_stream(known)

    def revoked(self, message: dict[str, Any]) -> None:
        """A message of the topic TOKEN_REVOKED: its sockets are cut without grace."""
        project = message.get("project")
        if not isinstance(project, str):
            return
        revoke(self.denied.setdefault(project, Denied()), message)
        tenant = self.tenants.get(project)
        if tenant is None:
            return
        for session in tenant.revoked(message):
            session.close("token_revoked", REVOKED)

    # changes and messages

    def subscribed(
        self, session: Session, subscription: Subscription, told: dict[str, Any]
    ) -> None:
        """Acknowledges a subscription of rows or documents, once changes are being read."""
        stream = None
        if subscription.given.kind == "mongo":
            stream = self._review_stream(session.tenant)
        if stream is not None:
            stream.acknowledge(session, subscription, told)
        elif self.feeds is not None and subscription.given.kind == "postgres":
            self.feeds.acknowledge(session, subscription, told)
        else:
            session.peer.send(messages.frame(told))

    def has_room(self, project_id: str) -> bool:
        """Whether a feed may bring more changes, or should wait until some have been told."""
        tenant = self.tenants.get(project_id)
        return tenant is None or tenant.hub.has_room

    def change(self, project_id: str, change: Any) -> None:
        """One change of a row or document, to be delivered after those before it."""
        tenant = self.tenants.get(project_id)
        if tenant is None:
            return
        if tenant.hub.put(change) and project_id not in self._pumping:
            self._pumping.add(project_id)
            assert self._loop is not None
            self._loop.call_soon(self._pump, project_id)

    def _pump(self, project_id: str) -> None:
        """Changes wait for receivers that have much to take, as long as that happens rarely; else
        those that are slow are let go. Those of a project of less than a full weight are delivered
        at its pace, in small parts."""
        assert self._loop is not None
        tenant = self.tenants.get(project_id)
        more, delay = 0, 0.0
        if tenant is not None:
            now = self.now()
            limits, before = tenant.project.limits, tenant.hub.delivered
            few = tenant.hub.behind <= MOST_PATIENT
            light = few and limits.cpu_weight < FULL
            patient = few and tenant.patience.has(now, WAIT_SECONDS)
            try:
                more = tenant.hub.pump(PART if light else PUMP, now if patient else -1.0)
            except Exception:
                more = 1  # the next change is another one
                self._fault("delivering a change")
            if more == WAIT:
                tenant.patience.take(now, WAIT_SECONDS)
            if light and tenant.hub.delivered > before:
                delay = self.paces.deliveries(project_id, limits, tenant.hub.delivered - before)
        if more == WAIT:
            delay = max(delay, WAIT_SECONDS)
        if delay:
            self._loop.call_later(delay, self._pump, project_id)
        elif more:
            self._loop.call_soon(self._pump, project_id)
        else:
            self._pumping.discard(project_id)

    def may_publish(self, project_id: str) -> bool:
        """Takes one message of the project's allowance."""
        tenant = self.tenants.get(project_id)
        if tenant is None and self.nodes is not None and project_id in self.nodes.wanted:
            for project in self.directory.all():  # only other nodes have sockets of it
                if project.id == project_id and project.state == "active":
                    tenant = self.tenant(project)
        return tenant is None or tenant.messages.take(self.now())

    def publish(
        self,
        project_id: str,
        channels: list[str],
        event: bytes | None,
        payload: bytes,
        position: bytes | None = None,
    ) -> int:
        """A message of the server to channels; event, payload, position: JSON. Gives how many
        connections it reached."""
        tenant = self.tenants.get(project_id)
        if tenant is None:
            return 0
        tenant.received += 1
        return tenant.publish(channels, event, payload, position)

    def documents(self, message: dict[str, Any]) -> None:
        """Changed documents that a worker tells of, unless the project's change stream does."""
        name, project = message["collection"], message["project"]
        tenant = self.tenants.get(project)
        told = [
            Change(
                "mongo", name, event["event"], record=event.get("record"), old=event.get("old"),
                position=self.document_position(),
            )
            for event in message["events"]
        ]  # fmt: skip
        if self.nodes is not None:
            self.nodes.documents(project, name, told)
        if tenant is not None and not DocumentFeeds.applies(tenant):
            for change in told:
                self.change(project, change)

    def document_position(self) -> str:
        """Texts that sort as documents were told of."""
        self._moment = max(time.time_ns(), self._moment + 1)
        return f"{self._moment:016x}-00000001"

    def notice(self, project_id: str, kind: str, code: str, detail: str) -> None:
        """An error frame to all that have subscribed to sources of a kind."""
        tenant = self.tenants.get(project_id)
        if tenant is not None:
            notice(tenant, kind, code, detail)

    def _review_stream(self, tenant: Tenant) -> Any:
        return None if self.streams is None else self.streams.review(tenant)

    # once a second

    async def _sweep(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            ticks += 1
            try:
                for peer in self.wire.sweep(int(self.now()), time.time()):
                    if isinstance(peer.owner, Session):
                        peer.owner.close("token_expired", EXPIRED)
                self._count()
                if self.nodes is not None:
                    self.nodes.review(self.tenants)
                if ticks % LINGER_TICKS == 0:
                    for tenant in self.tenants.values():
                        self._review_stream(tenant)
            except Exception:
                self._fault("the sweep")

    def _count(self) -> None:
        for project_id, tenant in list(self.tenants.items()):
            delivered = tenant.hub.delivered
            total = delivered - tenant.counted + tenant.received
            tenant.counted, tenant.received = delivered, 0
            if tenant.sessions and self.usage is not None:
                self.usage.add(
                    project_id, "realtime_seconds", round(len(tenant.sessions) * SWEEP_SECONDS)
                )
            if total and self.usage is not None:
                self.usage.add(project_id, "realtime_messages", total)
            if tenant.hub.last_fault is not None:
                fault, tenant.hub.last_fault = tenant.hub.last_fault, None
                self.events.emit(
                    Noted(f"a rule of {tenant.project.slug} could not be decided", str(fault))
                )

    def gauges(self) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        """For server.base.metrics."""
        hubs = [tenant.hub for tenant in self.tenants.values()]
        return [
            ("ichibase_realtime_connections", (), len(self.wire.peers)),
            ("ichibase_realtime_channels", (), sum(len(hub.channels) for hub in hubs)),
            ("ichibase_realtime_waiting_changes", (), sum(hub.behind for hub in hubs)),
            *(
                (LIVE, (("project", t.project.slug), ("kind", "realtime_connections")), n)
                for t in self.tenants.values()
                if (n := len(t.sessions))
            ),
        ]


def _part(token: str, number: int) -> dict[str, Any]:
    """A part of a JWT, not verified."""
    with contextlib.suppress(ValueError, IndexError):
        text = token.split(".")[number]
        found = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(found, dict):
            return found
    return {}


def listening(host: str, port: int) -> socket.socket:
    """A TCP socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.listen(BACKLOG)
    return made
