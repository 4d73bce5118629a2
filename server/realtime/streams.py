"""Which projects have a change stream of their documents read: see server.realtime.mongo_feed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ichicore.live.hub import Source
from ichicore.live.wire import Peer
from server.base.events import Events
from server.realtime import messages
from server.realtime.tenant import Tenant

if TYPE_CHECKING:
    from server.realtime.mongo_feed import DocumentFeed


class DocumentFeeds:
    """The streams of all projects that have sockets and ask for them."""

    def __init__(self, process: Any, events: Events) -> None:
        self.process = process
        self.events = events
        self.feeds: dict[str, DocumentFeed] = {}  # by project id
        self._ending: set[asyncio.Task[None]] = set()

    @staticmethod
    def applies(tenant: Tenant) -> bool:
        """Whether the project's documents are told by their stream and not by the workers."""
        return tenant.settings.documents == "stream"

    def review(self, tenant: Tenant) -> DocumentFeed | None:
        """Starts, changes or ends the stream of a project as its settings and sockets ask."""
        project = tenant.project
        found = self.feeds.get(project.id)
        asked = (
            self.applies(tenant) and bool(tenant.rules.collections) and bool(tenant.sessions)
            and project.mongo_url is not None and project.state == "active"
        )  # fmt: skip
        place, before = None, found
        if found is not None and not (asked and found.same(tenant)):
            self.end(project.id)
            if found.project.mongo_url == project.mongo_url and tenant.sessions:
                place = found.place  # other collections: what both tell is told without a break
            found = None
        if asked and found is None:
            from server.realtime.mongo_feed import DocumentFeed  # the driver is large

            found = self.feeds[project.id] = DocumentFeed(tenant, self.process, self.events, place)
            if before is not None:
                found.owed += before.owed
        elif found is None and before is not None and tenant.sessions:
            before.answer()  # the workers tell of the documents from now on
        return found

    def end(self, project_id: str) -> None:
        found = self.feeds.pop(project_id, None)
        if found is not None:
            found.cancel()
            task = asyncio.get_running_loop().create_task(found.stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def stop(self) -> None:
        for project_id in list(self.feeds):
            self.end(project_id)
        if self._ending:
            await asyncio.wait(set(self._ending))


def notice(tenant: Tenant, kind: str, code: str, detail: str) -> None:
    """An error frame to all that have subscribed to something of this kind."""
    sources = [source for (its, _), source in tenant.hub.sources.items() if its == kind]
    tell(sources, messages.error(code, detail))


def tell(sources: Iterable[Source], frame: bytes) -> None:
    """Queues a frame for all that have subscribed to these, once for each."""
    told: set[Peer] = set()
    for source in sources:
        told.update(peer for group in source.groups.values() for peer in group.members)
    for peer in told:
        peer.send(frame)
