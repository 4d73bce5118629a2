"""SQL of an owner who wants what has more rights in the project's database to run code of his.

Everything ends in trap.sprung(), which raises an exception when a superuser or one of the project's
own logins other than the owner's runs it.
"""

SPRUNG = """
create schema trap;
grant usage on schema trap to public;
create function trap.sprung() returns pg_catalog.void language plpgsql
  set search_path = pg_catalog, pg_temp as $$
begin
  if (select rolsuper from pg_roles where rolname = current_user)
    or current_user ~ '_(system|feed)$'
  then
    raise exception 'a trap was sprung by %', current_user using errcode = 'TR000';
  end if;
end $$;
"""

# A cast of the row, functions in indexes and statistics whose arguments are known when a query is
# planned, a check, a generated column, a default, a policy, triggers and a rule.
TABLES = """
create function public.known(pg_catalog.int4) returns pg_catalog.int4 language plpgsql immutable
  as 'begin perform trap.sprung(); return 1; end';
create function public.always(pg_catalog.int4) returns pg_catalog.bool language plpgsql immutable
  as 'begin perform trap.sprung(); return true; end';
create table public.bait (
  n pg_catalog.int4 default public.known(0), "ichibase row" pg_catalog.int4);
create function public.as_text(public.bait) returns pg_catalog.text language plpgsql
  as 'begin perform trap.sprung(); return 1; end';
create cast (public.bait as pg_catalog.text) with function public.as_text(public.bait) as implicit;
create index on public.bait ((public.known(1) operator(pg_catalog.+) n))
  where public.always(2) and n operator(pg_catalog.>) 0;
create statistics public.counted on (public.known(3) operator(pg_catalog.+) n), n from public.bait;
alter table public.bait add check (public.always(n)), add column twice pg_catalog.int4
  generated always as (public.known(n)) stored;
alter table public.bait enable row level security;
alter table public.bait force row level security;
create policy everyone on public.bait using (public.always(4));
insert into public.bait (n) values (1), (2);
create type public.colour as enum ('red');
create function public.as_text(public.colour) returns pg_catalog.text language plpgsql
  as 'begin perform trap.sprung(); return 1; end';
create cast (public.colour as pg_catalog.text) with function public.as_text(public.colour)
  as implicit;
create table public.coloured ("ichibase row" public.colour);
insert into public.coloured values ('red');
create view public.seen as select public.known(5) from public.bait;
create table public.nothing ();
insert into public.nothing default values;
"""

# Functions and operators of pg_catalog, with the same arguments and with others that fit as well.
SHADOWS = """
do $do$
declare
  one record;
  plain constant pg_catalog.regtype[] := array['text', 'name', 'int4', 'int8', 'bool', 'oid',
    'uuid', 'jsonb', 'timestamptz', 'numeric', 'regclass', 'regprocedure', 'text[]', 'float8',
    'bytea', 'regtype', 'varchar', 'name[]', 'oid[]',
    'json', 'interval', 'pg_lsn']::pg_catalog.regtype[];
begin
  for one in
    select distinct p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid) as given,
      pg_catalog.format_type(p.prorettype, null) as gives, p.proretset
    from pg_catalog.pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
      and p.proargtypes::oid[]::regtype[] <@ plain
      and (p.prorettype = any (plain) or p.prorettype = 'void'::regtype)
      and p.proargmodes is null
    union all
    values ('hashtextextended', 'text, int4', 'bigint', false),
      ('format', 'text, regprocedure', 'text', false), ('format', 'text, text', 'text', false),
      ('format', 'text, name', 'text', false), ('to_regclass', 'varchar', 'regclass', false),
      ('lower', 'varchar', 'text', false), ('current_setting', 'text', 'text', false),
      ('has_function_privilege', 'text, text', 'bool', false),
      ('concat', 'text, text', 'text', false)
  loop
    begin
      execute pg_catalog.format(
        'create function trap.%I(%s) returns %s %s language plpgsql as '
        '''begin perform trap.sprung(); return%s; end''',
        one.proname, one.given, case when one.proretset then 'setof' else '' end, one.gives,
        case when one.gives = 'void' or one.proretset then '' else ' null' end);
    exception when duplicate_function then null;
    end;
  end loop;
  for one in
    select o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r,
      o.oprresult::regtype as gives
    from pg_catalog.pg_operator o
    where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft::regtype = any (plain)
      and o.oprright::regtype = any (plain) and o.oprresult::regtype = any (plain)
  loop
    execute pg_catalog.format(
      'create or replace function trap.%I(%s, %s) returns %s language plpgsql as '
      '''begin perform trap.sprung(); return null; end''',
      'gives ' || one.gives, one.l, one.r, one.gives);
    execute pg_catalog.format('create operator trap.%s (function = trap.%I, leftarg = %s, '
      'rightarg = %s)', one.oprname, 'gives ' || one.gives, one.l, one.r);
  end loop;
end $do$;
"""

# Types that are found before those of pg_catalog where pg_temp is not named in a search path.
TEMPORARY = """
create function pg_temp.sprung(pg_catalog.text) returns pg_catalog.bool language plpgsql
  as 'begin perform trap.sprung(); return true; end';
create domain pg_temp.text as pg_catalog.text check (pg_temp.sprung(value));
create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.sprung(value::pg_catalog.text));
create domain pg_temp.name as pg_catalog.name check (pg_temp.sprung(value::pg_catalog.text));
"""

DEFAULTS = (
    "search_path = trap, pg_catalog, public",
    "default_transaction_read_only = on",
    "statement_timeout = '1ms'",
    "lock_timeout = '1ms'",
    "exit_on_error = on",
    "default_transaction_isolation = 'serializable'",
    "row_security = off",
    "transform_null_equals = on",
    "standard_conforming_strings = off",
    "datestyle = 'German'",
    "bytea_output = 'escape'",
    "client_encoding = 'LATIN1'",
    "array_nulls = off",
)


def lay(session, database, owner):
    """Lays all of them in the database that the owner's session is in."""
    session.execute(SPRUNG + TABLES)
    session.execute(SHADOWS)
    defaults(session, database, owner)


def defaults(session, database, owner):
    """Gives all sessions of the database other settings."""
    for default in (*DEFAULTS, f"role = '{owner}'"):
        session.execute("set default_transaction_read_only = off")
        session.execute(f"alter database {database} set {default}")
