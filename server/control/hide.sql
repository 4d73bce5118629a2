-- What is shared by all databases of a server is shown in each: roles with their settings, sessions
-- with the name that their program gives itself, locks, slots, counts. In a project's database these
-- views tell of the project alone, to everybody but superusers. Every statement may run
-- again. Views are those of this server's version, with a condition more or with another function in
-- the place of one that shows all; that one is then closed.

set local allow_system_table_mods = on;

create or replace function ichibase.sees_all() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select rolsuper from pg_authid where rolname = session_user
$$;

create or replace function ichibase.here() returns oid
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select oid from pg_database where datname = current_database()
$$;
grant execute on function ichibase.sees_all(), ichibase.here() to public;

-- The sessions of this database, as far as `viewer` may see them, which is a role of the session's.
do $$
declare
  source constant oid := 'pg_stat_get_activity(int4)'::regprocedure;
  always constant text[] := array['datid', 'pid', 'usesysid', 'application_name'];
  shown text;
  columns text;
begin
  select string_agg(format('%I %s', c.name, format_type(c.type, null)), ', ' order by c.place),
    string_agg(case
      when c.name = any (always) then format('s.%I', c.name)
      when c.name = 'query' then $q$case when o.own then s.query else '<insufficient privilege>' end$q$
      else format('case when o.own then s.%I end', c.name) end, ', ' order by c.place)
  into columns, shown
  from pg_proc p, unnest(p.proargnames, p.proallargtypes, p.proargmodes)
    with ordinality c (name, type, mode, place)
  where p.oid = source and c.mode = 'o';
  execute format($f$
    create or replace function ichibase.sessions(viewer name) returns table (%s)
    language sql stable security definer set search_path = pg_catalog, pg_temp as $b$
      select %s from pg_stat_get_activity(null) s, lateral (select ichibase.sees_all()
        or (pg_has_role(session_user, viewer, 'member') and pg_has_role(viewer, s.usesysid, 'usage')
        ) is true as own) o
      where s.datid = ichibase.here() or ichibase.sees_all()
    $b$ $f$, columns, shown);
end $$;
grant execute on function ichibase.sessions(name) to public;

-- Other functions that tell of all databases: the same with those rows alone that are of this one.
do $$
declare
  one record;
  columns text;
begin
  for one in
    select p.oid, f.name, f.given, f.passed, f.kept
    from (values
      ('pg_lock_status()', 'locks', '', '',
        's.database = ichibase.here() or s.pid in (select a.pid from pg_stat_get_activity(null) a
          where a.datid = ichibase.here())'),
      ('pg_prepared_xact()', 'prepared', '', '', 's.dbid = ichibase.here()'),
      ('pg_get_replication_slots()', 'slots', '', '', 's.datoid = ichibase.here()'),
      ('pg_stat_get_replication_slot(text)', 'slot', 'slot text', 'slot',
        's.slot_name in (select l.slot_name from pg_get_replication_slots() l
          where l.datoid = ichibase.here())'),
      ('pg_stat_get_progress_info(text)', 'progress', 'command text', 'command',
        's.datid = ichibase.here()')
    ) f (source, name, given, passed, kept)
    join pg_proc p on p.oid = to_regprocedure(f.source)
  loop
    select string_agg(format('%I %s', c.name, format_type(c.type, null)), ', ' order by c.place)
    into columns
    from pg_proc p, unnest(p.proargnames, p.proallargtypes, p.proargmodes)
      with ordinality c (name, type, mode, place)
    where p.oid = one.oid and c.mode = 'o';
    execute format($f$
      create or replace function ichibase.%I(%s) returns table (%s)
      language sql stable security definer set search_path = pg_catalog, pg_temp as $b$
        select s.* from %s(%s) s where %s or ichibase.sees_all()
      $b$ $f$, one.name, one.given, columns, one.oid::regproc, one.passed, one.kept);
    execute format('grant execute on function ichibase.%I to public', one.name);
  end loop;
end $$;

do $$
declare
  one record;
  text text;
begin
  for one in
    select c.oid, c.relname, pg_get_viewdef(c.oid) as definition
    from pg_class c where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'v'
  loop
    text := replace(one.definition, 'pg_stat_get_activity(NULL::integer)',
      'ichibase.sessions(current_user)');
    text := replace(text, 'pg_lock_status()', 'ichibase.locks()');
    text := replace(text, 'pg_prepared_xact()', 'ichibase.prepared()');
    text := replace(text, 'pg_get_replication_slots()', 'ichibase.slots()');
    text := replace(text, 'pg_stat_get_replication_slot(', 'ichibase.slot(');
    text := replace(text, 'pg_stat_get_progress_info(', 'ichibase.progress(');
    if text <> one.definition then
      execute format('create or replace view pg_catalog.%I as %s', one.relname, text);
    end if;
  end loop;
end $$;

-- Counts of the databases, which anybody may ask for by their number.
do $$
declare
  one record;
  columns text;
begin
  for one in
    select c.oid, c.relname, case c.relname when 'pg_stat_database' then 'counts' else 'conflicts' end
      as name, pg_get_viewdef(c.oid) as definition
    from pg_class c where c.relnamespace = 'pg_catalog'::regnamespace
    and c.relname in ('pg_stat_database', 'pg_stat_database_conflicts')
  loop
    continue when strpos(one.definition, 'ichibase') > 0;
    select string_agg(format('%I %s', attname, format_type(atttypid, null)), ', ' order by attnum)
    into columns from pg_attribute where attrelid = one.oid and attnum > 0;
    execute format($f$
      create or replace function ichibase.%I() returns table (%s)
      language sql stable security definer set search_path = pg_catalog, pg_temp as $b$
        select s.* from (%s) s where s.datid = ichibase.here() or ichibase.sees_all()
      $b$ $f$, one.name, columns, rtrim(one.definition, E'; \n'));
    execute format('grant execute on function ichibase.%I to public', one.name);
    execute format('create or replace view pg_catalog.%I as select * from ichibase.%I()',
      one.relname, one.name);
  end loop;
end $$;

-- Roles: those of other projects have names of one form. Conditions come before those of a
-- query, whose functions would see what the view leaves out (security_barrier).
do $$
declare
  roles text := pg_get_viewdef('pg_roles'::regclass);
  users text := pg_get_viewdef('pg_user'::regclass);
  ours constant text := $q$(%1$s !~ '^ichi_[a-z0-9]{12}_'
    or starts_with(%1$s::text, current_database()::text || '_')
    or (select ichibase.sees_all()))$q$;  -- once, and not for each of some thousand roles
begin
  if strpos(roles, 'sees_all') = 0 then
    roles := rtrim(roles, E'; \n');
    roles := replace(roles, 's.setconfig AS rolconfig',
      $q$case when pg_has_role(pg_authid.oid, 'usage') then s.setconfig end as rolconfig$q$);
    execute 'create or replace view pg_roles as ' || roles || ' where '
      || format(ours, 'pg_authid.rolname');
  end if;
  if strpos(users, 'sees_all') = 0 then
    users := rtrim(users, E'; \n');
    users := regexp_replace(users, '\museconfig\M',
      $q$case when pg_has_role(usesysid, 'usage') then useconfig end as useconfig$q$);
    execute 'create or replace view pg_user as ' || users || ' where ' || format(ours, 'usename');
  end if;
  alter view pg_roles set (security_barrier = true);
  alter view pg_user set (security_barrier = true);
end $$;

-- What these views stand for, and what tells of others when it is asked for them by number.
revoke select on pg_db_role_setting, pg_shdepend, pg_group from public;
do $$
declare
  one record;
begin
  for one in
    select p.oid from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace
    and (p.proname in ('pg_stat_get_activity', 'pg_lock_status', 'pg_prepared_xact',
        'pg_get_replication_slots', 'pg_stat_get_wal_senders', 'pg_stat_get_progress_info',
        'pg_stat_get_replication_slot', 'pg_tablespace_size', 'pg_tablespace_databases',
        'pg_stat_have_stats')
      or p.proname ~ '^pg_stat_get_(backend|db)_')
  loop
    execute format('revoke execute on function %s from public', one.oid::regprocedure);
  end loop;
end $$;

-- pg_dump writes rights of system objects that differ from the first ones: these are such.
do $$
begin
  delete from pg_init_privs where privtype = 'i' and objsubid = 0 and (classoid, objoid) in (
    select 'pg_class'::regclass, oid from pg_class
      where relnamespace = 'pg_catalog'::regnamespace and relacl is not null
    union all select 'pg_proc'::regclass, oid from pg_proc
      where pronamespace = 'pg_catalog'::regnamespace and proacl is not null);
  insert into pg_init_privs (objoid, classoid, objsubid, privtype, initprivs)
  select oid, 'pg_class'::regclass, 0, 'i', relacl from pg_class
    where relnamespace = 'pg_catalog'::regnamespace and relacl is not null
  union all select oid, 'pg_proc'::regclass, 0, 'i', proacl from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proacl is not null;
end $$;
