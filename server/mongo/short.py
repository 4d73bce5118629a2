"""What the short way asks of one project: whether a request is one command, and what becomes of the
reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from ichicore.errors import ApiError
from ichicore.mongo import Caps, Plan, apply, check_collection, message, parse, reply
from ichicore.mongo.grammar import INSERTS, READS
from ichicore.mongo.parts import EMPTY
from ichicore.mongo.plain import Place, PlainRead, Ready
from ichicore.mongo.way import MAX_BODY
from ichicore.rules import Decision
from server.base.project import Identity, Project
from server.mongo import single
from server.mongo.access import SERVICE, asking, decide, role_of
from server.mongo.execute import Event, Executor, written
from server.mongo.room import Room
from server.mongo.rulebook import Book
from server.mongo.store import Store, Unanswered
from server.mongo.transaction import MAJORITY

PLAIN = frozenset({"find", "findOne", "count"})
FILTER = frozenset({"filter"})
OPERATIONS = frozenset((*READS, *INSERTS, *single.CHANGES, *single.DELETES))


class Guide:
    """Of one project as it is at one revision. Its methods may be called from any thread but for
    answer() and conclude(), which are the loop's."""

    def __init__(self, room: Room, project: Project, store: Store, book: Book) -> None:
        self.room = room
        self.project = project
        self.store = store
        self.book = book
        self.give_back = store.give_back
        self.kept = store.kept
        self._caps: dict[bool, Caps] = {one: room.caps(book, one) for one in (False, True)}
        self._seconds = book.operation_ms / 1000
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _disk(self) -> bool:
        return self.project.tier != "free"

    def place(self, path: str) -> Place | None:
        """Where a path leads, if it may go the short way."""
        parts = path.split("/")
        if len(parts) != 5 or parts[3] not in OPERATIONS:
            return None
        try:
            check_collection(parts[4])
        except ApiError:
            return None
        return Place(parts[3], parts[4])

    def prepare(self, place: Place, body: bytes, identity: Identity) -> Ready | None:
        """None for what takes the general way; so does what this refuses."""
        operation, collection = place.operation, place.collection
        if len(body) > self.project.limits.document_body:
            return None
        role = role_of(identity)
        caps = self._caps[role == SERVICE]
        command = parse(operation, body, caps)
        who = asking(role, identity)
        decision = decide(self.book, command, collection, who)
        (plan,) = apply(command, decision)
        ready = Ready(plan, collection, self._seconds)
        store = self.store
        if operation in READS:
            elements = single.reading(plan, collection, self._disk)
            if operation in PLAIN and command.spans.keys() <= FILTER and not who.timed:
                self._keep(place, identity, caps, plan, decision)
        else:
            ready.parsed = command
            told = collection in self.book.realtime
            growing = operation not in single.DELETES
            if store.known is None or not single.is_single(plan, told):
                return None
            if growing and not self.room.quota.fits(self.project):
                return None
            ready.writes = True
            ready.told = told
            elements = single.writing(plan, collection, command.ordered) + MAJORITY
            ready.session = store.session()
            if ready.session is not None:
                elements = ready.session.stamp(elements)
                ready.session.sent_to = store.server
        ready.command = message.sealed(elements, self._seconds, store.tail)
        return ready

    def _keep(
        self, place: Place, identity: Identity, caps: Caps, plan: Plan,
        decision: Decision | dict[tuple[str, bool], Decision],
    ) -> None:  # fmt: skip
        """What follows for this identity's reads that have nothing but a filter."""
        if isinstance(decision, dict) or decision.read is not None:
            return
        if self.project.limits.document_body < MAX_BODY:
            return
        plan = msgspec.structs.replace(plan, filter=EMPTY)
        elements = single.reading(plan, place.collection, self._disk)
        rule = EMPTY if decision.filter is None else decision.filter.bson
        place.keep(PlainRead(
            identity, caps, plan, place.collection, elements, rule, self._seconds, self.store.tail
        ))  # fmt: skip

    def answer(self, ready: Ready, found: bytes) -> bytes | None:
        """The answer that a reply becomes; None when it is not so simple."""
        if ready.writes:
            made = single.quickly(ready.plan, found)
            if made is not None:
                self._done(ready)
            return made
        if not reply.succeeded(found) or single.is_open(ready.plan, found):
            return None
        return single.read(ready.plan, (found,))

    def conclude(
        self,
        ready: Ready,
        found: bytes,
        done: Callable[[bytes], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Brings a request to its end whose reply is not so simple. found: b"" for a write whose
        reply did not come."""
        task = asyncio.get_running_loop().create_task(self._conclude(ready, found, done, failed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _conclude(
        self,
        ready: Ready,
        found: bytes,
        done: Callable[[bytes], None],
        failed: Callable[[Exception], None],
    ) -> None:
        try:
            made = await (self._write(ready, found) if ready.writes else self._read(ready, found))
        except Exception as error:
            failed(error)
        else:
            done(made)

    async def _read(self, ready: Ready, found: bytes) -> bytes:
        """The answer to a read that failed or has more."""
        store = self.store
        store.succeeded(found)
        executor = Executor(store, ready.collection, ready.seconds, self.book.max_docs, self._disk)
        return single.read(ready.plan, await executor.rest(found))

    async def _write(self, ready: Ready, found: bytes) -> bytes:
        session, ready.session = ready.session, None
        if session is not None:
            end = time.monotonic() + ready.seconds
            found = await self.store.repeat(ready.command, session, end, found)
        elif not found:
            raise Unanswered()
        assert ready.parsed is not None
        made = single.written(ready.parsed, ready.plan, written(found, self.store))
        self._done(ready)
        return made

    def _done(self, ready: Ready) -> None:
        """A write has succeeded."""
        if ready.session is not None:
            self.store.kept(ready.session)
            ready.session = None
        self.room.quota.written(self.project, self.store)
        if ready.told:
            events = [Event("insert", document, None) for document in ready.plan.documents]
            self.room.tell(self.project.id, ready.collection, events)
