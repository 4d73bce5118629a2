"""The functions process's socket: leases for workers, everything else for the admin server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ichicore.errors import ApiError
from server.base import unix
from server.base.functions import packed, unpacked
from server.functions import cron, network
from server.functions.build import Builder, not_loaded
from server.functions.journal import say
from server.functions.manager import Manager
from server.functions.sources import Sources

NAME = re.compile(r"_?[a-z0-9][a-z0-9_-]{0,62}\Z")
INTERNAL = ("_mongo_policy",)
AUTH = ("key", "user", "none")
LONGEST_WAIT = 25.0  # seconds that a reader of logs may be held

Fields = dict[str, Any]
Texts = list[str]


class Peer(asyncio.Protocol):
    """One connection of a process of this node."""

    def __init__(self, server: Rpc) -> None:
        self.server = server
        self.transport: Any = None
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.peers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.peers.discard(self)
        self.server.manager.worker_gone(self)
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            messages = unpacked(self._buffer, data)
        except ValueError:
            self.transport.abort()
            return
        for message in messages:
            if "id" in message:
                task = asyncio.ensure_future(self._answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self.server.told(self, message)

    async def _answer(self, message: Fields) -> None:
        number = message.pop("id")
        try:
            answer = await self.server.call(self, message)
        except ApiError as error:
            answer = {
                "error": {
                    "status": error.status, "code": error.code, "detail": error.message,
                    "details": error.details, "headers": list(error.headers),
                }
            }  # fmt: skip
        except Exception as error:
            say(f"{message.get('op')} failed: {error!r}")
            detail = "The functions process failed; see its log."
            answer = {"error": {"status": 500, "code": "internal", "detail": detail}}
        self.send({**answer, "id": number})

    def send(self, message: Fields) -> None:
        if not self.transport.is_closing():
            self.transport.write(packed(message))


class Rpc:
    """All connections and what may be asked on them. trusted: what calls of the functions process
    itself carry."""

    def __init__(self, manager: Manager, builder: Builder, trusted: str = "") -> None:
        self.manager = manager
        self.trusted = trusted
        self.schedules_changed: Callable[[], None] = lambda: None
        self.builder = builder
        self.peers: set[Peer] = set()
        self._cleaning: set[asyncio.Task[None]] = set()
        manager.gone = lambda process: self.push({"op": "gone", "process": process})
        manager.more = lambda worker, message: worker.send(message)
        manager.slots.recall = self.recall
        self._server: asyncio.Server | None = None
        self._ops: dict[str, Callable[[Fields], Awaitable[Fields]]] = {
            "list": self.list, "versions": self.versions, "deploy": self.deploy,
            "delete": self.delete, "rollback": self.rollback, "secrets": self.secrets,
            "set_secrets": self.set_secrets, "unset_secrets": self.unset_secrets,
            "logs": self.logs, "state": self.state,
        }  # fmt: skip

    async def start(self, path: Path) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Peer(self), sock=unix.listen(path)
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in list(self.peers):
            peer.transport.abort()

    def push(self, message: Fields) -> None:
        for peer in self.peers:
            peer.send(message)

    def recall(self, project_id: str, asking: Any) -> None:
        """Asks the other workers for what they do not use."""
        for peer in self.peers:
            if peer is not asking:
                peer.send({"op": "recall", "project": project_id})

    def told(self, peer: Peer, message: Fields) -> None:
        """A message without an answer."""
        op = message.get("op")
        if op == "slow":
            self.manager.report(peer, message["processes"])
        elif op == "release":
            self.manager.release(peer, message["process"])
        elif op == "expired":
            self.manager.expired(message["process"], message["call"], message["seconds"])
        elif op == "count":
            self.manager.journal.called(message["project"], message["name"], message["count"])
        elif op == "unslots":
            self.manager.slots.give_back(peer, message["project"], message["count"])

    async def call(self, peer: Peer, message: Fields) -> Fields:
        op = message.get("op", "")
        if op == "lease":
            leased = await self.manager.lease(peer, message["project"], message["name"])
            return {**leased, "trusted": self.trusted}
        if op == "slots":
            granted = await self.manager.slots.take(peer, message["project"], message["limit"])
            return {"granted": granted}
        if op == "ended":
            return await self.manager.why_ended(message["process"])
        found = self._ops.get(op)
        if found is None:
            raise ApiError(404, "not_found", "There is no such operation.")
        return await found(message)

    def changed(self, project_id: str) -> None:
        self.manager.changed(project_id)
        self.schedules_changed()
        self.push({"op": "changed", "project": project_id})

    def noticed(self, project_id: str) -> None:
        """The control database tells of a change, also of one that another node made."""
        self.changed(project_id)
        task = asyncio.ensure_future(self._clean(project_id))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _clean(self, project_id: str) -> None:
        """Of a project that is gone nothing stays: no process, no log, no downloads."""
        try:
            if await self.manager.store.has_project(project_id):
                return
        except ApiError:
            return  # the database is away; the next notice cleans up
        self.manager.project_deleted(project_id)
        await self.builder.forget(project_id)

    # What the admin server asks

    async def list(self, asked: Fields) -> Fields:
        return {"functions": await self.manager.store.functions(asked["project"])}

    async def versions(self, asked: Fields) -> Fields:
        return {"versions": await self.manager.store.versions(asked["project"], asked["name"])}

    async def deploy(self, asked: Fields) -> Fields:
        project, name = asked["project"], check_name(asked["name"])
        auth = asked.get("auth") or "key"
        outbound = asked.get("outbound")
        if auth not in AUTH:
            raise ApiError(400, "invalid_auth", f"auth is one of {', '.join(AUTH)}.")
        if outbound is not None:
            problem = network.check_allowed(outbound)
            if problem is not None or len(outbound) > 100:
                raise ApiError(400, "invalid_outbound", f"{problem or 'at most 100 hosts'}.")
        schedule = await self._schedule(asked, project, name)
        sources = Sources(asked["files"], asked.get("entrypoint"))
        lock = await self.manager.store.lock(project, name)
        if asked.get("update"):
            lock = None
        built = await self.builder.build(project, sources, lock, asked["bundle"])
        allowed = None if outbound is None else tuple(outbound)
        problem = await self.manager.try_out(asked["told"], name, allowed, built.code)
        if problem is not None:
            raise not_loaded(problem, built.entrypoint)
        version = await self.manager.store.deploy(
            project, name, built, auth, outbound, asked["functions"], schedule
        )
        self.changed(project)
        return {
            "name": name, "version": version, "auth": auth, "outbound": outbound,
            "bytes": len(built.code), "entrypoint": built.entrypoint, "schedule": schedule,
        }  # fmt: skip

    async def _schedule(self, asked: Fields, project: str, name: str) -> Texts | None:
        """When the function is to run by itself, checked against what the project may have."""
        wanted = asked.get("schedule")
        texts = [wanted] if isinstance(wanted, str) else list(wanted or ())
        for text in texts:
            try:
                shortest = cron.parse(text).shortest
            except cron.ScheduleError as error:
                raise ApiError(400, "invalid_schedule", f"{text[:200]!r}: {error}.") from None
            if shortest < asked["schedule_seconds"]:
                raise ApiError(
                    400, "invalid_schedule",
                    f"{text!r}: a schedule of this project leaves at least "
                    f"{asked['schedule_seconds']} s between two runs.",
                )  # fmt: skip
        if not texts:
            return None
        others = await self.manager.store.scheduled(project)
        count = len(texts) + sum(len(one.schedule) for one in others if one.name != name)
        if count > asked["schedules"]:
            raise ApiError(
                409, "quota_exceeded", f"The project may have {asked['schedules']} schedules."
            )
        return texts

    async def delete(self, asked: Fields) -> Fields:
        await self.manager.store.delete(asked["project"], asked["name"])
        self.changed(asked["project"])
        self.manager.retire_all(asked["project"], asked["name"])
        return {"deleted": True}

    async def rollback(self, asked: Fields) -> Fields:
        version = await self.manager.store.activate(
            asked["project"], asked["name"], asked.get("version")
        )
        self.changed(asked["project"])
        return {"name": asked["name"], "version": version}

    async def secrets(self, asked: Fields) -> Fields:
        return {"secrets": await self.manager.store.secret_names(asked["project"])}

    async def set_secrets(self, asked: Fields) -> Fields:
        await self.manager.store.set_secrets(asked["project"], asked["values"])
        self.changed(asked["project"])
        return await self.secrets(asked)

    async def unset_secrets(self, asked: Fields) -> Fields:
        count = await self.manager.store.unset_secrets(asked["project"], asked["names"])
        self.changed(asked["project"])
        return {"deleted": count}

    async def logs(self, asked: Fields) -> Fields:
        log = self.manager.logs.of(asked["project"])
        after, limit = asked["after"], asked["limit"]
        select = (asked.get("name"), asked.get("invocation"))
        found = log.since(after, limit, *select)
        wait = min(float(asked.get("wait") or 0), LONGEST_WAIT)
        if not found and wait > 0:
            deadline = asyncio.get_running_loop().time() + wait
            while not found and (left := deadline - asyncio.get_running_loop().time()) > 0:
                await log.wait(left)
                found = log.since(after, limit, *select)
        return {"lines": found, "last": found[-1]["seq"] if found else max(after or 0, log.seq)}

    async def state(self, asked: Fields) -> Fields:
        return self.manager.state()


def check_name(name: str) -> str:
    if not NAME.match(name) or (name.startswith("_") and name not in INTERNAL):
        raise ApiError(
            400, "invalid_name",
            "A function's name has 1 to 63 lower-case letters, digits, - and _, and begins with a "
            "letter or digit.",
        )  # fmt: skip
    return name
