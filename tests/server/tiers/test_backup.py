"""Backups of real projects: made, verified, restored, damaged."""

import json
import random
from functools import cache

import msgspec
import psycopg
import pytest

from ichicore.errors import ApiError
from server.backup import archive
from server.backup.archive import BackupError, Reader
from server.backup.jobs import Jobs, turn
from server.backup.seal import SealError
from server.backup.store import StoreError, open_store
from server.base.events import Events
from server.base.metrics import Metrics
from server.control import records
from server.control.projects import Projects
from tests.ports import free_port
from tests.server.tiers.shop import USER, Shop, databases, roles, run

OPEN = (  # who has new sequences, functions and tables of schema public
    {"authenticated"}, {"anon", "authenticated", "service_role"},
    {"anon", "service_role"},
)  # fmt: skip


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


def test_files_stay_where_they_are_and_go_along_to_a_new_project(world, tmp_path, monkeypatch):
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
    lost = ["files that are no longer in the store: public/f1"]
    assert result["warnings"] == lost
    assert made.job("verify", backup=backup)[1]["warnings"] == lost
    copy = run(made.projects().find("filed-two"))
    there = sorted(p.name for p in (tmp_path / "storage" / copy.id / "00").iterdir())
    assert there == [versions[0], versions[2]]

    # A store of files that is away keeps no tables from being restored, but makes no new project.
    for name, value in (("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}"),
                        ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"),
                        ("AWS_REGION", "x")):  # fmt: skip
        monkeypatch.setenv(name, value)
    good = made.config
    made.config = msgspec.structs.replace(good, storage_url="s3://nowhere/files")
    with made.session() as owner:
        owner.execute("create table later (id int)")
    for job in ("verify", "restore"):
        state, result, error = made.job(job, backup=backup)
        assert (state, error) == ("done", None)
        (said,) = result["warnings"]
        assert said.startswith("the files cannot be looked at or copied")
    with made.session() as owner:
        assert owner.execute("select to_regclass('later')").fetchone() == (None,)
    state, _, error = made.job("restore", backup=backup, into="filed-three")
    assert (state, error.startswith("the files cannot be")) == ("failed", True)
    with pytest.raises(ApiError):
        run(made.projects().find("filed-three"))
    made.config = good
    for slug in ("filed", "filed-two"):
        run(made.projects().delete(slug))
