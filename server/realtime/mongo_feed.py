"""Document changes from the database's own change streams, for projects that ask for them: then
writes by others than the node are told too. One stream a project, read on where it broke off."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from ichicore.live.change import Change
from ichicore.mongo import reply
from server.base.events import Events, Lost, Regained
from server.base.listen import reason_of
from server.realtime import messages
from server.realtime.session import Session, Subscription
from server.realtime.tenant import Tenant

Told = dict[str, Any]  # the frame `subscribed`

KINDS = {"insert": "insert", "update": "update", "replace": "update", "delete": "delete"}
GONE = {136, 222, 280, 286}  # codes that say the stream cannot be resumed
RETRY = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one repeats
PAUSE = 0.01  # seconds between looks whether there is room for more changes
SETTLED_SECONDS = 60.0  # of silence, after which what was before it is certain to have been told
SELECTION_MS = 5_000


class _Invalidated(Exception):
    """The server has ended the stream, because the database was dropped."""


class Place:
    """How far has been told: all before `since`, and of that moment what is in `seen`.
    collections: which ones these are, by name."""

    def __init__(self) -> None:
        self.since: Timestamp | None = None
        self.seen: set[bytes] = set()
        self.collections: dict[str, bytes] = {}

    def begin(self, now: Timestamp | None) -> None:
        """What is after this moment is to be told."""
        if now is not None:
            self.since = Timestamp(now.time, now.inc + 1)

    def settle(self, moment: Timestamp | None) -> None:
        """There was nothing up to this moment, so that a long silence needs no long log."""
        if moment is not None and self.since is not None and moment > self.since:
            self.since, self.seen = moment, set()

    def know(self, found: dict[str, bytes]) -> bool:
        """Whether these are the collections of before; notes them. The log of others, such as those
        that a restore has made, begins anew."""
        same = all(found[name] == id for name, id in self.collections.items() if name in found)
        self.collections |= found
        return same

    def take(self, event: Any) -> bool:
        """Whether this event has not been told yet; notes that it is."""
        moment, id = event["clusterTime"], bytes(event["_id"].raw)
        if self.since is not None and (moment < self.since or id in self.seen):
            return False
        if moment != self.since:
            self.since, self.seen = moment, set()
        self.seen.add(id)
        return True


class DocumentFeed:
    """The change stream of one project, read from when it is made."""

    def __init__(
        self, tenant: Tenant, process: Any, events: Events, place: Place | None = None
    ) -> None:
        """place: where another stream of the project was ended."""
        self.project = tenant.project
        self.names = frozenset(tenant.rules.collections)
        self.process = process
        self.events = events
        self.live = False
        self.owed: list[tuple[Session, Subscription, Told]] = []
        self.place = place or Place()
        self._count = 0
        self._moment: Timestamp | None = None  # of the event told last
        self._number = 0  # among those of one moment
        self._task = asyncio.get_running_loop().create_task(self._run(), name="documents")

    def same(self, tenant: Tenant) -> bool:
        """Whether this is still the stream that the tenant wants."""
        project = tenant.project
        return (
            project.mongo_url == self.project.mongo_url
            and frozenset(tenant.rules.collections) == self.names
        )

    def acknowledge(self, session: Session, subscription: Subscription, told: Told) -> None:
        """Answers a subscription once changes are being read."""
        self.owed.append((session, subscription, told))
        if self.live:
            self.answer()

    def cancel(self) -> None:
        """Nothing is told any more."""
        self._task.cancel()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        while True:
            assert self.project.mongo_url is not None
            client: AsyncMongoClient[Any] = AsyncMongoClient(
                self.project.mongo_url, document_class=RawBSONDocument, appname="ichibase realtime",
                serverSelectionTimeoutMS=SELECTION_MS, maxPoolSize=2,
            )  # fmt: skip
            try:
                await self._read(client)
            except _Invalidated:
                self._gap()
            except OperationFailure as error:
                if error.code in GONE and self.place.since is not None:
                    self._gap()
                    continue
                failures = self._failed(error, failures)
            except (PyMongoError, OSError) as error:
                failures = self._failed(error, failures)
            finally:
                self.live = False
                await client.close()
            await asyncio.sleep(RETRY[max(0, min(failures, len(RETRY)) - 1)])

    def _gap(self) -> None:
        """The stream cannot go on where it was: the next one begins with what is new then."""
        self.place = Place()
        self.process.notice(
            self.project.id, "mongo", "feed_gap",
            "Changes may have been missed: read again what you show.",
        )  # fmt: skip

    def _failed(self, error: Exception, failures: int) -> int:
        what = f"the documents of project {self.project.slug}"
        if self._count or not failures:
            self.events.emit(Lost(what, reason_of(error)))
            self._count = 0
            return 1
        return failures + 1

    async def _read(self, client: AsyncMongoClient[Any]) -> None:
        """Reads one cursor to its end. The driver's own change streams are not used: they resume by
        a token that means another place in a log whose end a crash has taken away."""
        options: dict[str, Any] = {
            "fullDocument": "updateLookup", "fullDocumentBeforeChange": "whenAvailable",
        }  # fmt: skip
        if self.place.since is not None:
            options["startAtOperationTime"] = self.place.since
        names = {"$in": sorted(self.names)}
        wanted = {"$or": [
            {"ns.coll": names, "operationType": {"$in": sorted(KINDS)}},
            {"to.coll": names, "operationType": "rename"},
        ]}  # fmt: skip
        if not self.place.know(await self._collections(client)) and self.place.since is not None:
            raise _Invalidated
        async with client.start_session() as session:
            cursor = await client.get_default_database().aggregate(
                [{"$changeStream": options}, {"$match": wanted}],
                session=session, maxAwaitTimeMS=1_000,
            )  # fmt: skip
            async with cursor:
                if self.place.since is None:
                    self.place.begin(session.operation_time)
                self._begin()
                read = (time.monotonic(), session.operation_time)
                while True:
                    event = await cursor.try_next()
                    if event is None:
                        if not cursor.alive:
                            raise _Invalidated
                        if time.monotonic() - read[0] > SETTLED_SECONDS:
                            self.place.settle(read[1])
                            read = (time.monotonic(), session.operation_time)
                        continue
                    read = (time.monotonic(), session.operation_time)
                    if self.place.take(event):
                        self._count += 1
                        self._tell(event)
                        if event["ns"]["coll"] not in self.place.collections:
                            self.place.know(await self._collections(client))
                        while not self.process.has_room(self.project.id):
                            await asyncio.sleep(PAUSE)

    async def _collections(self, client: AsyncMongoClient[Any]) -> dict[str, bytes]:
        """The ids of those that are read, where the server gives them any."""
        wanted = {"name": {"$in": sorted(self.names)}}
        found = await client.get_default_database().list_collections(filter=wanted)
        listed = [one async for one in found]
        return {one["name"]: bytes(one["info"]["uuid"]) for one in listed if "uuid" in one["info"]}

    def _begin(self) -> None:
        self.live = True
        self.answer()
        self.events.emit(Regained(f"the documents of project {self.project.slug}"))

    def answer(self) -> None:
        """Tells those who wait that they have subscribed."""
        owed, self.owed = self.owed, []
        for session, subscription, told in owed:
            if session.has(told["ref"], subscription):
                session.peer.send(messages.frame(told))

    def _tell(self, event: Any) -> None:
        if event["operationType"] == "rename":  # another collection in its place, as by a restore
            raise _Invalidated
        kind = KINDS.get(event["operationType"])
        name = event["ns"]["coll"]
        if kind is None or name not in self.names:
            return
        record, old = event.get("fullDocument"), event.get("fullDocumentBeforeChange")
        known = old is not None
        if kind == "delete":
            record = event["documentKey"]
            old = record if old is None else old
        elif record is None:
            return  # it was deleted before it could be looked up: that is told next
        self.process.change(
            self.project.id,
            Change(
                "mongo", name, kind, record_json=reply.to_json(record.raw),
                old_json=None if old is None else reply.to_json(old.raw),
                position=self._position(event["clusterTime"]),
                partial=kind == "delete" and not known,
            ),
        )  # fmt: skip

    def _position(self, moment: Timestamp) -> str:
        """The server's own order, which is the same for all nodes that read it."""
        self._number = self._number + 1 if moment == self._moment else 1
        self._moment = moment
        return f"{moment.time:08x}{moment.inc:08x}-{self._number:08x}"
