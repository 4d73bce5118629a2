"""A project with something of everything in it, for the tests of backups."""

import asyncio

import msgspec
import psycopg

from server.backup import archive
from server.backup.jobs import Jobs, enqueue
from server.base.events import Events
from server.base.metrics import Metrics
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
USER = "11111111-1111-4111-8111-111111111111"


def run(coroutine):
    return asyncio.run(coroutine)


def done(jobs, what, project, **args):
    """Runs a job; the row's state, result and error."""

    async def do():
        async with jobs.projects.control() as control:
            number = await enqueue(control, what, project, args, "test")
        assert await jobs.once()
        async with jobs.projects.control() as control:
            query = "select state, result, error from jobs where id = $1"
            return await (await control.execute(query, (number,))).fetchone()

    return run(do())


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
        return done(self.jobs(), what, project or self.slug, **args)

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


def databases(shop):
    with psycopg.connect(shop.world.cluster.admin_dsn) as admin:
        return {r[0] for r in admin.execute("select datname from pg_database")}


def roles(shop):
    with psycopg.connect(shop.world.cluster.admin_dsn) as admin:
        return {r[0] for r in admin.execute("select rolname from pg_roles")}
