"""One project inside the realtime process: its rules, its hub and the connections it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ichicore.live.hub import Channel, Hub, broadcast_frame
from ichicore.live.wire import Peer
from server.base.cors import CorsPolicy, origins
from server.base.keys import Denied, KeyRing
from server.base.project import Project
from server.realtime import settings
from server.realtime.rules import ProjectRules

if TYPE_CHECKING:
    from server.realtime.session import Session

PATIENCE = 10.0  # seconds in which changes wait for receivers that lag
PATIENCE_RATE = 0.2  # of them that come back in a second
SERVER = b'""'  # the sender of what the server publishes


class Bucket:
    """So many a second, with as many saved up as one burst may take."""

    __slots__ = ("burst", "left", "rate", "then")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.left = burst
        self.then = now

    def take(self, now: float, count: float = 1.0) -> bool:
        """Whether there is enough; takes it."""
        self.left = min(self.burst, self.left + (now - self.then) * self.rate)
        self.then = now
        if self.left < count:
            return False
        self.left -= count
        return True

    def has(self, now: float, count: float) -> bool:
        """Whether there is enough."""
        self.take(now, 0.0)
        return self.left >= count


class Tenant:
    """Made when a project is first connected to. `problem` says why its settings cannot be used:
    then nothing is received but by the secret key."""

    def __init__(self, project: Project, now: float, denied: Denied) -> None:
        """denied: the project's tokens that are refused, those from before it was made included."""
        self.hub = Hub()
        self.sessions: set[Session] = set()
        self.by_user: dict[str, set[Session]] = {}
        self.by_login: dict[str, set[Session]] = {}  # session id of the token > sockets
        self.denied = denied
        self.messages = Bucket(1, 1, now)
        self.patience = Bucket(PATIENCE_RATE, PATIENCE, now)
        self.counted = 0  # deliveries already added to the project's usage
        self.received = 0  # frames and messages taken in, since the last count
        self.use(project)
        self.messages.left = self.messages.burst

    def use(self, project: Project) -> None:
        """Takes over a project's new value. The sessions are to be asked to review theirs."""
        self.project = project
        self.ring = KeyRing(project, self.denied)
        self.cors = CorsPolicy(origins(project.settings.get("cors", {})))
        self.problem = ""
        try:
            self.settings = settings.parse(project.settings.get("realtime", {}))
        except settings.RealtimeSettingsError as error:
            self.problem = str(error)
            self.settings = settings.RealtimeSettings()
        self.rules = ProjectRules(self.settings)
        for (kind, name), source in self.hub.sources.items():
            rule = self.rules.source(kind, name)
            source.fields = None if rule is None else rule.fields
        self.kids = {key.kid for key in project.keys}
        rate = project.limits.realtime_messages
        self.messages.rate = rate
        self.messages.burst = max(rate * 2, 1)

    @property
    def most(self) -> int:
        """Sockets that the project may have at once."""
        return self.project.limits.realtime_connections

    def add(self, session: Session) -> None:
        self.sessions.add(session)
        self._index(session)

    def remove(self, session: Session) -> None:
        self.sessions.discard(session)
        self._forget(session)

    def reindex(self, session: Session, change: Any) -> None:
        """Runs `change`, which gives the session another identity."""
        self._forget(session)
        change()
        self._index(session)

    def _index(self, session: Session) -> None:
        identity = session.identity
        if identity.uid is not None:
            self.by_user.setdefault(identity.uid, set()).add(session)
        if identity.session_id is not None:
            self.by_login.setdefault(identity.session_id, set()).add(session)

    def _forget(self, session: Session) -> None:
        identity = session.identity
        for key, index in ((identity.uid, self.by_user), (identity.session_id, self.by_login)):
            if key is not None and key in index:
                index[key].discard(session)
                if not index[key]:
                    del index[key]

    def revoked(self, message: dict[str, Any]) -> list[Session]:
        """The sessions that a message of the topic TOKEN_REVOKED ends."""
        found: set[Session] = set()
        login, user = message.get("session_id"), message.get("user_id")
        if isinstance(login, str):
            found |= self.by_login.get(login, set())
        if isinstance(user, str):
            before = float(message.get("before") or float("inf"))
            found |= {
                session
                for session in self.by_user.get(user, set())
                if float(session.identity.claims.get("iat", 0)) < before
            }
        return list(found)

    def publish(
        self, names: list[str], event: bytes | None, payload: bytes, position: bytes | None = None
    ) -> int:
        """Delivers a message of the server to channels; gives how many connections it reached."""
        channels = [found for name in names if (found := self.hub.channel(name)) is not None]
        for channel in channels:
            self.hub.send(channel, broadcast_frame(channel, event, payload, SERVER, position))
        if len(channels) == 1:
            return _open(channels[0])
        reached: set[Peer] = set()
        for channel in channels:
            reached.update(peer for peer in channel.members if peer.open)
        return len(reached)


def _open(channel: Channel) -> int:
    return sum(peer.open for peer in channel.members)
