"""One document server a project: its life, its share, its files, and what becomes of the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time

import psutil
import pytest
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.errors import PyMongoError

from server.base import processor
from server.base.ports import free_port
from server.mongo import embedded, instances, zygote
from server.mongo.folders import Folders
from server.mongo.instances import InstanceError, Instances
from server.mongo.lease import Share
from server.mongo.zygote import Zygote, ZygoteError
from tests.server.mongo.conftest import PASSWORD


def client(held):
    """Of the administrator."""
    return AsyncMongoClient(embedded.admin_url(held.port, PASSWORD))


@contextlib.asynccontextmanager
async def holding(servers, name, share=None, **options):
    held = await servers.all.hold(name, share, make=True, **options)
    try:
        yield held
    finally:
        servers.all.release(held)


async def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def taken(folder):
    """Bytes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_an_idle_one_ends_and_comes_back_with_its_documents(loop, servers):
    async def run():
        async with holding(servers, "ichi_a") as held, holding(servers, "ichi_a") as same:
            assert held is same
            async with client(held) as root:
                await root.ichi_a.things.insert_one({"_id": 1})
            await asyncio.sleep(0.8)
            assert servers.all.running["ichi_a"] is held
        await until(held.ended.is_set)
        assert not psutil.pid_exists(held.pid)
        await until(lambda: taken(servers.folders.of("ichi_a")) < 1_000_000)
        async with holding(servers, "ichi_a") as again:
            assert again.pid != held.pid
            async with client(again) as root:
                assert await root.ichi_a.things.find_one() == {"_id": 1}

    loop(run())


def test_one_that_is_killed_takes_nobody_with_it(loop, servers):
    async def run():
        async with holding(servers, "ichi_a") as held, holding(servers, "ichi_b") as other:
            told = []
            held.on_end.add(lambda: told.append(True))
            async with client(held) as root:
                kept = root.ichi_a.get_collection("kept", write_concern=WriteConcern(w=1, j=True))
                await kept.insert_many([{"_id": n} for n in range(50)])
            os.kill(held.pid, signal.SIGKILL)
            await held.ended.wait()
            assert told == [True]
            async with holding(servers, "ichi_a") as again, client(again) as root:
                assert again is not held
                assert await root.ichi_a.kept.count_documents({}) == 50
            assert psutil.pid_exists(other.pid)

    loop(run())


def test_many_who_come_at_once_get_the_same(loop, servers):
    async def run():
        await servers.all.end("ichi_a")
        found = await asyncio.gather(*(servers.all.hold("ichi_a") for _ in range(30)))
        assert len({id(one) for one in found}) == 1
        assert found[0].holders == 30
        for one in found:
            servers.all.release(one)

    loop(run())


@pytest.mark.parametrize("name", ["ichi_nobody", "", "../ichi_a", "a/b", "x" * 64, "a\0b", "ä"])
def test_what_is_no_project_has_none(loop, servers, name):
    with pytest.raises(InstanceError) as refused:
        loop(servers.all.hold(name))
    assert refused.value.code == "missing"


def test_no_more_run_than_may(loop, servers):
    async def run():
        async with holding(servers, "ichi_a"), holding(servers, "ichi_b"):
            async with holding(servers, "ichi_c") as third:
                with pytest.raises(InstanceError) as refused:
                    await servers.all.hold("ichi_d", make=True)
                assert refused.value.code == "full"
            async with holding(servers, "ichi_d"):  # the idle one makes room
                assert third.ended.is_set()

    loop(run())


def test_a_removed_project_leaves_nothing(loop, servers):
    async def run():
        held = await servers.all.hold("ichi_gone", make=True)
        folder = servers.folders.of("ichi_gone")
        assert folder.is_dir()
        await servers.all.remove("ichi_gone")
        assert held.ended.is_set()
        assert not folder.exists()
        assert not list(servers.folders.removed.iterdir())
        servers.all.release(held)
        await servers.all.remove("ichi_gone")
        with pytest.raises(InstanceError):
            await servers.all.hold("ichi_gone")

    loop(run())


def test_what_was_interrupted_is_cleared_away(servers):
    for rest in (servers.folders.projects / "ichi_half.new", servers.folders.removed / "abc"):
        rest.mkdir()
        (rest / "file").touch()
    servers.folders.tidy()
    assert not list(servers.folders.projects.glob("*.new"))
    assert not list(servers.folders.removed.iterdir())


def test_its_weight_and_memory_follow_the_tier(loop, servers):
    def bound(pid):
        return resource.prlimit(pid, resource.RLIMIT_DATA)[0]

    async def run():
        await servers.all.end("ichi_a")
        async with holding(servers, "ichi_a", Share(10, 400 << 20)) as held:
            assert os.getpriority(os.PRIO_PROCESS, held.pid) == processor.niceness(10)
            assert bound(held.pid) == 400 << 20
            servers.all.weigh("ichi_a", Share(5, 500 << 20))
            assert os.getpriority(os.PRIO_PROCESS, held.pid) == processor.niceness(5)
            assert bound(held.pid) == 500 << 20
            async with holding(servers, "ichi_a"):  # who does not know the tier changes nothing
                assert bound(held.pid) == 500 << 20
            servers.all.weigh("ichi_a", Share(5, 0))
            assert bound(held.pid) == resource.RLIM_INFINITY

    loop(run())


def test_one_that_takes_all_memory_harms_itself_alone(loop, servers):
    async def run():
        await servers.all.end("ichi_a")
        share = Share(10, 384 << 20)
        async with holding(servers, "ichi_b") as other, client(other) as root:
            await root.ichi_b.things.insert_one({"_id": 1})
            async with holding(servers, "ichi_a", share) as held, client(held) as greedy:
                with pytest.raises(PyMongoError):
                    await (await greedy.ichi_a.aggregate([
                        {"$documents": [{"a": "x" * 10_000_000}]},
                        *[{"$project": {"a": {"$concat": ["$a", "$a"]}}} for _ in range(7)],
                    ])).to_list()  # fmt: skip
                if not held.ended.is_set():
                    assert psutil.Process(held.pid).memory_info().rss < 500 << 20
            assert await root.ichi_b.things.count_documents({}) == 1
            async with holding(servers, "ichi_a", share) as again, client(again) as fine:
                await fine.ichi_a.after.insert_one({"_id": 1})
            assert not other.ended.is_set()

    loop(run())


def test_when_what_starts_them_is_killed_they_come_back(loop, servers):
    async def run():
        async with holding(servers, "ichi_a") as held:
            parent = psutil.Process(held.pid).parent()
            parent.kill()
            await held.ended.wait()
            await until(lambda: not psutil.pid_exists(held.pid))
            async with holding(servers, "ichi_a") as again, client(again) as root:
                assert await root.ichi_a.things.count_documents({}) == 1

    loop(run())


def test_those_in_use_are_told_once_more_than_they_were_let_go(loop, servers):
    async def run():
        servers.all.take_used()
        for name in list(servers.all.running):
            await servers.all.end(name)
        async with holding(servers, "ichi_a"), holding(servers, "ichi_b", look=True):
            pass
        assert servers.all.take_used() == ["ichi_a"]
        assert servers.all.take_used() == []
        async with holding(servers, "ichi_a"):
            assert servers.all.take_used() == ["ichi_a"]
            assert servers.all.take_used() == ["ichi_a"]

    loop(run())


def test_two_that_start_at_once_do_not_share_a_port(loop, servers, monkeypatch):
    ports = [free_port(), free_port()]
    given = iter([ports[0], ports[0], ports[1]])
    monkeypatch.setattr(instances, "_port", lambda: next(given))

    async def run():
        for name in ("ichi_a", "ichi_b"):
            await servers.all.end(name)
        found = await asyncio.gather(*map(servers.all.hold, ("ichi_a", "ichi_b")))
        assert sorted(one.port for one in found) == sorted(ports)
        for one in found:
            servers.all.release(one)

    loop(run())


def test_who_gives_up_while_a_server_starts_leaves_none(loop, servers):
    async def run():
        async with holding(servers, "ichi_a"):
            pass
        for name in list(servers.all.running):
            await servers.all.end(name)
        zygote = servers.all.zygote
        parent = psutil.Process(zygote._process.pid)
        for starts in (lambda: zygote._asked, lambda: servers.all._by_pid):
            start = asyncio.create_task(servers.all.hold("ichi_a"))
            while not starts():
                await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            assert "ichi_a" not in servers.all.running
            held = await servers.all.hold("ichi_a")  # once that one has ended
            assert [one.pid for one in parent.children()] == [held.pid]
            assert servers.all._ports == {held.port}
            async with client(held) as root:
                await root.ichi_a.things.find_one()
            servers.all.release(held)
            await servers.all.end("ichi_a")
        assert parent.children() == []
        assert not servers.all._ports
        assert not servers.all._leaving

    loop(run())


def test_nothing_is_kept_of_those_that_have_ended(loop, servers):
    async def run():
        for n in range(4):
            async with holding(servers, f"ichi_brief{n}"):
                pass
            await servers.all.remove(f"ichi_brief{n}")
        for kept in (servers.all._locks, servers.all.shares, servers.all._leaving):
            assert not [name for name in kept if name.startswith("ichi_brief")]
        assert not servers.all._early

    loop(run())


def test_where_no_folder_can_be_made_the_reason_is_told(loop, servers, monkeypatch, tmp_path):
    monkeypatch.setattr(servers.folders, "template", tmp_path / "none")
    with pytest.raises(InstanceError, match="No such file") as refused:
        loop(servers.all.hold("ichi_nowhere", make=True))
    assert refused.value.code == "failed"


NO_FORK = """
import os
real, times = os.fork, []
def fork():
    times.append(1)
    if len(times) == 2:
        raise BlockingIOError(11, "no more processes")
    return real()
os.fork = fork
"""


def test_when_the_system_starts_no_process_those_that_run_go_on(loop, servers, monkeypatch):
    monkeypatch.setattr(zygote, "WARM", NO_FORK)
    ended = []

    async def run():
        made = Zygote(servers.log, lambda pid, status: ended.append((pid, status)))
        await made.start()
        folder = servers.folders.root
        argv = embedded.arguments(folder, free_port())
        first = await made.fork(argv, folder, folder / "log", 0)
        with pytest.raises(ZygoteError, match="no more processes"):
            await made.fork(argv, folder, folder / "log", 0)
        second = await made.fork(["--help"], folder, folder / "log", 0)
        await until(lambda: (second, 0) in ended)
        assert psutil.pid_exists(first)
        await made.stop()
        assert ended[1:] == [(first, -9)]

    loop(run())


def test_one_that_ends_when_all_do_ends_in_order(loop, servers):
    statuses = []

    async def run():
        await servers.all.end("ichi_a")
        made = Instances(servers.folders, servers.log, most=1)
        await made.start()
        tell = made.zygote.ended
        made.zygote.ended = lambda pid, status: (statuses.append(status), tell(pid, status))
        held = await made.hold("ichi_a")
        made.release(held)
        ending = asyncio.create_task(made._stop(held))  # as the sweeper does
        await asyncio.sleep(0)
        await made.stop()
        await ending

    loop(run())
    assert statuses == [0]


def test_the_next_one_takes_its_place_with_all_that_is_in_it(loop, servers):
    async def write(name, number):
        async with holding(servers, name) as held, client(held) as root:
            kept = root.ichi_d.get_collection("kept", write_concern=WriteConcern(w=1, j=True))
            await kept.insert_one({"_id": number})

    async def read():
        async with holding(servers, "ichi_d") as held, client(held) as root:
            return [one["_id"] async for one in root.ichi_d.kept.find()]

    async def run():
        await write("ichi_d", 1)
        await servers.all.replace("ichi_d")  # there is no other
        assert await read() == [1]
        await write("next-ichi_d", 2)
        async with holding(servers, "ichi_d") as held:  # whoever uses it is cut off
            await servers.all.replace("ichi_d")
            assert held.ended.is_set()
        assert (await read(), servers.folders.there("next-ichi_d")) == ([2], False)
        await write("next-ichi_e", 3)
        await servers.all.replace("ichi_e")  # which had none
        assert servers.folders.there("ichi_e")
        for name in ("ichi_d", "ichi_e"):
            await servers.all.remove(name)

    loop(run())


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_place_that_was_being_taken_when_the_manager_was_killed_is_taken(tmp_path, renamed):
    folders = Folders(tmp_path)
    folders.tidy()
    for name in ("ichi_a", "next-ichi_a"):
        folders.of(name).mkdir()
        (folders.of(name) / name).touch()
    if renamed:
        folders.of("ichi_a").rename(folders.projects / "ichi_a.before")
    if renamed == 2:
        folders.of("next-ichi_a").rename(folders.of("ichi_a"))
    folders.tidy()
    there = sorted(str(path.relative_to(tmp_path / "projects")) for path in
                   (tmp_path / "projects").rglob("*"))  # fmt: skip
    if renamed:
        assert there == ["ichi_a", "ichi_a/next-ichi_a"]
    else:  # that one had not begun: who makes it removes it
        assert there == ["ichi_a", "ichi_a/ichi_a", "next-ichi_a", "next-ichi_a/next-ichi_a"]
    assert list(folders.removed.iterdir()) == []
