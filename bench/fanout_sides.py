"""The servers that bench_fanout compares, each in a process of its own: `ours`, the realtime
process with its rules and hub over a project that is made up here, and `picows`, a bare loop over
picows connections that sends prepared bytes. Commands on standard input, one line each:
`fan ROUNDS JOINED SIZE`, `changes N`, `memory`, `turns` (of ours: the most milliseconds of
processor time that the loop was held by one call since the last time, and how many calls),
`quit`."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import orjson
import psutil
import uvloop

SECRET = "bench-secret-that-is-long-enough-for-hs256"
RULES = {
    "channels": {
        "room:*": {"subscribe": {"auth.role": {"$in": ["anon", "authenticated"]}}, "send": True},
    },
    "tables": {
        "public.notes": {"rule": {"user_id": "$auth.uid"}},
        "public.either": {"rule": {"$or": [{"sender": "$auth.uid"}, {"recipient": "$auth.uid"}]}},
    },
    "frames_per_second": 10_000,
}


def token(uid: str) -> str:
    claims = {
        "sub": uid, "role": "authenticated", "aud": "authenticated", "iat": int(time.time()) - 5,
        "exp": int(time.time()) + 3600, "session_id": uid, "email": f"{uid}@example.com",
    }  # fmt: skip
    return jwt.encode(claims, SECRET, "HS256", {"kid": "k"})


def anon_key() -> str:
    claims = {"role": "anon", "ref": "default", "iat": int(time.time()) - 5}
    return "ich_pub_" + jwt.encode(claims, SECRET, "HS256", {"kid": "k"})


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss() -> int:
    return psutil.Process().memory_info().rss


class Ours:
    def __init__(self, port: int) -> None:
        from server.base.events import Events
        from server.base.hosts import HostRule
        from server.realtime.process import Process, listening

        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.server.realtime.world import Projects, project

        self.project = project(SECRET, RULES)
        directory = Projects([self.project])
        hosts = HostRule("localhost", "default", "http://localhost", "http://localhost/cdn")
        events = Events()
        events.listeners.append(lambda event: print(event, file=sys.stderr))
        self.process = Process(directory, hosts, events, None, lambda: True)
        self.longest, self.turns = 0.0, 0
        self._time_turns()
        self.process.start()
        self.process.listen(listening("127.0.0.1", port))

    def _time_turns(self) -> None:
        """Notes how much processor time each call of the loop takes."""
        for name in ("_flush", "_ready", "publish"):
            setattr(self.process, name, self._timed(getattr(self.process, name)))

    def _timed(self, real: Any) -> Any:
        def timed(*given: Any) -> Any:
            before = time.thread_time()
            found = real(*given)
            self.longest = max(self.longest, time.thread_time() - before)
            self.turns += 1
            return found

        return timed

    @property
    def connections(self) -> int:
        return len(self.process.wire.peers)

    async def fan(self, rounds: int, joined: int, size: int) -> None:
        payload = orjson.dumps("x" * (size - 2))
        wire = self.process.wire
        for _ in range(rounds):
            for _ in range(joined):
                self.process.publish(self.project.id, ["room:1"], b'"e"', payload)
            await drained(wire)

    async def changes(self, count: int) -> float:
        """Seconds of hub time for changes that each concern one of the subscribers."""
        from ichicore.live.change import Change

        users = [f"u{n}" for n in range(count)]
        hub = self.process.tenant(self.project).hub
        made = [
            Change("postgres", "public.notes", "INSERT",
                   record_json=orjson.dumps({"id": n, "user_id": user, "body": "b" * 100}))
            for n, user in enumerate(users)
        ]  # fmt: skip
        spent = 0.0
        for change in made:
            began = time.perf_counter()
            hub.put(change)
            hub.pump()
            spent += time.perf_counter() - began
        await drained(self.process.wire)
        return spent


async def drained(wire: Any) -> None:
    """Returns when every queue is empty: the next round must not join this one's frames."""
    while True:
        await asyncio.sleep(0)
        if not wire.pending:
            return


class Bare:
    """picows with nothing around it: the same bytes to every connection, one write each."""

    def __init__(self) -> None:
        self.transports: list[Any] = []
        self.connections = 0

    async def start(self, port: int) -> None:
        from picows import WSListener, ws_create_server

        side = self

        class Listener(WSListener):  # type: ignore[misc]
            def on_ws_connected(self, transport: Any) -> None:
                side.transports.append(transport.underlying_transport)
                side.connections += 1

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                pass

            def on_ws_disconnected(self, transport: Any) -> None:
                side.connections -= 1

        await ws_create_server(
            lambda request: Listener(), "127.0.0.1", port, backlog=4096,
            websocket_handshake_timeout=30,
        )  # fmt: skip

    async def fan(self, rounds: int, joined: int, size: int) -> None:
        from ichicore.live.hub import Channel, broadcast_frame

        one = broadcast_frame(Channel("room:1"), b'"e"', orjson.dumps("x" * (size - 2)), b'""')
        data = one * joined
        transports = self.transports
        for _ in range(rounds):
            for transport in transports:
                transport.write(data)
            await asyncio.sleep(0)

    async def changes(self, count: int) -> float:
        return 0.0


async def main(kind: str, port: int) -> None:
    side: Any
    if kind == "ours":
        side = Ours(port)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # as the realtime process does
    else:
        side = Bare()
        await side.start(port)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := (await reader.readline()).decode().split():
        if line[0] == "fan":
            before, began = cpu(), time.perf_counter()
            await side.fan(*map(int, line[1:]))
            print(cpu() - before, time.perf_counter() - began, flush=True)
        elif line[0] == "changes":
            print(await side.changes(int(line[1])), flush=True)
        elif line[0] == "turns":
            print(side.longest * 1000, side.turns, flush=True)
            side.longest, side.turns = 0.0, 0
        elif line[0] == "memory":
            print(rss(), side.connections, flush=True)
        elif line[0] == "quit":
            break
    os._exit(0)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
