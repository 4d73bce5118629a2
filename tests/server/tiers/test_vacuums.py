"""The workers that vacuum and analyze are a server's, and no project's alone."""

import asyncio
import time

import psycopg
import pytest

from server.base.context import NodeConfig
from server.base.events import Events
from server.control import records
from server.control.database import prepare
from server.control.projects import Projects
from server.maintenance import vacuums
from server.maintenance.vacuums import Worker, in_the_way
from tests.clusters import cluster_of
from tests.servers import running_server
from tests.timing import slowness

PATIENCE = 60.0  # seconds


def run(coroutine):
    return asyncio.run(coroutine)


def worker(pid, database, seconds, computes=False, needed=False):
    return Worker(pid, database, seconds, computes, needed)


def test_who_is_in_the_way():
    def ended(workers, most=3):
        return [one.pid for one in in_the_way(workers, most)]

    long, computing = vacuums.LONG + 1, vacuums.COMPUTING + 1
    vacuum = [worker(1, "a", 3 * long), worker(2, "a", 2 * long), worker(3, "b", long)]
    assert ended(vacuum) == [1]  # it has more than half; one of its own goes on
    assert ended(vacuum, most=4) == []  # one is free
    assert ended(vacuum[1:], most=2) == []  # each has one
    assert ended([worker(1, "a", long, needed=True), *vacuum[1:]]) == [2]
    assert ended([worker(1, "a", 5.0), worker(2, "a", 4.0), worker(3, "b", 3.0)]) == []
    assert ended([worker(n, name, computing, True) for n, name in enumerate("abc")]) == [0, 1, 2]
    assert ended([worker(n, name, 5.0, True) for n, name in enumerate("abc")]) == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(projects, one that is greedy, another) on a server with two workers."""
    options = {"autovacuum_naptime": "1s", "autovacuum_max_workers": "2"}
    with running_server(**options) as server:
        cluster = cluster_of(server, "control_vacuums")
        dsn = run(prepare(cluster, "control password"))
        config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
        projects = Projects(dsn, {cluster.id: cluster}, config)
        greedy, other = (
            records.to_project(run(projects.create(name, tier="free", owner=name)), config)
            for name in ("greedy", "other")
        )
        yield projects, greedy, other


# Where nobody has said otherwise, as in a worker, it does not come to an end.
SLOW = """
create function slow(n int) returns int language plpgsql immutable as $$
begin
  if current_setting('own.session', true) is null then
    perform pg_sleep(3600);
  end if;
  return n;
end $$
"""


def until(condition):
    end = time.monotonic() + PATIENCE * slowness()
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_functions_in_indexes_do_not_keep_all_workers(pair, monkeypatch):
    projects, greedy, other = pair
    monkeypatch.setattr(vacuums, "COMPUTING", 0.5)
    admin_dsn = next(iter(projects.clusters.values())).admin_dsn
    with (
        psycopg.connect(greedy.owner_dsn, autocommit=True, options="-c own.session=1") as session,
        psycopg.connect(admin_dsn, autocommit=True) as admin,
    ):
        session.execute(SLOW)
        for n in range(4):
            session.execute(f"create table t{n} (n int); create index on t{n} (slow(n));"
                            f"insert into t{n} select generate_series(1, 500)")  # fmt: skip

        def busy():
            return admin.execute(
                "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker' "
                "and wait_event = 'PgSleep'"
            ).fetchone()[0]

        until(lambda: busy() == 2)
        with psycopg.connect(other.owner_dsn, autocommit=True) as neighbour:
            neighbour.execute("create table t (n int);"
                              "insert into t select generate_series(1, 500)")  # fmt: skip

            def analyzed():
                return neighbour.execute(
                    "select last_autoanalyze is not null from pg_stat_user_tables "
                    "where relname = 't'"
                ).fetchone()[0]

            time.sleep(3.0 * slowness())
            assert not analyzed()  # nobody has seen to it yet

            async def looked():
                return await vacuums.give_turns(projects, Events())

            ended = 0
            end = time.monotonic() + PATIENCE * slowness()
            while not analyzed():
                assert time.monotonic() < end
                ended += run(looked())
                time.sleep(0.3)
            assert ended >= 1
    with psycopg.connect(projects.dsn) as control:
        found = control.execute(
            "select distinct project from audit where action = 'project.sessions_ended' "
            "and detail ->> 'reason' = 'vacuum'"
        ).fetchall()
    assert found == [("greedy",)]
