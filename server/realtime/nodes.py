"""The other nodes over the same databases: what their clients send reaches ours, ours theirs.

Each realtime process tells the others which projects it has sockets of, and gets messages and
presence of those alone. A process that has said nothing for DEAD_SECONDS is gone, and so are those
who were present there, until it is heard of again. Whoever misses a message, or hears of a process
for the first time, asks it for its state: its projects and all who are present. Row changes and
messages from SQL do not come this way: every node reads them from the log.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from typing import Any

from ichicore.live.change import Change
from ichicore.live.hub import broadcast_frame
from server.base.events import Events, Noted
from server.base.exchange import Exchange
from server.realtime.streams import DocumentFeeds
from server.realtime.tenant import Tenant

ALIVE_SECONDS = 1.5
DEAD_SECONDS = 6.0
ANSWER_SECONDS = 1.0  # for how many connections of other nodes a message has reached
ENTRIES = 100  # of presence in one message

Place = tuple[str, str]  # project id, channel


class Other:
    """Another realtime process. present: the keys of each place, with the number of the telling
    that they were last in."""

    def __init__(self, now: float) -> None:
        self.node = ""
        self.number = 0  # of its last message
        self.heard = now
        self.projects: set[str] = set()
        self.present: dict[Place, dict[bytes, int]] = {}
        self.telling = 0
        self.whole = False  # whether we have all of its state


class _Answer:
    """How many connections of the other nodes a message has reached."""

    def __init__(self, asked: int) -> None:
        self.left = asked
        self.reached = 0
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Nodes:
    """process: the one that this belongs to. node: name of this node, the same after a restart."""

    def __init__(self, process: Any, node: str, dsn: str, events: Events) -> None:
        self.process = process
        self.node = node
        self.events = events
        self.exchange = Exchange(dsn, events, self._take, self._began)
        self.others: dict[str, Other] = {}  # by run
        self.wanted: dict[str, set[str]] = {}  # project id > runs that have sockets of it
        self.projects: set[str] = set()  # that we have sockets of
        self.present: dict[Place, dict[bytes, bytes]] = {}  # ours
        self._answers: dict[int, _Answer] = {}
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._handlers = {
            "hello": self._hello, "ask": self._ask, "state": self._state, "alive": _nothing,
            "want": self._want, "unwant": self._unwant, "here": self._here, "send": self._send,
            "publish": self._publish, "got": self._got, "documents": self._documents,
            "bye": self._bye,
        }  # fmt: skip

    def start(self) -> None:
        """Begins, in the running loop."""
        self.exchange.start()
        self._tasks.append(asyncio.get_running_loop().create_task(self._live(), name="nodes"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.others:
            self.exchange.send({"k": "bye"})
        await self.exchange.stop()

    # --- what the process tells -----------------------------------------------------------------

    def want(self, project: str) -> None:
        """A socket of the project was opened."""
        if project not in self.projects:
            self.projects.add(project)
            if self.others:
                self.exchange.send({"k": "want", "p": [project]})

    def unwant(self, project: str) -> None:
        """There are no more sockets of the project."""
        if project in self.projects:
            self.projects.discard(project)
            for other in self.others.values():
                self._forget(other, [place for place in other.present if place[0] == project])
            if self.others:
                self.exchange.send({"k": "unwant", "p": [project]})

    def review(self, tenants: dict[str, Tenant]) -> None:
        """Once a second: projects whose last socket has gone."""
        for project in [p for p in self.projects if p not in tenants or not tenants[p].sessions]:
            self.unwant(project)

    def appear(self, project: str, channel: str, key: bytes, value: bytes) -> None:
        """One of ours is present, or present in another way."""
        self.present.setdefault((project, channel), {})[key] = value
        if project in self.wanted:
            self._tell_of((project, channel), [(key, value)])

    def absent(self, project: str, channel: str, key: bytes) -> None:
        """One of ours is present no longer."""
        keys = self.present.get((project, channel))
        if keys is None or keys.pop(key, None) is None:
            return
        if not keys:
            del self.present[project, channel]
        if project in self.wanted:
            self._tell_of((project, channel), [(key, None)])

    def send(
        self, project: str, channel: str, event: bytes | None, payload: bytes, sender: bytes
    ) -> None:
        """A message of a client. event, payload, sender: JSON."""
        if project in self.wanted:
            self.exchange.send(
                {"k": "send", "p": project, "c": channel, "e": _text(event),
                 "d": payload.decode(), "f": sender.decode()}
            )  # fmt: skip

    async def publish(
        self, project: str, channels: list[str], event: bytes | None, payload: bytes
    ) -> int:
        """A message of the server; gives how many connections of other nodes it has reached, as far
        as they answer in time."""
        asked = sorted(self.wanted.get(project, ()))
        if not asked:
            return 0
        number = next(self._numbers)
        answer = self._answers[number] = _Answer(len(asked))
        self.exchange.send(
            {"k": "publish", "p": project, "c": channels, "e": _text(event),
             "d": payload.decode(), "id": number, "to": asked}
        )  # fmt: skip
        try:
            await asyncio.wait_for(answer.whole, ANSWER_SECONDS)
        except TimeoutError:
            pass  # one has died: whom it held is gone anyway
        finally:
            del self._answers[number]
        return answer.reached

    def documents(self, project: str, collection: str, changes: list[Change]) -> None:
        """Changed documents that a worker of this node told of."""
        if project not in self.wanted:
            return
        for start in range(0, len(changes), ENTRIES):
            self.exchange.send(
                {"k": "documents", "p": project, "c": collection, "x": [
                    {"e": c.event, "r": c.record, "o": c.old, "at": c.position}
                    for c in changes[start : start + ENTRIES]
                ]}
            )  # fmt: skip

    def gauges(self) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        """For server.base.metrics."""
        return [
            ("ichibase_realtime_other_nodes", (), len(self.others)),
            ("ichibase_realtime_exchange_dropped", (), self.exchange.dropped),
        ]

    # --- life -----------------------------------------------------------------------------------

    def _began(self) -> None:
        """The connection is up; what was said before may have been missed."""
        now = time.monotonic()
        for other in self.others.values():
            other.heard = now
        self.exchange.send({"k": "hello", "node": self.node})

    async def _live(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            now = time.monotonic()
            stood = max(0.0, now - looked - 2 * ALIVE_SECONDS)  # we, not the others
            looked = now
            if not self.exchange.connected:
                continue  # who is there cannot be known
            gone = False
            for run, other in list(self.others.items()):
                other.heard += stood
                if now - other.heard > DEAD_SECONDS:
                    self.events.emit(Noted("a node is gone", f"{other.node}: nothing was heard"))
                    self._drop(run)
                    gone = True
            if gone:  # one that was only slow may have done the same, and would never speak again
                self.exchange.send({"k": "hello", "node": self.node})
            if self.others:
                self.exchange.send({"k": "alive"})

    def _take(self, run: str, number: int, message: dict[str, Any]) -> None:
        other = self.others.get(run)
        if other is None:
            if message["k"] == "bye":
                return
            other = self.others[run] = Other(time.monotonic())
            other.number = number - 1
        if number <= other.number:
            return  # a second time: its sender did not know whether the first had arrived
        lost = number != other.number + 1
        other.number = number
        other.heard = time.monotonic()
        if lost or not other.whole:
            other.whole = True
            if message["k"] != "state" or message["to"] != self.exchange.run or "end" in message:
                self.exchange.send({"k": "ask", "to": run})
        handler = self._handlers.get(message["k"])
        if handler is not None:  # else a newer program's
            handler(run, other, message)

    def _drop(self, run: str) -> None:
        other = self.others.pop(run)
        self._forget(other, list(other.present))
        self._wants(run, other, set())

    def _forget(self, other: Other, places: Iterable[Place]) -> None:
        for place in places:
            for key in other.present.pop(place, {}):
                self._show(place, key, None)

    def _wants(self, run: str, other: Other, projects: set[str]) -> None:
        """The other process has sockets of these projects."""
        for project in other.projects - projects:
            self.wanted[project].discard(run)
            if not self.wanted[project]:
                del self.wanted[project]
        for project in projects - other.projects:
            self.wanted.setdefault(project, set()).add(run)
        other.projects = projects

    def _hello(self, run: str, other: Other, message: dict[str, Any]) -> None:
        other.node = message["node"]
        for old, known in list(self.others.items()):
            if old != run and known.node == other.node:  # the node's process has been replaced
                self._drop(old)
        self._tell_all(run, other)

    def _bye(self, run: str, other: Other, message: dict[str, Any]) -> None:
        self._drop(run)

    # --- state ----------------------------------------------------------------------------------

    def _ask(self, run: str, other: Other, message: dict[str, Any]) -> None:
        if message["to"] == self.exchange.run:
            self._tell_all(run, other)

    def _tell_all(self, to: str, other: Other) -> None:
        self.exchange.send({"k": "state", "to": to, "node": self.node})
        projects = sorted(self.projects)
        for start in range(0, len(projects), ENTRIES):
            self.exchange.send({"k": "want", "p": projects[start : start + ENTRIES]})
        for place, keys in self.present.items():
            if place[0] in other.projects:  # of others it will say that it wants them
                self._tell_of(place, list(keys.items()))
        self.exchange.send({"k": "state", "to": to, "end": True, "node": self.node})

    def _tell_of(self, place: Place, entries: list[tuple[bytes, bytes | None]]) -> None:
        for start in range(0, len(entries), ENTRIES):
            part = entries[start : start + ENTRIES]
            self.exchange.send(
                {"k": "here", "p": place[0], "c": place[1],
                 "x": [[key.decode(), _text(value)] for key, value in part]}
            )  # fmt: skip

    def _state(self, run: str, other: Other, message: dict[str, Any]) -> None:
        if message["to"] != self.exchange.run:
            return
        other.node = message["node"]
        if not message.get("end"):
            other.telling += 1
            self._wants(run, other, set())
            return
        for place, keys in list(other.present.items()):  # those it did not name are gone
            for key in [key for key, telling in keys.items() if telling != other.telling]:
                self._gone(other, place, key)

    def _want(self, run: str, other: Other, message: dict[str, Any]) -> None:
        new = set(message["p"]) - other.projects
        self._wants(run, other, other.projects | new)
        for place, keys in self.present.items():
            if place[0] in new:
                self._tell_of(place, list(keys.items()))

    def _unwant(self, run: str, other: Other, message: dict[str, Any]) -> None:
        self._wants(run, other, other.projects - set(message["p"]))

    # --- presence -------------------------------------------------------------------------------

    def _here(self, run: str, other: Other, message: dict[str, Any]) -> None:
        place = (message["p"], message["c"])
        if place[0] not in self.projects:
            return
        for name, value in message["x"]:
            key = name.encode()
            if value is None:
                self._gone(other, place, key)
            else:
                other.present.setdefault(place, {})[key] = other.telling
                self._show(place, key, value.encode())

    def _gone(self, other: Other, place: Place, key: bytes) -> None:
        keys = other.present.get(place)
        if keys is not None and keys.pop(key, None) is not None:
            if not keys:
                del other.present[place]
            self._show(place, key, None)

    def _show(self, place: Place, key: bytes, value: bytes | None) -> None:
        tenant: Tenant | None = self.process.tenants.get(place[0])
        if tenant is not None:
            tenant.hub.elsewhere(place[1], key, value)

    # --- messages -------------------------------------------------------------------------------

    def _send(self, run: str, other: Other, message: dict[str, Any]) -> None:
        tenant: Tenant | None = self.process.tenants.get(message["p"])
        channel = None if tenant is None else tenant.hub.channel(message["c"])
        if tenant is not None and channel is not None and channel.members:
            tenant.hub.send(
                channel,
                broadcast_frame(
                    channel, _bytes(message["e"]), message["d"].encode(), message["f"].encode()
                ),
            )

    def _publish(self, run: str, other: Other, message: dict[str, Any]) -> None:
        if self.exchange.run not in message["to"]:
            return
        tenant: Tenant | None = self.process.tenants.get(message["p"])
        reached = 0
        if tenant is not None:
            event, payload = _bytes(message["e"]), message["d"].encode()
            reached = tenant.publish(message["c"], event, payload)
        self.exchange.send({"k": "got", "to": run, "id": message["id"], "n": reached})

    def _got(self, run: str, other: Other, message: dict[str, Any]) -> None:
        answer = self._answers.get(message["id"]) if message["to"] == self.exchange.run else None
        if answer is not None:
            answer.reached += message["n"]
            answer.left -= 1
            if not answer.left and not answer.whole.done():
                answer.whole.set_result(None)

    def _documents(self, run: str, other: Other, message: dict[str, Any]) -> None:
        tenant: Tenant | None = self.process.tenants.get(message["p"])
        if tenant is None or DocumentFeeds.applies(tenant):
            return
        for told in message["x"]:
            self.process.change(
                message["p"],
                Change("mongo", message["c"], told["e"], record=told["r"], old=told["o"],
                       position=told["at"]),
            )  # fmt: skip


def _nothing(run: str, other: Other, message: dict[str, Any]) -> None:
    pass


def _text(value: bytes | None) -> str | None:
    """JSON travels as a text, so that it arrives as it was sent."""
    return None if value is None else value.decode()


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()
