from typing import Any

from ichicore.mongo.parts import Caps, Command
from ichicore.mongo.plan import Plan

class Ready:
    """A request that is one command. parsed: of a write. seconds: that it may take. session: what
    numbers a write. told: whether what it changed is."""

    collection: str
    command: bytes
    parsed: Command | None
    plan: Plan
    seconds: float
    session: Any
    told: bool
    writes: bool
    def __init__(self, plan: Plan, collection: str, seconds: float) -> None: ...

class Place:
    """Where requests of one path go. known: identities whose reads are made at once."""

    operation: str
    collection: str
    @property
    def known(self) -> int: ...
    def __init__(self, operation: str, collection: str) -> None: ...
    def keep(self, read: PlainRead) -> None:
        """Reads of its identity are made by it from now on."""

class PlainRead:
    """What becomes of the bodies of one identity's reads that have nothing but a filter.

    elements: the members of the command for the empty filter, which is what `plan` has. rule: the
    filter of the identity's rule as BSON, EMPTY for none. tail: see message.sealed.
    """

    def __init__(
        self,
        identity: object,
        caps: Caps,
        plan: Plan,
        collection: str,
        elements: bytes,
        rule: bytes,
        seconds: float,
        tail: bytes,
    ) -> None: ...
    def command(self, body: bytes) -> bytes | None:
        """The command of a body; None of one that has more than a filter. ApiError as parse's."""
