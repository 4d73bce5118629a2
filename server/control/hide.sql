-- What is shared by all databases of a server is shown in each: sessions with the name that their
-- program gives itself, roles with their settings. In a project's database these views tell of the
-- project alone, to everybody but superusers. Every statement may run again. The views are those of
-- this server's version, with a condition more.

set local allow_system_table_mods = on;

create or replace function ichibase.sees_all() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select rolsuper from pg_authid where rolname = session_user
$$;

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
      where s.datid = (select oid from pg_database where datname = current_database())
        or ichibase.sees_all()
    $b$ $f$, columns, shown);
end $$;
grant execute on function ichibase.sessions(name), ichibase.sees_all() to public;
revoke execute on function pg_stat_get_activity(int4) from public;
revoke select on pg_db_role_setting from public;

do $$
declare
  activity text := pg_get_viewdef('pg_stat_activity'::regclass);
  roles text := pg_get_viewdef('pg_roles'::regclass);
  users text := pg_get_viewdef('pg_user'::regclass);
  ours constant text := $q$ where %1$s !~ '^ichi_[a-z0-9]{12}_'
    or starts_with(%1$s::text, current_database()::text || '_')
    or (select ichibase.sees_all())$q$;  -- once, and not for each of some thousand roles
begin
  if strpos(activity, 'pg_stat_get_activity(NULL::integer)') > 0 then
    execute 'create or replace view pg_stat_activity as ' || replace(
      activity, 'pg_stat_get_activity(NULL::integer)', 'ichibase.sessions(current_user)');
  end if;
  if strpos(roles, 'sees_all') = 0 then
    roles := rtrim(roles, E'; \n');
    roles := replace(roles, 's.setconfig AS rolconfig',
      $q$case when pg_has_role(pg_authid.oid, 'usage') then s.setconfig end as rolconfig$q$);
    execute 'create or replace view pg_roles as ' || roles || format(ours, 'pg_authid.rolname');
  end if;
  if strpos(users, 'sees_all') = 0 then
    users := rtrim(users, E'; \n');
    users := regexp_replace(users, '\museconfig\M',
      $q$case when pg_has_role(usesysid, 'usage') then useconfig end as useconfig$q$);
    execute 'create or replace view pg_user as ' || users || format(ours, 'usename');
  end if;
end $$;
