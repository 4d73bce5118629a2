"""Which sessions of a real server are weighed how, and who is found to be heavy."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from server.base import processor
from server.base.events import Events
from server.control import records
from server.control.lifecycle import Lifecycle
from server.maintenance import census
from server.maintenance.census import Census
from server.maintenance.processors import BULK, READER, WRITER, WRITER_APART, Processors
from server.maintenance.servers import DocumentServers

BEHIND = os.SCHED_IDLE if processor.can_return() else os.SCHED_BATCH
BUSY = "select count(*) from generate_series(1, 1000000) a where md5(a::text) < '8'"


@pytest.fixture(scope="module")
def pair(world):
    """(a free project, a pro one)."""
    projects = world.fresh()
    made = [
        asyncio.run(projects.create(f"share-{tier}", tier=tier, owner=f"{tier}-sharer"))
        for tier in ("free", "pro")
    ]
    yield [records.to_project(one, world.config) for one in made]
    for tier in ("free", "pro"):
        asyncio.run(world.fresh().delete(f"share-{tier}"))


@pytest.fixture
def eyes(world, pg_cluster):
    """A Processors, and what it has told."""
    events, told = Events(), []
    events.listeners.append(told.append)
    return Processors(world.fresh(), Census(pg_cluster.pgdata), os.getpid(), events), told


def look(processors, times=1, pause=0.0):
    async def work():
        for _ in range(times):
            await processors.look()
            await asyncio.sleep(pause)
        if processors._control is not None:
            await processors._control.close()

    asyncio.run(work())


def niceness(session):
    return os.getpriority(os.PRIO_PROCESS, session.info.backend_pid)


def policy(session):
    return os.sched_getscheduler(session.info.backend_pid)


def test_sessions_are_weighed_by_the_tiers_of_their_projects(world, pair, eyes):
    processors, told = eyes
    free, pro = pair
    dsns = free.owner_dsn, free.system_dsn, pro.owner_dsn, world.dsn
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(psycopg.connect(dsn)) for dsn in dsns]
        look(processors)
        assert [niceness(one) for one in sessions] == [10, 10, 0, 0]
    assert told == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: raising a weight")
def test_a_change_of_the_tier_reaches_open_sessions(world, pair, eyes):
    processors, _ = eyes
    life = Lifecycle(world.fresh())
    with psycopg.connect(pair[0].owner_dsn) as session:
        look(processors)
        assert niceness(session) == 10
        for limits, expected in (({"cpu_weight": 50}, 3), ({"cpu_weight": 100}, 0), ({}, 10)):
            asyncio.run(life.change("share-free", {"limits": limits}, "test"))
            processors._left = 0
            look(processors)
            assert niceness(session) == expected


def test_who_is_alone_is_not_interrupted(pair, eyes, monkeypatch):
    processors, _ = eyes
    monkeypatch.setattr("server.maintenance.processors.nice_seconds", lambda: 0.0)
    processors.heavy = {"ichi_a"}
    monkeypatch.setattr(processors.census, "databases", {1: "ichi_a", 2: ""})
    monkeypatch.setattr(processors.census, "spent", lambda: {"ichi_a": 0.2})
    processors._count(0.25, 10.25)
    assert (processors.heavy, processors.crowded) == ({"ichi_a"}, False)
    monkeypatch.setattr(processors.census, "databases", {1: "ichi_a", 2: "ichi_b"})
    processors._count(0.25, 10.5)
    assert processors.crowded


def test_who_uses_much_may_be_interrupted_until_he_is_quiet(pair, eyes, monkeypatch):
    processors, _ = eyes
    monkeypatch.setattr("server.maintenance.processors.CALM", 0.3)
    monkeypatch.setattr("server.maintenance.processors.nice_seconds", lambda: 0.0)
    free, pro = pair
    stop = threading.Event()

    def work():
        with psycopg.connect(free.owner_dsn, autocommit=True) as session:
            pids.append(session.info.backend_pid)
            while not stop.is_set():
                session.execute(BUSY)

    pids = []
    thread = threading.Thread(target=work)
    with psycopg.connect(pro.owner_dsn) as quiet:
        look(processors)
        assert (policy(quiet), processors.crowded) == (os.SCHED_BATCH, False)
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not processors.heavy and time.monotonic() < deadline:
                look(processors, 2, 0.25)
            look(processors, 2, 0.25)
            assert len(processors.heavy) == 1
            assert processors.crowded
            assert policy(quiet) == os.SCHED_OTHER
            # Which one depends on what other tests leave it of the processors.
            assert os.sched_getscheduler(pids[0]) in (os.SCHED_BATCH, BEHIND)
        finally:
            stop.set()
            thread.join()
        look(processors, 8, 0.15)
        assert (processors.heavy, processors.crowded) == (set(), False)
        assert policy(quiet) == os.SCHED_BATCH


def test_who_comes_behind_all_others_is_let_in_as_soon_as_they_leave_too_little(
    pair, eyes, monkeypatch
):
    processors, _ = eyes
    free, pro = pair
    with psycopg.connect(free.owner_dsn) as light, psycopg.connect(pro.owner_dsn) as full:
        look(processors)
        names = [processors.census.databases[one.info.backend_pid] for one in (light, full)]
        pids = {one.info.backend_pid for one in (light, full)}

        def using(*parts):
            """Every session computes; the two projects use so much of a processor each."""
            seconds = dict(zip(names, parts, strict=True))
            monkeypatch.setattr(processors.census, "spent", lambda: seconds)
            monkeypatch.setattr(processors.writers, "look", lambda ran, now: None)
            processors.writers.computing = pids
            for _ in range(12):
                processors._looked = time.monotonic() - 1.0
                look(processors)

        using(0.9, 0.0)
        assert [policy(one) for one in (light, full)] == [BEHIND, os.SCHED_OTHER]
        using(0.2, 0.9)  # it is heavy still, and gets less than it may want
        assert [policy(one) for one in (light, full)] == [os.SCHED_BATCH, os.SCHED_BATCH]
        using(0.9, 0.9)  # others have their full weight against each other
        assert [policy(one) for one in (light, full)] == [BEHIND, os.SCHED_BATCH]
        processors._can_return = False
        using(0.9, 0.0)
        assert policy(light) == os.SCHED_BATCH
        if os.geteuid() == 0:
            assert [niceness(one) for one in (light, full)] == [10, 0]


def test_one_who_takes_over_puts_right_what_another_has_left(world, pair, eyes, pg_cluster):
    with psycopg.connect(pair[1].owner_dsn) as session:
        processor.queue(session.info.backend_pid, processor.LAST)
        look(eyes[0])
        assert policy(session) == os.SCHED_BATCH
        processor.queue(session.info.backend_pid, processor.FIRST)
        look(eyes[0])  # it knows the session, and how it was told to take its turns
        assert policy(session) == os.SCHED_OTHER
        after = Processors(world.fresh(), Census(pg_cluster.pgdata), os.getpid(), Events())
        look(after)
        assert policy(session) == os.SCHED_BATCH


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: raising a weight")
def test_the_computing_sessions_of_a_heavy_project_share_its_weight(pair, eyes, monkeypatch):
    processors, _ = eyes
    monkeypatch.setattr(processors.writers, "look", lambda ran, now: None)
    with contextlib.ExitStack() as stack:
        light = [stack.enter_context(psycopg.connect(pair[0].owner_dsn)) for _ in range(3)]
        full = stack.enter_context(psycopg.connect(pair[1].owner_dsn))
        look(processors, 2)
        name = processors.census.databases[light[0].info.backend_pid]
        processors.writers.computing = {one.info.backend_pid for one in light[:2]}
        processors.writers.writing = {light[2].info.backend_pid}

        def spent():
            processors.census.busy = {name: 3}
            return {name: 0.25}

        monkeypatch.setattr(processors.census, "spent", spent)
        look(processors, 6, 0.05)
        assert processors.heavy == {name}
        apart = len(processor.processors()) > 1
        writer = processor.niceness(WRITER_APART if apart else WRITER)
        low = 19 if processor.can_return() else 16
        assert [niceness(one) for one in (*light, full)] == [low, low, writer, 0]
        last, second, first = BEHIND, os.SCHED_OTHER, os.SCHED_OTHER
        assert [policy(one) for one in (*light, full)] == [last, last, second, first]
        processors.writers.bulk = {light[2].info.backend_pid}
        look(processors, 2, 0.05)
        assert niceness(light[2]) == processor.niceness(BULK)
        monkeypatch.setattr(processors.census, "spent", lambda: {name: 0.0})
        look(processors, 8, 0.05)
        assert processors.heavy == set()
        assert niceness(light[0]) == 10
        processors.census.readers.add(light[0].info.backend_pid)
        look(processors)
        assert niceness(light[0]) == processor.niceness(READER)


@pytest.mark.skipif(len(processor.processors()) < 2, reason="needs two processors")
def test_who_is_heavy_leaves_processors_to_others_that_are_there(pair, eyes, monkeypatch):
    processors, _ = eyes
    every = processor.processors()
    function = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: os.nice(5))
    monkeypatch.setattr(
        "server.maintenance.processors.named",
        lambda parent, names: {("ichibase-fn",): [1], ("deno",): [function.pid]}.get(names, []),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(function.wait)
        stack.callback(function.kill)
        light, full = (stack.enter_context(psycopg.connect(one.owner_dsn)) for one in pair)
        places = [light.info.backend_pid, function.pid, full.info.backend_pid]
        look(processors, 2)
        free, pro = (processors.census.databases[places[at]] for at in (0, 2))

        def seen(used, times=6):
            monkeypatch.setattr(processors.census, "spent", lambda: used)
            look(processors, times, 0.05)
            return [frozenset(os.sched_getaffinity(one)) for one in places]

        processors._present.clear()
        some = processor.most(every)
        assert seen({free: 0.25})[0] == every  # nobody else is there
        assert seen({free: 0.25, pro: 0.001}) == [some, some, every]
        keepers = processors.census.keepers
        assert len(keepers) == 2
        assert {frozenset(os.sched_getaffinity(one)) for one in keepers} == {some}
        assert processors._queued[function.pid] == processor.SECOND
        assert seen({free: 0.0, pro: 0.25}, 8)[0] == every  # a full weight may use all
        assert processors.heavy == {pro}
        monkeypatch.setattr("server.maintenance.processors.CALM", 0.1)
        monkeypatch.setattr("server.maintenance.processors.nice_seconds", lambda: 0.0)
        assert seen({free: 0.0, pro: 0.0}, 12) == [every, every, every]
        assert {frozenset(os.sched_getaffinity(one)) for one in keepers} == {every}
        assert os.sched_getscheduler(function.pid) == os.SCHED_BATCH


def test_a_system_that_refuses_is_told_of_once(pair, eyes, monkeypatch):
    processors, told = eyes

    def refuse(process, weight):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("server.base.processor.share", refuse)
    with psycopg.connect(pair[0].owner_dsn), psycopg.connect(pair[0].owner_dsn):
        look(processors, 2)
    assert len(told) == 1
    assert "cpu_weight" in str(told[0])


def test_a_server_that_is_away_is_no_failure(world, tmp_path):
    processors = Processors(world.fresh(), Census(tmp_path), os.getpid(), Events())
    look(processors, 2)
    assert processors.census.databases == {}


NAME = "ichi_abcdefghjkmn"


@pytest.mark.parametrize(
    ("title", "database"),
    [
        ("postgres: {0}_owner {0} 127.0.0.1(4) SELECT", NAME),
        ("postgres: autovacuum worker {0}", NAME),
        ("postgres: walsender {0}_feed {0} [local] START_REPLICATION", NAME),
        ("postgres: {0}_owner {0}_new [local] COPY", NAME),
        ("postgres: ichibase_control ichibase [local] idle", None),
        ("postgres: checkpointer ", None),
        ("/usr/bin/postgres -D {0}", None),
    ],
)
def test_titles_name_the_database(title, database):
    found = census.DATABASE.match(title.format(NAME).encode())
    assert (found and found[1].decode()) == database


@pytest.mark.parametrize(
    ("title", "reads", "keeps"),
    [
        ("postgres: walsender {0}_feed {0} [local] START_REPLICATION", True, False),
        ("postgres: {0}_owner {0} 127.0.0.1(4) SELECT", False, False),
        ("postgres: checkpointer ", False, True),
        ("postgres: background writer ", False, True),
    ],
)
def test_feeds_are_known_and_what_writes_for_all(tmp_path, monkeypatch, title, reads, keeps):
    here, seen = os.getpid(), Census(tmp_path)
    monkeypatch.setattr(Census, "_children", lambda self: {here})
    monkeypatch.setattr(census.Path, "read_bytes", lambda path: title.format(NAME).encode())
    seen.look()
    assert (here in seen.readers, here in seen.keepers) == (reads, keeps)
    assert (NAME in seen.spent()) == (not reads and not keeps)


def test_children_are_found_with_and_without_the_kernels_list(monkeypatch):
    process = os.fork()
    if process == 0:
        time.sleep(30)
        os._exit(0)
    try:
        listed = census.children(os.getpid())
        assert process in listed

        def without(path, *how):
            if str(path).endswith("children"):
                raise FileNotFoundError
            return open(path, *how)

        monkeypatch.setattr(census, "open", without, raising=False)
        assert process in census.children(os.getpid())
        with pytest.raises(ProcessLookupError):
            census.children(2**22 - 7)
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)


def test_document_servers_count_as_sessions_of_their_projects(tmp_path):
    """A process in the place of each: the node's, the manager, what forks, and two servers."""
    program = tmp_path / "tree.py"
    program.write_text("""
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
def named(name):
    libc.prctl(15, name, 0, 0, 0)
    libc.prctl(1, 9, 0, 0, 0)
if os.fork() == 0:
    named(b"ichibase-docs")
    if os.fork() == 0:
        libc.prctl(1, 9, 0, 0, 0)
        for number in range(2):
            if os.fork() == 0:
                named(b"secantus")
                os.chdir(sys.argv[1 + number])
                while number == 0:
                    pass
                time.sleep(60)
        time.sleep(60)
    time.sleep(60)
libc.prctl(1, 9, 0, 0, 0)
print(flush=True)
time.sleep(60)
""")
    names = ["ichi_aaaaaaaaaaaa", "ichi_bbbbbbbbbbbb"]
    folders = [tmp_path / "projects" / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    node = subprocess.Popen(
        [sys.executable, program, *folders], stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(5)
    )
    try:
        assert node.stdout.readline()
        servers = DocumentServers(node.pid)
        deadline = time.monotonic() + 30
        while sorted(servers.look().values()) != names:
            servers._left = 0
            assert time.monotonic() < deadline
            time.sleep(0.02)
        census = Census(tmp_path, servers.look)
        assert set(census.look()) == set(servers.look())
        census.spent()
        time.sleep(0.3)
        spent = census.spent()
        assert spent[names[0]] > 0.05
        assert spent[names[1]] < 0.02
        assert census.busy == {names[0]: 1, names[1]: 0}
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    while servers.look():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert census.look() == set()
