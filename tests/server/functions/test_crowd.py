"""A busy function has more processes, within the calls at once that its project's tier allows."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest

from server.base.functions import Functions, socket_path
from server.functions import crowds, network, running
from server.functions.crowds import Crowd, most_processes
from server.functions.manager import Manager
from server.functions.rpc import Rpc
from tests.server.functions.test_shapes import Codes

BURN = """
const id = String(Math.random());
Deno.serve((req) => {
  if (req.headers.get("x-request-id") === "hang") return new Promise(() => {});
  const until = performance.now() + 3;
  while (performance.now() < until);
  return new Response(id);
});
"""
HEAVY = """
const id = String(Math.random());
const kept = new Uint8Array(90 << 20).fill(1);
Deno.serve(async () => {
  if (kept.length) await new Promise((go) => setTimeout(go, 1000));
  return new Response(id);
});
"""
FLOOD = """
Deno.serve(() => {
  const line = new TextEncoder().encode("\\x1e" + JSON.stringify({ t: "log", x: "y".repeat(9_900) }) + "\\n");
  const until = performance.now() + 1000;
  let sent = 0;
  for (; performance.now() < until; sent += line.length) Deno.stdout.writeSync(line);
  return new Response(`${sent}`);
});
"""  # noqa: E501
LASTING = """
EdgeRuntime.waitUntil(new Promise(() => {}));
Deno.serve(() => new Response("done"));
"""


class Asking:
    """A project as workers know it."""

    class limits:
        function_wall_ms, function_cpu_ms, function_memory = 10_000, 60_000, 134_217_728
        function_concurrency, function_bundle, functions, cpu_weight = 50, 1 << 20, 10, 100

    id = slug = "p"
    url, flavor, anon_key, service_key = "http://p.localhost", "postgres", "a", "s"
    settings: dict = {}


def after(times):
    """Holds from that look on."""
    looks = itertools.count()
    return lambda: next(looks) > times


class Parts:
    """The functions process and one worker, in this process."""

    async def __aenter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-crowd-"))
        (self.folder / "run").mkdir()
        self.codes = {"burn": BURN, "lasting": LASTING, "heavy": HEAVY,
                      "flood": FLOOD}  # fmt: skip
        self.manager = Manager(self.folder, Codes(self.codes), ("127.0.0.1", 1))
        await self.manager.start()
        self.rpc = Rpc(self.manager, None)
        await self.rpc.start(socket_path(self.folder))
        self.worker = Functions(self.folder)
        return self

    async def __aexit__(self, *_):
        await self.worker.stop()
        self.rpc.close()
        await self.manager.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def call(self, name="burn"):
        return await self.worker.call_internal(Asking, name, b"{}")

    async def busy(self, until, seconds=60):
        """Calls, eight at once, until something holds; gives the answers."""
        found = []
        deadline = asyncio.get_running_loop().time() + seconds

        async def one():
            while not until() and asyncio.get_running_loop().time() < deadline:
                found.append(await self.call())

        await asyncio.gather(*(one() for _ in range(8)))
        assert until()
        return found

    def processes(self):
        return [one for one in self.manager.running.values() if one.retired_at is None]


@pytest.fixture
def eager(monkeypatch):
    """Any use of a processor counts as busy: the machine of the tests may have little to give."""
    monkeypatch.setattr(crowds, "FULL", 0.02)
    monkeypatch.setattr(crowds, "SLACK", 0.0)
    monkeypatch.setattr(crowds, "SOON", 0.3)
    monkeypatch.setattr(crowds, "LATER", 0.5)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.mark.usefixtures("eager")
def test_a_busy_function_gets_a_second_process_which_shares_its_calls_and_goes_again(monkeypatch):
    async def go():
        async with Parts() as parts:
            first = await parts.call()
            assert len(parts.processes()) == 1
            await parts.busy(lambda: len(parts.worker.leases["p", "burn"].others) == 1)
            ids = set(await parts.busy(after(400)))
            assert len(ids) == 2
            assert first in ids
            assert len(parts.processes()) == 2  # 50 calls at once are two processes, not more
            assert {len(one.leases) for one in parts.processes()} == {1}
            monkeypatch.setattr(crowds, "FULL", 1.5)
            monkeypatch.setattr(crowds, "SLACK", 1.0)
            async with asyncio.timeout(60):
                while len(parts.processes()) > 1:
                    await asyncio.sleep(0.05)
            assert await parts.call() == first
            assert not parts.worker.leases["p", "burn"].others

    asyncio.run(go())


@pytest.mark.usefixtures("eager")
def test_the_second_process_takes_over_when_the_first_ends(monkeypatch):
    async def go():
        async with Parts() as parts:
            first = await parts.call()
            await parts.busy(lambda: len(parts.worker.leases["p", "burn"].others) == 1)
            monkeypatch.setattr(crowds, "FULL", 1.5)
            dead = parts.manager.current["p", "burn"].cell
            dead.kill("memory")
            async with asyncio.timeout(60):
                while len(parts.processes()) > 1 or any(
                    lease.process == dead.name for lease in parts.worker.leases.values()
                ):
                    await asyncio.sleep(0.02)
                while (second := await parts.call()) == first:
                    await asyncio.sleep(0.02)
            assert parts.manager.current["p", "burn"].cell.state == "ready"
            assert second != first

    asyncio.run(go())


@pytest.mark.usefixtures("eager")
def test_another_version_takes_the_place_of_all_processes(monkeypatch):
    async def go():
        async with Parts() as parts:
            before = {await parts.call()}
            await parts.busy(lambda: len(parts.worker.leases["p", "burn"].others) == 1)
            before |= set(await parts.busy(after(50)))
            monkeypatch.setattr(crowds, "FULL", 1.5)
            parts.manager._secrets["p"] = {"A": "changed"}
            for lease in list(parts.worker.leases.values()):
                parts.worker._drop(lease)
            now = await parts.call()
            assert now not in before
            assert len(parts.processes()) == 1
            async with asyncio.timeout(60):
                while len(parts.manager.running) > 1:
                    await asyncio.sleep(0.05)
            parts.manager.retire_all("p", "burn")
            assert not parts.manager.current
            assert not parts.manager.crowds.by_place

    asyncio.run(go())


def test_processes_are_replaced_when_the_machine_has_another_address(monkeypatch):
    async def go():
        async with Parts() as parts:
            first = await parts.call()
            before = set(parts.manager.cells)
            parts.manager._close_addresses()
            assert await parts.call() == first
            own = [*network.own_addresses(), "8.8.4.4"]
            monkeypatch.setattr(network, "own_addresses", lambda: own)
            parts.manager._close_addresses()
            async with asyncio.timeout(60):
                while before & set(parts.manager.cells) or await parts.call() == first:
                    parts.manager._close_addresses()  # also those that were coming up before
                    await asyncio.sleep(0.05)
            assert all("8.8.4.4" in cell.closed for cell in parts.manager.cells.values())

    asyncio.run(go())


def test_a_process_is_replaced_before_its_memory_ends_it_and_its_calls_go_on(monkeypatch):
    async def go():
        monkeypatch.setattr(running, "SOFT_MEMORY", 0.6)
        monkeypatch.setattr(running, "SOFT_SECONDS", 0.3)
        monkeypatch.setattr(running, "SOFT_AGE", 0.5)
        async with Parts() as parts:
            calls = [asyncio.ensure_future(parts.call("heavy")) for _ in range(3)]
            async with asyncio.timeout(10):
                while not (old := [r for r in parts.manager.running.values() if r.retired_at]):
                    await asyncio.sleep(0.02)
                before = set(await asyncio.gather(*calls))
                assert len(before) == 1
                monkeypatch.setattr(running, "SOFT_MEMORY", 2)
                assert await parts.call("heavy") not in before
                while old[0].cell.state != "ended":
                    await asyncio.sleep(0.05)
            assert old[0].cell.reason == "replaced"

    asyncio.run(go())


def test_a_process_that_writes_without_end_is_read_no_faster_than_others_can_bear():
    async def go():
        async with Parts() as parts:
            assert 500_000 < int(await parts.call("flood")) < 9_000_000
            assert parts.manager.logs.of("p").since(None, 1)[0]["text"] == "y" * 9_900

    asyncio.run(go())


def test_work_after_the_answer_ends_with_the_time_of_an_invocation(monkeypatch):
    async def go():
        monkeypatch.setattr("server.base.functions.RELEASE_AFTER", 0.1)
        monkeypatch.setattr(Asking.limits, "function_wall_ms", 1_500)
        async with Parts() as parts:
            assert await parts.call("lasting") == b"done"
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(60):
                while parts.manager.running:
                    await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() - began > 1.4
            last = parts.manager.logs.of("p").since(None, 1)[0]
            assert "work after the answer took longer than 1.5 s" in last["text"]

    asyncio.run(go())


def test_when_there_is_one_more_and_one_less():
    crowd = Crowd()
    assert [crowd.look([0.95], 2, now / 10) for now in range(11)] == [0] * 10 + [1]
    assert [crowd.look([0.95, 0.2], 2, 2 + now) for now in range(20)] == [0] * 20
    assert [crowd.look([0.95, 0.95], 2, 30 + now) for now in range(20)] == [0] * 20
    told = [crowd.look([0.2, 0.3], 2, 60 + now) for now in range(11)]
    assert told == [0] * 10 + [-1]
    assert [crowd.look([0.9 if now % 2 else 0.1], 2, 80 + now) for now in range(20)] == [0] * 20
    assert [crowd.look([0.1], 2, 110 + now) for now in range(20)] == [0] * 20


@pytest.mark.parametrize(("concurrency", "cores", "most"), [
    (5, 8, 1), (24, 8, 1), (50, 8, 2), (50, 1, 1), (200, 4, 4), (200, 64, 8),
])  # fmt: skip
def test_how_many_processes_a_tier_has(monkeypatch, concurrency, cores, most):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    assert most_processes(concurrency) == most
