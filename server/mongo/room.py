"""What the requests of one worker share."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ichicore.mongo import Caps, reply
from server.base.context import WorkerContext
from server.base.project import Project
from server.mongo.execute import Event
from server.mongo.quota import Quota
from server.mongo.rulebook import Book, Rulebook
from server.mongo.stores import Stores

log = logging.getLogger("ichibase.mongo")
DEFAULT_LIMIT = 100  # documents of a find that names no limit


class Room:
    """One per worker process."""

    def __init__(self, context: WorkerContext, stores: Stores, rulebook: Rulebook) -> None:
        self.context = context
        self.stores = stores
        self.rulebook = rulebook
        self.quota = Quota(context)

    @staticmethod
    def caps(book: Book, service: bool) -> Caps:
        """What a request may ask for."""
        return Caps(
            book.max_docs, min(DEFAULT_LIMIT, book.max_docs), book.project.limits.document_bytes,
            service,
        )  # fmt: skip

    def tell(self, project_id: str, collection: str, events: Iterable[Event]) -> None:
        """Hands changes to the realtime process; never waits."""
        told = [
            {
                "event": event.kind,
                "record": None if event.record is None else reply.to_json(event.record),
                "old": None if event.old is None else reply.to_json(event.old),
            }
            for event in events
        ]
        self.context.changes.send(project_id, collection, told)

    def note(self, project: Project, error: Exception) -> None:
        """A fault of the document server, for the operator."""
        log.warning("the documents of project %s: %s", project.slug, error)

    async def start(self) -> None:
        await self.stores.start()

    async def stop(self) -> None:
        await self.quota.stop()
        await self.stores.stop()
