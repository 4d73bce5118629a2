"""What a server has once for all projects is not for one of them to fill."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import struct
import threading
import time

import psycopg
import pytest

from ichicore.pg.executor import NONE, Group, Statement
from server.base.context import NodeConfig
from server.base.events import Events
from server.control import records
from server.control.database import LOCAL_CLUSTER, Cluster, connect, prepare
from server.control.lifecycle import Lifecycle
from server.control.projects import Projects
from server.maintenance import memory, seed, shared, slots, strain
from server.maintenance.shared import Shared
from server.node import embedded_pg
from server.node.embedded_pg import LOG_LIMIT, EmbeddedPostgres
from server.postgres.pool import Pool
from server.realtime import pg_slot, pg_stream
from server.realtime.pg_feed import GAP
from tests.server.realtime.feed_world import feeding
from tests.servers import running_server


def run(coroutine):
    return asyncio.run(coroutine)


class Small:
    """A server with little room, and two projects on it."""

    def __init__(self, server, folder):
        self.server = server
        cluster = Cluster(
            kind="embedded", admin_dsn=server.dsn(), host="127.0.0.1", port=server.port,
            socket_dir=str(server.socket_dir), database="control_small",
        )  # fmt: skip
        dsn = run(prepare(cluster, "control password"))
        self.config = NodeConfig(data_dir=folder, control_dsn=dsn)
        self.projects = Projects(dsn, {cluster.id: cluster}, self.config)
        self.greedy, self.other = (
            records.to_project(run(self.projects.create(name)), self.config)
            for name in ("greedy", "other")
        )

    def audited(self):
        with psycopg.connect(self.config.control_dsn) as control:
            return control.execute(
                "select project, detail ->> 'reason' from audit "
                "where action = 'project.sessions_ended' order by id"
            ).fetchall()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    options = {"max_connections": "40", "reserved_connections": "25",
               "max_locks_per_transaction": "64", "max_slot_wal_keep_size": "64MB"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_pg, "MOST_MEMORY", 256 << 20)
        with running_server(**options) as server:
            yield Small(server, tmp_path_factory.mktemp("small"))


def fill(session):
    """Takes locks until there is no room; gives what the server says."""
    try:
        for n in range(10_000):
            session.execute(f"select pg_advisory_lock({n}, m) from generate_series(1, 50) m")
    except psycopg.Error as error:
        for n in range(60):  # the rest, one by one
            with contextlib.suppress(psycopg.Error):
                session.execute(f"select pg_advisory_lock(-1, {n})")
        return str(error)


def look(small):
    async def once():
        keeper = Shared(small.projects, Events())
        ended = await keeper.look(LOCAL_CLUSTER)
        await keeper.stop()
        return ended

    return run(once())


def test_the_table_of_locks_is_emptied_of_who_fills_it(small):
    told = []
    events = Events()
    events.listeners.append(told.append)
    with (
        psycopg.connect(small.greedy.owner_dsn, autocommit=True) as greedy,
        psycopg.connect(small.other.owner_dsn, autocommit=True) as other,
    ):
        other.execute("select pg_advisory_lock(n) from generate_series(1, 200) n")

        async def work():
            keeper = Shared(small.projects, events)
            assert await keeper.look(LOCAL_CLUSTER) == 0
            assert "out of shared memory" in await asyncio.to_thread(fill, greedy)
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(small.config.control_dsn)  # nobody may even log in
            ended = await keeper.look(LOCAL_CLUSTER)
            await keeper.stop()
            return ended

        assert run(work()) == 1
        with pytest.raises(psycopg.OperationalError):
            greedy.execute("select 1")
        other.execute("create table mine (n int)")
        assert len(told) == 1
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(small.greedy.owner_dsn)
    run(small.projects.recover())  # as the maintenance does at every other look
    psycopg.connect(small.greedy.owner_dsn).close()
    assert small.audited() == [("greedy", "locks")]


def test_a_look_that_fails_is_not_the_last(small):
    async def work():
        keeper = Shared(small.projects, Events())
        assert await keeper.look(LOCAL_CLUSTER) == 0
        (server,) = keeper._servers.values()
        await server.admin.execute("deallocate look")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            await keeper.look(LOCAL_CLUSTER)
        await server.admin.execute(f"prepare look as {strain.LOOK.format(snapshots=0, held=1)}")
        assert await keeper.look(LOCAL_CLUSTER) == 0
        await keeper.stop()

    run(work())


def test_a_session_that_is_stuck_is_given_up(small, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 2.0)

    async def work():
        keeper = Shared(small.projects, Events())
        assert await keeper.look(LOCAL_CLUSTER) == 0
        (server,) = keeper._servers.values()
        process = server.admin.info.backend_pid
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(psycopg.OperationalError, match="no answer"):
                async with asyncio.timeout(600):
                    await keeper.look(LOCAL_CLUSTER)
        finally:
            os.kill(process, signal.SIGCONT)
        assert await keeper.look(LOCAL_CLUSTER) == 0
        await keeper.stop()

    run(work())


def test_the_queue_of_notifications_is_not_held_up(small, monkeypatch):
    monkeypatch.setattr(strain, "QUEUE", 1e-6)
    monkeypatch.setattr(strain, "LONG", 0.2)
    before = len(small.audited())
    with (
        psycopg.connect(small.greedy.owner_dsn) as holds,
        psycopg.connect(small.greedy.owner_dsn, autocommit=True) as fills,
    ):
        holds.execute("listen something")
        holds.commit()
        holds.execute("select 1")
        time.sleep(0.4)
        assert look(small) == 0
        for _ in range(5):
            fills.execute("select count(pg_notify('x', n || repeat('a', 7000))) "
                          "from generate_series(1, 50) n")  # fmt: skip
        assert look(small) == 1
        with pytest.raises(psycopg.OperationalError):
            holds.execute("select 1")
    assert small.audited()[before:] == [("greedy", "notifications")]
    run(small.projects.recover())


@contextlib.contextmanager
def watched(small, keeper=None):
    """The maintenance looks at the server, in a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def work():
        task = asyncio.create_task((keeper or Shared(small.projects, Events())).run())
        tasks.append(task)
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    tasks = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join()
        loop.close()
        run(small.projects.recover())


def ended(small, before, expected):
    """Whether this, and no more, is noted of sessions that were ended since."""
    until = time.monotonic() + 10
    while small.audited()[before:] != [expected] and time.monotonic() < until:
        time.sleep(0.05)
    return small.audited()[before:] == [expected]


FILL = "select pg_advisory_lock(n) from generate_series(1, 1000000) n"


class HeldBack(Shared):
    """Looks once, and then no more until it may go on."""

    def __init__(self, small):
        super().__init__(small.projects, Events())
        self.looked, self.may_go_on = threading.Event(), threading.Event()

    async def look(self, cluster_id):
        if self.looked.is_set() and not self.may_go_on.is_set():
            return 0
        found = await super().look(cluster_id)
        self.looked.set()
        return found


@pytest.mark.parametrize("login", ["owner", "authenticator"])
def test_requests_of_others_go_on_while_the_table_of_locks_is_filled(small, login):
    dsn = getattr(small.greedy, f"{login}_dsn")
    before = len(small.audited())
    with psycopg.connect(small.other.owner_dsn, autocommit=True) as other:
        other.execute("create table if not exists rows (n int)")

    def attack():
        for _ in range(6):
            with contextlib.suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True) as one:
                with contextlib.suppress(psycopg.errors.OutOfMemory):
                    one.execute(FILL)
                one.execute("select pg_sleep(10)")

    async def request(pool):
        group = Group("")
        group.add(Statement("insert into rows values (1)", result=NONE))
        await pool.run(group)

    async def requests(keeper):
        first, second = pools = [Pool(small.other.owner_dsn) for _ in range(2)]
        thread = threading.Thread(target=attack)
        try:
            for _ in range(10):
                await request(first)
            thread.start()
            refused = None  # a request that has met a full table
            while refused is None and thread.is_alive():
                one = asyncio.create_task(request(first))
                while not one.done() and not first.stats()["retried"]:
                    await asyncio.sleep(0.002)
                if first.stats()["retried"]:
                    refused = one
                await asyncio.sleep(0.002)
            assert refused is not None
            opened = asyncio.create_task(request(second))  # its first session
            await asyncio.sleep(0.01)
            keeper.may_go_on.set()
            await refused
            await opened
            for n in itertools.count():
                if n > 20 and not thread.is_alive():
                    break
                await request(first)
                await request(second)
                await asyncio.sleep(0.02)
        finally:
            keeper.may_go_on.set()
            await asyncio.to_thread(thread.join)
            for pool in pools:
                await pool.close()

    keeper = HeldBack(small)
    with watched(small, keeper):
        assert keeper.looked.wait(60)
        run(requests(keeper))
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(dsn)
    psycopg.connect(dsn).close()
    noted = small.audited()[before:]
    assert noted == [("greedy", "locks")] * (1 if login == "owner" else 3)


@pytest.mark.parametrize("change", ["set search_path = nowhere", "password 'known'", "reset all"])
def test_a_change_of_a_shared_role_that_stays_open_keeps_nobody_waiting(small, change):
    greedy = psycopg.connect(small.greedy.owner_dsn, autocommit=True)
    with contextlib.closing(greedy), watched(small):
        greedy.execute("set role anon; alter role anon set search_path = here")
        greedy.execute(f"begin; alter role anon {change}")
        run(small.projects.create("new"))
    run(small.projects.delete("new"))


STALLS = ("copy stalled from stdin", "select repeat('x', 1000000) from generate_series(1, 200)")


@pytest.mark.parametrize("statement", STALLS)
def test_a_session_that_is_silent_keeps_no_project_from_being_removed(small, statement):
    before = len(small.audited())
    with psycopg.connect(small.greedy.owner_dsn, autocommit=True) as greedy:
        greedy.execute("create table if not exists stalled (line text)")
        greedy.execute("set statement_timeout = 0")
        greedy.pgconn.send_query(statement.encode())
        run(small.projects.create("old"))
        with watched(small):
            run(small.projects.delete("old"))
            assert ended(small, before, ("greedy", "silence"))
        greedy.pgconn.finish()


def test_who_does_not_log_in_keeps_no_project_from_being_removed(small):
    names = b"user\0nobody\0database\0nothing\0\0"
    with socket.create_connection(("127.0.0.1", small.server.port), timeout=10) as peer:
        peer.sendall(struct.pack("!ii", len(names) + 8, 3 << 16) + names)
        peer.recv(1)  # it is asked for a password
        run(small.projects.create("old"))
        with watched(small):
            run(small.projects.delete("old"))
        while peer.recv(1000):
            pass


def test_exported_snapshots_do_not_fill_the_disk(small):
    before = len(small.audited())
    greedy = psycopg.connect(small.greedy.owner_dsn)
    with contextlib.closing(greedy), watched(small):
        with pytest.raises(psycopg.OperationalError):
            greedy.execute("select pg_export_snapshot() from generate_series(1, 1000000)")
        assert ended(small, before, ("greedy", "snapshots"))
    assert list((small.server.pgdata / "pg_snapshots").iterdir()) == []


@pytest.mark.parametrize("port", ["silent", "closed"])
def test_a_server_that_is_away_keeps_no_other_from_being_looked_at(small, port):
    before = len(small.audited())
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, says nothing
        number = listener.getsockname()[1]
        if port == "closed":
            listener.close()
        away = Cluster(
            id="away", kind="external", admin_dsn=f"host=127.0.0.1 port={number} user=nobody",
            host="127.0.0.1", port=number,
        )  # fmt: skip
        clusters = {away.id: away, **small.projects.clusters}
        keeper = Shared(Projects(small.config.control_dsn, clusters, small.config), Events())
        greedy = psycopg.connect(small.greedy.owner_dsn)
        with contextlib.closing(greedy), watched(small, keeper):
            with pytest.raises(psycopg.OperationalError):
                greedy.execute("select count(pg_export_snapshot()), pg_sleep(8) "
                               "from generate_series(1, 1000)")  # fmt: skip
            assert ended(small, before, ("greedy", "snapshots"))


SORT = (
    "select count(*) from (select repeat('x', 1000) || n from generate_series(1, {}) n order by 1)"
)


def test_no_session_takes_all_memory_whatever_it_has_set(small):
    with psycopg.connect(small.greedy.owner_dsn, autocommit=True) as greedy:
        greedy.execute("set work_mem = '2147483647kB'")
        with pytest.raises(psycopg.errors.OutOfMemory):
            greedy.execute(SORT.format(1_000_000))
        with pytest.raises(psycopg.errors.OutOfMemory):
            greedy.execute("select pg_notify('x', n || repeat('x', 7000)) "
                           "from generate_series(1, 100000) n")  # fmt: skip
        greedy.execute("select 1")


def test_who_takes_the_most_memory_is_ended_before_there_is_none(small, monkeypatch):
    before = len(small.audited())
    monkeypatch.setattr(memory, "PART", (20 << 20) / memory.Memory().total)
    with (
        psycopg.connect(small.other.owner_dsn, autocommit=True) as other,
        contextlib.closing(psycopg.connect(small.greedy.owner_dsn)) as greedy,
    ):
        other.execute("select 1")
        greedy.execute("set work_mem = '1GB'")
        with watched(small):
            time.sleep(0.5)
            monkeypatch.setattr(memory, "LITTLE", 1.0)
            monkeypatch.setattr(memory, "ROOM", 1 << 60)
            with pytest.raises(psycopg.OperationalError):
                greedy.execute("select pg_sleep(10) from (" + SORT.format(30_000) + ")")
            monkeypatch.undo()
            assert ended(small, before, ("greedy", "memory"))


def test_a_feed_begins_while_transactions_of_others_are_open(small):
    async def begin():
        async with await connect(small.server.dsn()) as admin:
            assert await seed.keep(admin)
            greedy.execute("create table if not exists public.open (n int)")
            greedy.commit()
            greedy.execute("insert into public.open values (1)")
            assert await seed.keep(admin)
        async with await pg_stream.connect(small.other.feed_dsn, replication=True) as feed:
            async with asyncio.timeout(5):
                slot = await pg_slot.acquire(feed, "ichi_test", bounded=True, flushed=0)
            assert slot.made
            other.execute("create table public.told (n int)")
            other.execute("insert into public.told values (4711)")
            try:
                read = ("select count(*) from pg_logical_slot_get_binary_changes('ichi_test', null,"
                        " null, 'proto_version', '1', 'publication_names', 'everything') "
                        "where position('4711'::bytea in data) > 0")  # fmt: skip
                return (await (await feed.execute(read)).fetchone())[0]
            finally:
                await pg_slot.drop(feed, "ichi_test")

    with (
        contextlib.closing(psycopg.connect(small.greedy.owner_dsn)) as greedy,
        psycopg.connect(small.other.owner_dsn, autocommit=True) as other,
        psycopg.connect(small.server.dsn(other.info.dbname), autocommit=True) as admin,
    ):
        admin.execute("create publication everything for all tables")
        assert run(begin()) == 1
        greedy.rollback()


@pytest.mark.parametrize("whose", ["other", "greedy"])
def test_who_holds_the_log_back_costs_nobody_else_the_feed(small, monkeypatch, whose):
    monkeypatch.setattr(slots, "PAUSE", 0.05)
    monkeypatch.setattr(shared, "PAUSE", 0.05)
    monkeypatch.setattr(pg_stream, "REPORT_SECONDS", 0.1)
    before = len(small.audited())
    fed = getattr(small, whose)
    with psycopg.connect(fed.owner_dsn, autocommit=True) as owner:
        owner.execute("create table if not exists fed (id int primary key)")
    holds = psycopg.connect(small.greedy.owner_dsn)
    holds.execute("drop table if exists held; create table held (n int, text text)")
    holds.commit()

    def write():
        """More log than is kept, with the looks of the server at its slots."""
        with (
            psycopg.connect(small.greedy.owner_dsn, autocommit=True) as writes,
            psycopg.connect(small.server.dsn(), autocommit=True) as admin,
        ):
            for _ in range(13):
                writes.execute("insert into held select n, repeat('x', 1000) "
                               "from generate_series(1, 7000) n")  # fmt: skip
                admin.execute("checkpoint")
                time.sleep(0.2)

    async def feed():
        async with feeding(fed, "public.fed") as (one, kept):
            holds.execute("insert into held values (1, '')")
            await asyncio.to_thread(write)
            if whose == "greedy":
                holds.commit()
            await one.ready()
            with psycopg.connect(fed.owner_dsn, autocommit=True) as owner:
                owner.execute("insert into fed values (1)")
            await kept.until(lambda: kept.changes)
            return kept.notices

    with contextlib.closing(holds), watched(small):
        gaps = run(feed())
        if whose == "greedy":
            assert gaps == [GAP]
            assert small.audited()[before:] == []
            return
        with pytest.raises(psycopg.errors.AdminShutdown):
            holds.execute("select 1")
        assert gaps == []
        assert small.audited()[before:] == [("greedy", "log")]


def test_what_others_do_for_a_while_is_let_be(small):
    before = len(small.audited())
    a, b = (psycopg.connect(small.greedy.owner_dsn) for _ in range(2))
    with contextlib.closing(a), contextlib.closing(b), watched(small):
        a.execute("create table if not exists worked_on (n int)")
        a.commit()
        a.execute("lock table worked_on; select pg_export_snapshot()")
        a.execute("select pg_advisory_lock(n) from generate_series(1, 500) n")
        b.pgconn.send_query(b"insert into worked_on values (1)")  # waits, but for its own project
        time.sleep(1.2)
        a.commit()
        assert b.pgconn.get_result().error_message == b""
    assert small.audited()[before:] == []


def test_owners_leave_the_servers_own_connections_alone(small):
    life = Lifecycle(small.projects)
    run(life.change("greedy", {"limits": {"connections": 100}}, "test"))
    held = []
    try:
        with contextlib.suppress(psycopg.OperationalError):
            for _ in range(40):
                held.append(psycopg.connect(small.greedy.owner_dsn))
        with pytest.raises(psycopg.OperationalError, match="reserved"):
            psycopg.connect(small.other.owner_dsn)
        assert len(held) >= 5
        for dsn in (small.other.authenticator_dsn, small.other.system_dsn, small.other.feed_dsn):
            psycopg.connect(dsn).close()
        psycopg.connect(small.config.control_dsn).close()
    finally:
        for one in held:
            one.close()
    run(life.change("greedy", {"limits": {}}, "test"))


def test_a_project_writes_nothing_into_the_servers_log(small):
    path = small.server.data_dir / "postgres.log"
    before = path.stat().st_size
    for dsn in (small.greedy.owner_dsn, small.greedy.authenticator_dsn):
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("do $$ begin raise log 'a secret of somebody'; end $$")
            session.execute("do $$ begin raise warning 'a secret of somebody'; end $$")
            for statement in (
                "select 'a secret of somebody'::int", "set log_min_messages = debug5",
                "set log_statement = 'all'", "set log_error_verbosity = verbose",
            ):  # fmt: skip
                with pytest.raises(psycopg.Error):
                    session.execute(statement)
    with path.open("rb") as log:
        log.seek(before)
        assert b"secret" not in log.read()


def test_a_long_log_is_moved_aside_while_the_server_writes_it(tmp_path):
    path = tmp_path / "postgres.log"
    EmbeddedPostgres.trim_log(path)
    with path.open("ab") as server:
        server.write(b"x" * LOG_LIMIT)
        server.flush()
        EmbeddedPostgres.trim_log(path)
        assert path.stat().st_size == LOG_LIMIT
        server.write(b"the end")
        server.flush()
        EmbeddedPostgres.trim_log(path)
        server.write(b"more")
    assert path.read_bytes() == b"more"
    kept = (tmp_path / "postgres.log.1").read_bytes()
    assert len(kept) == LOG_LIMIT
    assert kept.endswith(b"xthe end")
