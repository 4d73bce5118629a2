"""Backups and restores that are killed, find no room, or have lost their key."""

import asyncio
import contextlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psycopg
import pytest

from server.backup import archive, restore
from server.backup.jobs import Jobs, enqueue
from server.base.context import NodeConfig
from server.base.events import Events
from server.control import provision
from server.control.database import prepare
from server.control.lifecycle import Lifecycle
from server.maintenance import idle
from tests.clusters import cluster_of
from tests.killing import Killed
from tests.server.tiers.conftest import World
from tests.server.tiers.shop import Shop, databases, roles, run
from tests.servers import running_server


def test_a_restore_is_not_ended_for_taking_long(shop, monkeypatch):
    """As statements of owners are, and restores load tables by the owner's login."""
    monkeypatch.setattr(idle, "OLDEST", 0.2)
    monkeypatch.setattr(idle, "GRACE", 1e-6)
    new = shop.record.database + provision.NEW
    dsn = shop.record.dsn("owner", shop.record.owner_password)
    with psycopg.connect(shop.world.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'create database "{new}"')
        try:
            with (
                psycopg.connect(dsn, dbname=new) as restoring, psycopg.connect(dsn) as working,
                ThreadPoolExecutor(2) as both,
            ):  # fmt: skip
                long = both.submit(restoring.execute, "select pg_sleep(600)")
                other = both.submit(working.execute, "select pg_sleep(600)")
                ended = 0
                while not other.done():
                    ended += run(idle.end_what_holds_up(shop.projects(), Events()))
                    time.sleep(0.1)
                assert (ended, long.done()) == (1, False)
                restoring.cancel()
                assert isinstance(long.exception(), psycopg.errors.QueryCanceled)
                assert isinstance(other.exception(), psycopg.OperationalError)
                restoring.rollback()
        finally:
            admin.execute(f'drop database "{new}" with (force)')


def test_a_restore_into_a_project_whose_owner_is_shut_out_says_so(shop, backup):
    life, facts = Lifecycle(shop.projects()), shop.facts()
    run(life.step("shop", "suspend", "test"))
    try:
        state, _, error = shop.job("restore", backup=backup)
        assert (state, "is closed" in error) == ("failed", True), error
        assert shop.job("restore", backup=backup, into="shop-two")[0] == "done"
        assert shop.job("verify", backup=shop.backup())[0] == "done"  # suspended as it is
    finally:
        run(life.step("shop", "resume", "test"))
    run(shop.projects().delete("shop-two"))
    assert shop.facts() == facts
    run(life.read_only(shop.record.id, True, {}))  # over its quota: a restore may be the way out
    assert shop.job("restore", backup=backup)[0] == "done"
    run(life.read_only(shop.record.id, False, {}))
    run(life.step("shop", "sleep", "test"))
    assert shop.job("restore", backup=backup)[0] == "done"
    assert run(shop.projects().find("shop")).state == "sleeping"
    run(life.step("shop", "wake", "test"))
    assert shop.facts() == facts


def test_an_owner_whose_connections_are_used_up_gets_a_restore(shop, backup):
    """By the owner's own sessions, which end when the database is replaced."""
    facts, owner = shop.facts(), shop.record.role("owner")
    with psycopg.connect(shop.world.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'alter role "{owner}" connection limit 2')
    try:
        with shop.session() as one, shop.session():
            with pytest.raises(psycopg.OperationalError, match="too many connections"):
                shop.session()
            one.execute("create table later (id int)")
            made = shop.backup()
            for job, what in (("verify", made), ("restore", backup)):
                state, result, error = shop.job(job, backup=what)
                assert (state, error, result["warnings"]) == ("done", None, [])
    finally:
        record = run(shop.projects().find("shop"))
        limits = shop.projects().limits(record)
        run(provision.settle(shop.world.cluster, record, limits))
    assert shop.facts() == facts
    assert not [role for role in roles(shop) if role.endswith("_loader")]


def test_connections_that_owners_share_may_be_used_up_while_a_restore_runs(tmp_path):
    """By those of another project."""
    options = {"max_connections": "30", "reserved_connections": "20"}
    with running_server(**options) as server, contextlib.ExitStack() as used:
        cluster = cluster_of(server, "control_full")
        dsn = run(prepare(cluster, "control password"))
        world = World(cluster, dsn, NodeConfig(data_dir=tmp_path, control_dsn=dsn))
        full, other = Shop(world, "full"), Shop(world, "other")
        facts, backup = full.facts(), full.backup()
        full_up = "remaining connection slots"
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                used.enter_context(other.session())
        with pytest.raises(psycopg.OperationalError, match=full_up):
            full.session()
        for job in ("verify", "restore"):
            state, result, error = full.job(job, backup=backup)
            assert (state, error, result["warnings"]) == ("done", None, [])
        used.close()
        assert full.facts() == facts


def test_what_code_of_the_owner_makes_without_being_the_owner_is_the_owners(shop):
    """Code that runs in a restore can give up the owner's role, and gains nothing by that."""
    with shop.session() as owner:
        owner.execute("""
            create table gained (n int);
            insert into gained values (1);
            create function gain(n int) returns bool language plpgsql as $$
            begin
              begin
                set role none;
                perform lo_from_bytea(0, 'of nobody');
                create temporary table kept_by_nobody ();
              exception when others then null; end;
              reset role;
              return true;
            end $$;
            alter table gained add check (public.gain(n));
        """)
    made, before = shop.backup(), roles(shop)
    state, result, error = shop.job("restore", backup=made)
    assert (state, error, result["warnings"]) == ("done", None, [])
    assert roles(shop) == before
    with shop.session() as owner:
        owners = "select distinct lomowner::regrole::text from pg_largeobject_metadata"
        assert owner.execute(owners).fetchall() == [(shop.record.role("owner"),)]
        owner.execute("drop table gained; drop function gain")
        owner.execute("select lo_unlink(oid) from pg_largeobject_metadata where oid <> 4711")


@pytest.mark.parametrize(
    ("step", "swapped"),
    [("build", False), ("load", False), ("check", False), ("swap", False), ("told", True)],
)
def test_a_restore_killed_at_any_step_leaves_one_whole_database(
    shop, backup, monkeypatch, step, swapped
):
    with shop.session() as owner:
        owner.execute("create table marker (id int)")

    async def breaking(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(restore, step, breaking)
        patch.setattr(restore, "_drop", breaking)  # nor does it clean up
        with pytest.raises(Killed):
            shop.job("restore", backup=backup)
    jobs = shop.jobs()
    run(jobs.recover())
    with shop.session() as owner:
        there = owner.execute("select to_regclass('marker') is not null").fetchone()[0]
        assert there is not swapped
        owner.execute("drop table if exists marker")
    assert not [name for name in databases(shop) if name.endswith(("_new", "_before"))]


def test_a_swap_that_was_cut_short_lets_connections_in_again(shop):
    with psycopg.connect(shop.world.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'alter database "{shop.record.database}" allow_connections false')
    run(restore.clear(shop.world.cluster))
    shop.session().close()


def test_a_killed_backup_leaves_nothing_and_says_so(shop, monkeypatch):
    before = set((shop.config.data_dir / "backups").rglob("*.dump*"))

    async def breaking(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(archive.content, "tables", breaking)
        patch.setattr("server.backup.store.Folder.remove", breaking)
        with pytest.raises(Killed):
            shop.job("backup", kind="manual")
    with psycopg.connect(shop.world.dsn) as control:  # a process that is killed does not say so
        control.execute(
            "update backups set state = 'running', error = null where error like '%Killed'"
        )
    run(shop.jobs().recover())
    with psycopg.connect(shop.world.dsn) as control:
        rows = control.execute(
            "select state, error from backups where project = 'shop' and state <> 'done'"
        ).fetchall()
        running = control.execute("select count(*) from jobs where state = 'running'").fetchone()
    assert rows[-1:] == [("failed", "interrupted")]
    assert running == (0,)
    assert set((shop.config.data_dir / "backups").rglob("*.dump*")) == before


def test_a_job_whose_end_could_not_be_written_down_does_not_stay(shop, monkeypatch):
    """It would keep the project's nightly backups, and whoever asked, waiting for ever."""
    jobs, real, tries = shop.jobs(), Jobs._finish, []

    async def finish(self, *arguments):
        tries.append(1)
        if len(tries) == 1:
            raise psycopg.OperationalError("the control database is away")
        await real(self, *arguments)

    monkeypatch.setattr(Jobs, "_finish", finish)
    monkeypatch.setattr("server.backup.jobs.RETRY_SECONDS", 0.05)

    async def do():
        async with jobs.projects.control() as control:
            made = [await enqueue(control, "backup", "shop", {"kind": "manual"}, "test")
                    for _ in range(2)]  # fmt: skip
            running = asyncio.create_task(jobs.run())
            ended = "select state, code from jobs where id = any($1) order by id"
            async with asyncio.timeout(60):
                while True:
                    rows = await (await control.execute(ended, (made,))).fetchall()
                    if not {"queued", "running"} & {state for state, _ in rows}:
                        break
                    await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.wait([running])
        return rows

    assert run(do()) == [("failed", "interrupted"), ("done", None)]


def test_a_key_that_was_lost_is_no_reason_to_write_without_one(sealed, sealed_backup, tmp_path):
    before, good = set((sealed.config.data_dir / "backups").rglob("*")), sealed.config
    path = tmp_path / "key"
    for content in (None, b"", b"  \n", b"too short", b"\xff" * 40):
        if content is not None:
            path.write_bytes(content)
        sealed.config = msgspec.structs.replace(good, backup_key_file=path)
        for job, args in (("backup", {"kind": "manual"}), ("verify", {"backup": sealed_backup})):
            state, _, error = sealed.job(job, **args)
            assert (state, "backup_key_file" in error) == ("failed", True), error
        sealed.config = good
    assert set((good.data_dir / "backups").rglob("*")) == before
    with psycopg.connect(sealed.world.dsn, autocommit=True) as control:
        failed = "delete from backups where project = 'sealed' and state = 'failed' returning code"
        assert control.execute(failed).fetchall() == [("backup_key_unusable",)] * 5
        codes = control.execute("select code from jobs where error like '%backup_key_file%'")
        assert set(codes.fetchall()) >= {("backup_key_unusable",)}


def test_a_scan_says_what_it_cannot_use(sealed, sealed_backup, tmp_path):
    good, other = sealed.config, tmp_path / "other"
    other.write_text("another passphrase, also long\n")
    for key, code in ((other, "backup_key_mismatch"), (None, "backup_key_missing")):
        sealed.config = msgspec.structs.replace(good, backup_key_file=key)
        state, result, _ = sealed.job("scan")
        assert (state, result["found"]) == ("done", [])
        assert {"backup": sealed_backup, "code": code} in [
            {name: one[name] for name in ("backup", "code")} for one in result["unusable"]
        ]
    sealed.config = good
    assert sealed.job("scan")[1] == {"found": [], "unusable": []}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB; needs the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_fails_the_backup_with_its_reason(shop, small_disk):
    good = shop.config
    with shop.session() as owner:
        owner.execute("create table big as select gen_random_uuid() as a, gen_random_uuid() as b "
                      "from generate_series(1, 20000)")  # fmt: skip
    shop.config = msgspec.structs.replace(good, backup_url=str(small_disk))
    state, _, error = shop.job("backup", kind="manual")
    assert state == "failed"
    assert "No space left on device" in error
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    with shop.session() as owner:
        owner.execute("drop table big")
    assert shop.job("verify", backup=shop.backup())[0] == "done"  # there is room again
    shop.config = good


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_fails_the_restore_and_changes_nothing(shop, backup, small_disk):
    good, facts = shop.config, shop.facts()
    shop.config = msgspec.structs.replace(
        good, data_dir=small_disk, backup_url=str(good.data_dir / "backups")
    )
    (small_disk / "filler").write_bytes(b"x" * 290_000)
    state, _, error = shop.job("restore", backup=backup)
    shop.config = good
    assert state == "failed"
    assert "No space left on device" in error
    assert shop.facts() == facts
