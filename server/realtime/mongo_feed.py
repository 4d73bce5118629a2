"""Document changes from the database's own change streams, for projects that ask for them: then
writes by others than the node are told too. One stream a project, resumed where it broke off."""

from __future__ import annotations

import asyncio
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from ichicore.live.change import Change
from ichicore.live.wire import Peer
from ichicore.mongo import reply
from server.base.events import Events, Lost, Regained
from server.base.listen import reason_of
from server.realtime.tenant import Tenant

KINDS = {"insert": "insert", "update": "update", "replace": "update", "delete": "delete"}
GONE = {136, 222, 280, 286}  # codes that say the stream cannot be resumed
RETRY = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one repeats
MOST_WAITING = 5_000  # changes that wait for delivery before the stream is read on
PAUSE = 0.01
SELECTION_MS = 5_000


class DocumentFeed:
    """The change stream of one project, read from when it is made."""

    def __init__(self, tenant: Tenant, process: Any, events: Events) -> None:
        self.project = tenant.project
        self.names = frozenset(tenant.rules.collections)
        self.process = process
        self.events = events
        self.live = False
        self._owed: list[tuple[Peer, bytes]] = []
        self._token: Any = None
        self._count = 0
        self._task = asyncio.get_running_loop().create_task(self._run(), name="documents")

    def same(self, tenant: Tenant) -> bool:
        """Whether this is still the stream that the tenant wants."""
        project = tenant.project
        return (
            project.mongo_url == self.project.mongo_url
            and frozenset(tenant.rules.collections) == self.names
        )

    def acknowledge(self, peer: Peer, answer: bytes) -> None:
        """Sends the answer to a subscription once changes are being read."""
        if self.live:
            peer.send(answer)
        else:
            self._owed.append((peer, answer))

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
            except OperationFailure as error:
                if error.code in GONE and self._token is not None:
                    self._token = None
                    self.process.notice(
                        self.project.id, "mongo", "feed_gap", "Some changes could not be told."
                    )
                    continue
                failures = self._failed(error, failures)
            except (PyMongoError, OSError) as error:
                failures = self._failed(error, failures)
            finally:
                self.live = False
                await client.close()
            await asyncio.sleep(RETRY[min(failures, len(RETRY)) - 1])

    def _failed(self, error: Exception, failures: int) -> int:
        what = f"the documents of project {self.project.slug}"
        if self._count or not failures:
            self.events.emit(Lost(what, reason_of(error)))
            self._count = 0
            return 1
        return failures + 1

    async def _read(self, client: AsyncMongoClient[Any]) -> None:
        wanted = {"ns.coll": {"$in": sorted(self.names)}, "operationType": {"$in": sorted(KINDS)}}
        stream = await client.get_default_database().watch(
            [{"$match": wanted}],
            full_document="updateLookup",
            full_document_before_change="whenAvailable",
            resume_after=self._token,
            max_await_time_ms=1_000,
        )
        async with stream:
            self._token = self._token or stream.resume_token
            self._begin()
            while True:
                event = await stream.try_next()
                self._token = stream.resume_token or self._token
                if event is None:
                    continue
                self._count += 1
                if self._tell(event) > MOST_WAITING:
                    await asyncio.sleep(PAUSE)

    def _begin(self) -> None:
        self.live = True
        owed, self._owed = self._owed, []
        for peer, answer in owed:
            peer.send(answer)
        self.events.emit(Regained(f"the documents of project {self.project.slug}"))

    def _tell(self, event: Any) -> int:
        kind = KINDS.get(event["operationType"])
        name = event["ns"]["coll"]
        if kind is None or name not in self.names:
            return 0
        record, old = event.get("fullDocument"), event.get("fullDocumentBeforeChange")
        if kind == "delete":
            record = event["documentKey"]
            old = record if old is None else old
        elif record is None:
            return 0  # it was deleted before it could be looked up: that is told next
        waiting: int = self.process.change(
            self.project.id,
            Change(
                "mongo", name, kind, record_json=reply.to_json(record.raw),
                old_json=None if old is None else reply.to_json(old.raw),
                position=self.process.document_position(),
            ),
        )  # fmt: skip
        return waiting
