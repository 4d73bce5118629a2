"""Backups of real projects: made, verified, restored, damaged, interrupted."""

import asyncio
import json
import os
import random
import subprocess
from functools import cache

import msgspec
import psycopg
import pytest

from server.backup import archive, restore
from server.backup.archive import BackupError, Reader
from server.backup.jobs import Jobs, enqueue, turn
from server.backup.seal import SealError
from server.backup.store import StoreError, open_store
from server.base.events import Events
from server.base.metrics import Metrics
from server.control import records
from server.control.projects import Projects

SCHEMA = """
create extension citext;
create schema "Odd schema";
create type mood as enum ('sad', 'ok');
create function public.positive(n int) returns bool language sql immutable as 'select n > 0';
create domain amount as int check (public.positive(value));
create table notes (
  id bigint generated always as identity primary key, owner uuid default auth.uid(),
  title citext not null, feeling mood, price amount, tags text[], doc jsonb, at timestamptz,
  raw bytea, ratio float8, twice int generated always as (price * 2) stored);
alter table notes enable row level security;
create policy "own rows" on notes to authenticated using (owner = (select auth.uid()));
create policy "the owner's" on notes to current_user using (title <> 'a;
--
-- PostgreSQL database dump complete
--
');
create index on notes (lower(title::text)) where price > 3;
create table "Odd schema"."odd ""table" ("odd column" text unique, "ichibase row" int);
create table parts (id int, day date) partition by range (day);
create table parts_2026 partition of parts for values from ('2026-01-01') to ('2027-01-01');
create table members (user_id uuid references auth.users, note bigint references notes);
create view titles as select id, title from notes;
create materialized view counted as select count(*) as n from notes;
create function welcome() returns trigger language plpgsql security definer as
  $$begin insert into public.members (user_id) values (new.id); return new; end$$;
grant select on titles to anon;
revoke all on members from anon;
alter default privileges in schema public revoke all on tables from authenticated;
alter default privileges in schema public revoke all on sequences from anon, service_role;
comment on table notes is 'with ''quotes''
and a second line';
insert into notes (title, feeling, price, tags, doc, at, raw, ratio)
  select 'Note ' || n, 'ok', n, array['a', 'b"c'], '{"n": 1.50}', '2026-01-01 00:00+02', '\\xff00',
    0.1 * n from generate_series(1, 500) n;
insert into "Odd schema"."odd ""table" values ('x', 1), (null, 2);
insert into parts values (1, '2026-02-03');
refresh materialized view counted;
select lo_from_bytea(4711, 'large');
"""
OPEN = (  # who has new sequences, functions and tables of schema public
    {"authenticated"}, {"anon", "authenticated", "service_role"},
    {"anon", "service_role"},
)  # fmt: skip
USER = "11111111-1111-4111-8111-111111111111"


def run(coroutine):
    return asyncio.run(coroutine)


class Shop:
    """A project with something of everything in it, and what a test asks of it."""

    def __init__(self, world, slug, **config):
        self.world = world
        self.slug = slug
        self.config = msgspec.structs.replace(world.config, **config)
        projects = self.projects()
        run(projects.create(slug))
        self.record = run(projects.find(slug))
        with self.session("owner") as session:
            session.execute(SCHEMA)
            session.execute("grant execute on function public.welcome() to public")
        with self.session("system") as session:
            session.execute(
                "create trigger welcome after insert on auth.users "
                "for each row execute function public.welcome()"
            )
            session.execute("insert into auth.users (id, email) values (%s, 'a@b.c')", (USER,))

    def projects(self):
        return Projects(self.world.dsn, {self.world.cluster.id: self.world.cluster}, self.config)

    def jobs(self):
        return Jobs(self.projects(), Events(), Metrics())

    def session(self, kind="owner", slug=None):
        record = run(self.projects().find(slug or self.slug))
        password = getattr(record, f"{kind}_password")
        return psycopg.connect(record.dsn(kind, password), autocommit=True)

    def job(self, what, project=None, **args):
        """Runs a job; the row's state, result and error."""
        jobs = self.jobs()

        async def do():
            async with jobs.projects.control() as control:
                number = await enqueue(control, what, project or self.slug, args, "test")
            assert await jobs.once()
            async with jobs.projects.control() as control:
                cursor = await control.execute(
                    "select state, result, error from jobs where id = $1", (number,)
                )
                return await cursor.fetchone()

        return run(do())

    def backup(self):
        state, result, error = self.job("backup", kind="manual")
        assert state == "done", error
        return result["backup"]

    def folder(self, backup):
        return self.config.data_dir / "backups" / archive.folder(self.record.id, backup)

    def facts(self, slug=None):
        """What a user of the database would notice."""
        with self.session("owner", slug) as owner:
            one = owner.execute(
                "select count(*), sum(price), max(twice), max(ratio), min(doc::text), max(raw) "
                "from notes"
            ).fetchone()
            members = owner.execute("select user_id::text from members").fetchall()
            odd = owner.execute('select * from "Odd schema"."odd ""table" order by 2').fetchall()
            large = owner.execute("select lo_get(4711)").fetchone()
            policies = owner.execute(
                "select policyname, replace(roles::text, current_user, 'owner'), qual "
                "from pg_policies where tablename in ('notes', 'objects') order by 1"
            ).fetchall()
            rights = owner.execute(
                "select has_table_privilege('anon', 'titles', 'select'), "
                "has_table_privilege('anon', 'members', 'select'), "
                "has_table_privilege('anon', 'notes', 'insert'), (select array_agg("
                "replace(defaclacl::text, current_user, 'o') order by defaclobjtype) "
                "from pg_default_acl)"
            ).fetchone()
            comment = owner.execute("select obj_description('notes'::regclass)").fetchone()
            seen = owner.execute("select n from counted").fetchone()
            owners = owner.execute(
                "select count(*) from pg_class where relnamespace = 'public'::regnamespace "
                "and relowner <> current_user::regrole"
            ).fetchone()
        return one, members, odd, large, policies, rights, comment, seen, owners


@pytest.fixture(scope="module")
def shop(world, tmp_path_factory):
    made = Shop(world, "shop", data_dir=tmp_path_factory.mktemp("plain"))
    yield made
    run(made.projects().delete("shop"))


@pytest.fixture(scope="module")
def sealed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    key = folder / "key"
    key.write_text("a passphrase that nobody guesses\n")
    made = Shop(world, "sealed", data_dir=folder, backup_key_file=key)
    yield made
    run(made.projects().delete("sealed"))


@pytest.fixture(scope="module")
def backup(shop):
    return shop.backup()


@pytest.fixture(scope="module")
def sealed_backup(sealed):
    return sealed.backup()


def databases(shop):
    with psycopg.connect(shop.world.cluster.admin_dsn) as admin:
        return {r[0] for r in admin.execute("select datname from pg_database")}


def roles(shop):
    with psycopg.connect(shop.world.cluster.admin_dsn) as admin:
        return {r[0] for r in admin.execute("select rolname from pg_roles")}


def test_a_backup_is_private_files_with_their_sums(shop, backup):
    folder = shop.folder(backup)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    names = {"postgres.dump", "content.json", "storage.json", "project.json"}
    assert set(manifest["files"]) == names
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    content = json.loads((folder / "content.json").read_bytes())
    assert content["tables"]["public.notes"]["rows"] == 500
    assert "ichibase.migrations" in content["tables"]


def test_verification_restores_and_compares_and_leaves_nothing(shop, backup):
    before = databases(shop), roles(shop)
    state, result, error = shop.job("verify", backup=backup)
    assert (state, error) == ("done", None)
    assert result["warnings"] == []
    assert result["rows"] > 500
    assert (databases(shop), roles(shop)) == before


def test_restoring_brings_back_what_was_lost_and_drops_what_came_after(shop, backup):
    facts = shop.facts()
    dsn = records.to_project(shop.record, shop.config).owner_dsn
    with shop.session() as owner:
        owner.execute("delete from notes where id not in (select note from members where note "
                      "is not null)")  # fmt: skip
        owner.execute("drop table parts; create table later (id int)")
        state, result, error = shop.job("restore", backup=backup)
        assert (state, error) == ("done", None)
        assert result["warnings"] == []
    assert shop.facts() == facts
    with psycopg.connect(dsn, autocommit=True) as owner:  # the same address and login
        assert owner.execute("select to_regclass('later')").fetchone() == (None,)
        assert owner.execute("select count(*) from parts").fetchone() == (1,)
        owner.execute("insert into notes (title, price) values ('new', 1)")
        assert owner.execute("select max(id) from notes").fetchone() == (501,)
        assert owner.execute("show work_mem").fetchone() == ("16MB",)
        owner.execute("delete from notes where title = 'new'")
    after = run(shop.projects().find("shop"))
    assert (after.anon_key, after.keys) == (shop.record.anon_key, shop.record.keys)
    assert not [name for name in databases(shop) if name.endswith(("_new", "_before"))]
    with shop.session("system") as system:  # the trigger of the system's table works again
        system.execute("insert into auth.users (email) values ('x')")
    with shop.session() as owner:
        assert owner.execute("select count(*) from members").fetchone() == (2,)
        owner.execute("create table announced (id int); drop table announced")


def test_restoring_into_a_new_project_makes_one_with_its_own_keys(shop, backup):
    state, result, error = shop.job("restore", backup=backup, into="copied")
    assert (state, error) == ("done", None)
    assert (result["project"], result["warnings"]) == ("copied", [])
    copy = run(shop.projects().find("copied"))
    assert copy.anon_key != shop.record.anon_key
    one, _, odd, large, policies, rights, *_, owners = shop.facts("copied")
    assert (one[0], odd, large, owners) == (500, [("x", 1), (None, 2)], (b"large",), (0,))
    assert [(name, roles) for name, roles, _ in policies] == [
        ("app_owner_sees_all", "{owner}"), ("own rows", "{authenticated}"),
        ("the owner's", "{owner}"), ("users_see_their_own", "{authenticated}")]  # fmt: skip
    assert rights[:3] == (True, False, True)
    for kind, who in zip(rights[3], OPEN, strict=True):
        assert {one.partition("=")[0] for one in kind.strip("{}").split(",")} == who
    with psycopg.connect(shop.world.cluster.dsn(copy.database)) as admin:
        stray = admin.execute(
            "select count(*) from pg_shdepend d join pg_roles r on r.oid = d.refobjid "
            "where d.dbid = (select oid from pg_database where datname = current_database()) "
            "and r.rolname like 'ichi\\_%%' and r.rolname not like %s",
            (copy.database + "%",),
        ).fetchone()
    assert stray == (0,)  # nothing in it belongs, or grants anything, to another project
    run(shop.projects().delete("copied"))


def test_a_deleted_project_comes_back_under_its_name_with_its_keys(world, tmp_path_factory):
    made = Shop(world, "gone", data_dir=tmp_path_factory.mktemp("gone"))
    run(made.projects().put_settings("gone", "cors", {"origins": ["*"]}))
    backup = made.backup()
    facts, record = made.facts(), run(made.projects().find("gone"))
    run(made.projects().delete("gone"))
    state, _, error = made.job("restore", backup=backup)
    assert (state, error) == ("done", None)
    again = run(made.projects().find("gone"))
    for name in ("anon_key", "service_key", "keys", "settings", "tier"):
        assert getattr(again, name) == getattr(record, name), name
    assert again.id != record.id
    assert again.storage_secret != record.storage_secret  # which may have leaked meanwhile
    assert made.facts() == facts
    run(made.projects().delete("gone"))


def test_another_projects_name_is_not_overwritten(shop, sealed, backup):
    facts = sealed.facts()
    state, _, error = shop.job("restore", backup=backup, into="sealed")
    assert state == "failed"
    assert "another project" in error
    assert sealed.facts() == facts


def test_sealed_backups_show_nothing_and_need_their_key(sealed, sealed_backup, tmp_path):
    folder = sealed.folder(sealed_backup)
    for path in folder.iterdir():
        raw = path.read_bytes()
        for word in (b"Note 1", b"notes", b"PGDMP", sealed.record.service_key.encode()):
            assert word not in raw, path
    assert sealed.job("verify", backup=sealed_backup)[0] == "done"
    facts = sealed.facts()
    assert sealed.job("restore", backup=sealed_backup)[0] == "done"
    assert sealed.facts() == facts
    good = sealed.config
    other = tmp_path / "other"
    other.write_text("another passphrase, also long\n")
    for key, said in ((other, "another one"), (None, "is encrypted")):
        sealed.config = msgspec.structs.replace(good, backup_key_file=key)
        state, _, error = sealed.job("restore", backup=sealed_backup)
        assert state == "failed"
        assert said in error
    sealed.config = good


FILES = ["postgres.dump", "content.json", "project.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swap"])
@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_a_damaged_backup_is_refused_and_changes_nothing(request, shop, sealed, kind, file, damage):
    where = shop if kind == "plain" else sealed
    backup = request.getfixturevalue("backup" if kind == "plain" else "sealed_backup")
    path = where.folder(backup) / file
    good, mode = path.read_bytes(), path.stat().st_mode & 0o777
    with where.session() as owner:
        owner.execute("create table if not exists untouched (id int)")
    try:
        if damage == "flip":
            changed = bytearray(good)
            changed[len(good) // 2] ^= 4
            path.write_bytes(changed)
        elif damage == "cut":
            path.write_bytes(good[:-20])
        elif damage == "swap":
            other = next(f for f in FILES if f != file)
            path.write_bytes((path.parent / other).read_bytes())
        else:
            path.unlink()
        for job in ("verify", "restore"):
            state, _, error = where.job(job, backup=backup)
            if (state, file, damage, kind) == ("done", "manifest.json", "flip", "plain"):
                continue  # the bit was in a text that nothing depends on
            assert state == "failed"
            assert not error.startswith("internal"), error
    finally:
        path.write_bytes(good)
        path.chmod(mode)  # also where it has been made anew
    with where.session() as owner:
        assert owner.execute("select to_regclass('untouched')").fetchone() != (None,)
        owner.execute("drop table untouched")


async def opened(where, backup, key):
    """Reads a backup as whoever restores it."""
    reader = Reader(open_store(None, where.config.data_dir), where.record.id, backup, key)
    manifest = await reader.open()
    return manifest, [[p async for p in reader.get(name)] for name in manifest.files]


@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_damage_at_any_place_is_found(request, monkeypatch, shop, sealed, kind):
    monkeypatch.setattr(archive, "derive", cache(archive.derive))  # which is slow on purpose
    where = shop if kind == "plain" else sealed
    backup = request.getfixturevalue("backup" if kind == "plain" else "sealed_backup")
    key = None if kind == "plain" else "a passphrase that nobody guesses"
    whole, dice = run(opened(where, backup, key)), random.Random(4)
    files = sorted(where.folder(backup).iterdir())
    for number in range(100):
        path = files[number % len(files)]
        good = path.read_bytes()
        at = dice.randrange(len(good))
        changed = bytearray(good[:at] if number % 3 == 0 else good)
        if number % 3 == 1:
            changed[at] ^= dice.randrange(1, 256)
        elif number % 3 == 2:
            changed += dice.randbytes(9)
        path.write_bytes(changed)
        try:
            found = run(opened(where, backup, key))
        except (BackupError, SealError, StoreError):
            continue
        finally:
            path.write_bytes(good)
        # what is not read in a manifest without a key: the backup itself is whole
        assert (kind, path.name) == ("plain", "manifest.json"), (number, at)
        assert found[1] == whole[1]


def test_a_manifest_names_no_other_files(shop, backup):
    path = shop.folder(backup) / "manifest.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"content.json", b"../../x.json"))
    try:
        with pytest.raises(BackupError, match="damaged"):
            run(opened(shop, backup, None))
    finally:
        path.write_bytes(good)


SESSIONS = """
truncate auth.sessions, auth.codes;
insert into auth.sessions (id, user_id, token_hash, family_key, expires_at, ends_at, methods)
  select ('00000000-0000-4000-8000-00000000000' || n)::uuid, '{user}', '', '', 'infinity', ends,
    '{{}}'
  from (values (1, 'infinity'::timestamptz), (2, 'infinity'), (3, '2001-01-01')) made (n, ends);
insert into auth.codes (purpose, address, expires_at) values ('verify', 'a@b.c', 'infinity');
"""


def alive(shop, slug=None):
    with shop.session("system", slug) as system:
        rows = system.execute(
            "select right(id::text, 1) from auth.sessions where revoked_at is null "
            "and ends_at > now() order by 1"
        ).fetchall()
        codes = system.execute("select count(*) from auth.codes").fetchone()[0]
    return "".join(row[0] for row in rows), codes


@pytest.mark.parametrize(
    ("keep", "into", "expected"),
    [(False, None, ""), (True, None, "1"), (False, "elsewhere", ""), (True, "elsewhere", "12")],
)
def test_a_restore_brings_no_ended_session_and_no_used_code_back(shop, keep, into, expected):
    with shop.session("system") as system:
        system.execute(SESSIONS.format(user=USER))
    backup = shop.backup()
    with shop.session("system") as system:
        system.execute(
            "update auth.sessions set revoked_at = now() where id::text like '%2'; "
            "delete from auth.codes"
        )
    try:
        state, outcome, error = shop.job("restore", backup=backup, into=into, keep_sessions=keep)
        assert state == "done", error
        assert alive(shop, into) == (expected, 0)
        assert outcome["sessions"] == 2 - len(expected)
    finally:
        if into:
            run(shop.projects().delete(into))
        with shop.session("system") as system:
            system.execute("truncate auth.sessions, auth.codes")


class Killed(BaseException):
    """Stands for the end of the process: nothing handles it."""


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
        control.execute("update backups set state = 'running', error = null where error = 'Killed'")
    run(shop.jobs().recover())
    with psycopg.connect(shop.world.dsn) as control:
        rows = control.execute(
            "select state, error from backups where project = 'shop' and state <> 'done'"
        ).fetchall()
        running = control.execute("select count(*) from jobs where state = 'running'").fetchone()
    assert rows[-1:] == [("failed", "interrupted")]
    assert running == (0,)
    assert set((shop.config.data_dir / "backups").rglob("*.dump*")) == before


def test_turns_are_spread_and_keep_their_hour():
    now = 1_800_000_000.0
    turns = [turn(f"project{i}", 24, now) for i in range(1000)]
    assert all(now - 86_400 < one <= now for one in turns)
    hours = [int((now - one) // 3600) for one in turns]
    assert all(20 < hours.count(hour) < 70 for hour in range(24))
    assert turn("a", 24, now) == turn("a", 24, turn("a", 24, now) + 86_000)


def test_the_nightly_backup_is_made_once_a_turn_and_removed_in_time(world, tmp_path):
    config = msgspec.structs.replace(world.config, data_dir=tmp_path)
    projects = Projects(world.dsn, {world.cluster.id: world.cluster}, config)
    record = run(projects.create("nightly", tier="free", owner="nightly"))
    jobs = Jobs(projects, Events(), Metrics())

    def sql(text):
        with psycopg.connect(world.dsn, autocommit=True) as control:
            cursor = control.execute(text)
            return cursor.fetchall() if cursor.description else None

    def plan():
        run(jobs.plan())
        found = sql("select count(*) from jobs where project = 'nightly' and state = 'queued'")
        return found[0][0]

    # Other projects' turns are not this test's.
    sql("update jobs set state = 'failed' where state = 'queued'")
    assert plan() == 0  # just made: its first turn is yet to come
    sql("update projects set created_at = now() - interval '2 days' where slug = 'nightly'")
    assert plan() == 1
    assert plan() == 1  # it waits already
    sql("update jobs set state = 'failed' where state = 'queued' and project <> 'nightly'")
    assert run(jobs.once())
    assert plan() == 0
    ((backup, days),) = sql(
        "select id, extract(epoch from keep_until - now()) / 86400 from backups "
        "where project = 'nightly'"
    )
    assert 2.9 < days <= 3
    sql("update backups set keep_until = now() - interval '1 day' where project = 'nightly'")
    run(jobs.plan())  # the only one of a living project is kept
    folder = tmp_path / "backups" / archive.folder(record.id, backup)
    assert (folder / "manifest.json").exists()
    run(projects.delete("nightly"))
    run(jobs.plan())
    assert not folder.exists()
    assert sql("select count(*) from backups where project = 'nightly'") == [(0,)]
    sql("update jobs set state = 'failed' where state = 'queued'")


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


def test_backups_of_a_lost_node_are_found_in_the_store(shop, backup):
    with psycopg.connect(shop.world.dsn, autocommit=True) as control:
        control.execute("delete from backups where id = %s", (backup,))
    state, result, _ = shop.job("scan")
    assert (state, result["found"]) == ("done", [backup])
    assert shop.job("verify", backup=backup)[0] == "done"


def test_an_owner_cannot_run_code_as_the_administrator_by_a_restore(shop):
    """Functions in checks, indexes and views run while tables are loaded."""
    with shop.session() as owner:
        owner.execute("""
            create table spied (who text);
            create table trap (n int);
            insert into trap values (1);
            create function spy(n int) returns bool language plpgsql immutable as $$
            begin
              begin execute 'reset role'; exception when others then null; end;
              if (select rolsuper from pg_roles where rolname = session_user) then
                raise exception 'ran as %', session_user;
              end if;
              return true;
            end $$;
            alter table trap add check (public.spy(n));
            create index on trap (public.spy(n));
        """)
    backup = shop.backup()
    state, result, error = shop.job("verify", backup=backup)
    assert (state, error, result["warnings"]) == ("done", None, [])
    assert shop.job("restore", backup=backup)[0] == "done"
    with shop.session() as owner:
        assert owner.execute("select n from trap").fetchall() == [(1,)]
        owner.execute("drop table trap, spied; drop function spy")


def test_files_stay_where_they_are_and_go_along_to_a_new_project(world, tmp_path):
    made = Shop(world, "filed", data_dir=tmp_path)
    versions = [f"{n:032x}" for n in range(1, 4)]
    folder = tmp_path / "storage" / made.record.id / "00"
    folder.mkdir(parents=True)
    with made.session("system") as system:
        system.execute("insert into storage.buckets (id) values ('public')")
        system.execute("update storage.usage set bytes = 6, objects = 3")
        for number, version in enumerate(versions):
            body = b"x" * number
            (folder / version).write_bytes(body)
            system.execute(
                "insert into storage.objects (bucket, path, version, size, sha256, content_type) "
                "values ('public', %s, %s, %s, '', 'text/plain')",
                (f"f{number}", version, number),
            )
    backup = made.backup()
    state, result, error = made.job("restore", backup=backup)
    assert (state, error, result["files"], result["warnings"]) == ("done", None, 3, [])
    with psycopg.connect(world.dsn) as control:
        levels = control.execute(
            "select counter, value from usage where project_id = %s order by 1", (made.record.id,)
        ).fetchall()
    assert levels == [("storage_bytes", 6), ("storage_objects", 3)]
    (folder / versions[1]).unlink()
    state, result, error = made.job("restore", backup=backup, into="filed-two")
    assert (state, error) == ("done", None)
    assert result["warnings"] == ["files that are no longer in the store: public/f1"]
    copy = run(made.projects().find("filed-two"))
    there = sorted(p.name for p in (tmp_path / "storage" / copy.id / "00").iterdir())
    assert there == [versions[0], versions[2]]
    for slug in ("filed", "filed-two"):
        run(made.projects().delete(slug))
