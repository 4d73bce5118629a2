from collections.abc import Iterable
from typing import Any, Protocol

from ichicore.live.wire import Peer

class Decider(Protocol):
    def test(self, document: dict[str, Any], old: dict[str, Any] | None, partial: int) -> bool: ...

WAIT: int

def event_bits(events: Iterable[str]) -> int: ...
def broadcast_frame(
    channel: Channel,
    event: bytes | None,
    payload: bytes,
    sender: bytes,
    position: bytes | None = None,
) -> bytes: ...

class Channel:
    name: str
    members: dict[Peer, bool]
    present: dict[Peer, tuple[bytes, bytes]]
    remote: dict[bytes, bytes]
    present_size: int
    def __init__(self, name: str) -> None: ...
    def snapshot(self) -> bytes: ...

class Group:
    key: object
    source: Source
    events: int
    rule: Decider | None
    filter: Decider | None
    whole: bool
    members: dict[Peer, int]

class Source:
    kind: str
    name: str
    fields: Any
    groups: dict[object, Group]
    def __init__(self, kind: str, name: str, fields: Any = None) -> None: ...
    def add(
        self,
        peer: Peer,
        key: object,
        events: int,
        rule: Decider | None = None,
        filter: Decider | None = None,
        whole: bool = False,
        terms: tuple[tuple[str, Any], ...] | None = None,
    ) -> Group: ...
    def takes(self, terms: tuple[tuple[str, Any], ...] | None) -> bool: ...
    def remove(self, peer: Peer, group: Group) -> None: ...

class Hub:
    channels: dict[str, Channel]
    sources: dict[tuple[str, str], Source]
    changes: int
    tests: int
    faults: int
    delivered: int
    last_fault: BaseException | None
    weight: int
    @property
    def behind(self) -> int: ...
    def channel(self, name: str) -> Channel | None: ...
    def join(self, peer: Peer, name: str, own: bool = False) -> Channel: ...
    def leave(self, peer: Peer, channel: Channel) -> None: ...
    def send(self, channel: Channel, frame: bytes, sender: Peer | None = None) -> int: ...
    def appear(self, peer: Peer, channel: Channel, key: bytes, value: bytes) -> int: ...
    def absent(self, peer: Peer, channel: Channel) -> None: ...
    def elsewhere(self, name: str, key: bytes, value: bytes | None) -> None: ...
    def source(self, kind: str, name: str, fields: Any = None) -> Source: ...
    def drop(self, source: Source) -> None: ...
    def put(self, change: Any) -> int: ...
    @property
    def has_room(self) -> bool: ...
    def pump(self, most: int = 2000, now: float = -1.0) -> int: ...
