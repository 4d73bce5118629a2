-- What the change feed needs of a project's database. {feed} is a quoted role name, {owner_name} the
-- owner's as a literal. Every statement may run again.

-- Which tables are in the change stream. The feed's login may do no more about it than call this
-- function, which takes only tables of the project's owner. null keeps the tables there are.
-- It runs with rights that nobody in the project has: it lives in a schema where nobody can put
-- another in its place, and looks nothing up in a schema of the project's. pg_temp comes last: with
-- an empty path a caller's temporary types would come before those that are meant here.
-- Answers the state of each: all, inserts (updates and deletes cannot be told for want of a primary
-- key or replica identity), missing, unsupported (a view, a temporary or unlogged table), forbidden
-- (it belongs to somebody else), busy (locked at this moment, or being changed by another node).
-- It takes no lock of its own: called by DDL, it would hold it as long as that transaction lasts.
create or replace function ichibase.publish_tables(tables text[])
returns table (source text, state text)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms' as $$
declare
  publications constant text[] := array['ichibase_realtime', 'ichibase_realtime_inserts'];
  operations constant text[] := array['insert, update, delete, truncate', 'insert, truncate'];
  options text := ', publish_via_partition_root = true';
  wanted record;
  found record;
  place int;
begin
  if pg_catalog.current_setting('server_version_num')::int >= 180000 then
    options := options || ', publish_generated_columns = stored';
  end if;
  for place in 1..2 loop
    if not exists (select from pg_catalog.pg_publication where pubname = publications[place]) then
      begin
        execute pg_catalog.format('create publication %I with (publish = %L%s)',
          publications[place], operations[place], options);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
  tables := coalesce(tables, array(
    select n.nspname || '.' || c.relname from pg_catalog.pg_publication_rel r
    join pg_catalog.pg_publication p on p.oid = r.prpubid
    join pg_catalog.pg_class c on c.oid = r.prrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where p.pubname = any (publications)));
  for found in
    select p.pubname, n.nspname, c.relname from pg_catalog.pg_publication_rel r
    join pg_catalog.pg_publication p on p.oid = r.prpubid
    join pg_catalog.pg_class c on c.oid = r.prrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where p.pubname = any (publications) and n.nspname || '.' || c.relname <> all (tables)
  loop
    begin
      execute pg_catalog.format('alter publication %I drop table %I.%I',
        found.pubname, found.nspname, found.relname);
    exception when lock_not_available or undefined_object or undefined_table or internal_error
      then null;
    end;
  end loop;
  for wanted in
    select distinct on (t.name) t.name, c.oid, n.nspname, c.relname,
      case
        when c.oid is null then 'missing'
        when c.relkind not in ('r', 'p') or c.relpersistence <> 'p' then 'unsupported'
        when n.nspname in ('auth', 'storage', 'realtime', 'ichibase', 'pg_catalog',
          'information_schema') or not pg_catalog.pg_has_role({owner_name}, c.relowner, 'usage')
          then 'forbidden'
        when (
          select pg_catalog.bool_and(l.relreplident = 'f' or exists (
            select from pg_catalog.pg_index i where i.indrelid = l.oid and i.indimmediate
            and case l.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident
              else false end))
          from pg_catalog.pg_class l
          where l.oid = c.oid or l.oid in (
            select x.relid from pg_catalog.pg_partition_tree(c.oid) x where x.isleaf)
        ) then 'all'
        else 'inserts'
      end as state
    from pg_catalog.unnest(tables) as t (name)
    left join pg_catalog.pg_namespace n on n.nspname = pg_catalog.split_part(t.name, '.', 1)
    left join pg_catalog.pg_class c on c.relnamespace = n.oid
      and c.relname = pg_catalog.substr(t.name, pg_catalog.length(n.nspname) + 2)
    order by t.name
  loop
    source := wanted.name;
    state := wanted.state;
    if state in ('all', 'inserts') then
      place := case state when 'all' then 1 else 2 end;
      begin
        if exists (
          select from pg_catalog.pg_publication_rel r
          join pg_catalog.pg_publication p on p.oid = r.prpubid
          where p.pubname = publications[3 - place] and r.prrelid = wanted.oid
        ) then
          execute pg_catalog.format('alter publication %I drop table %I.%I',
            publications[3 - place], wanted.nspname, wanted.relname);
        end if;
        if not exists (
          select from pg_catalog.pg_publication_rel r
          join pg_catalog.pg_publication p on p.oid = r.prpubid
          where p.pubname = publications[place] and r.prrelid = wanted.oid
        ) then
          execute pg_catalog.format('alter publication %I add table %I.%I',
            publications[place], wanted.nspname, wanted.relname);
        end if;
      exception when lock_not_available or duplicate_object or undefined_object or undefined_table
        or unique_violation or internal_error
      then
        state := 'busy';
      end;
    end if;
    return next;
  end loop;
end $$;
revoke all on function ichibase.publish_tables(text[]) from public;
grant usage on schema ichibase to {feed};
grant execute on function ichibase.publish_tables(text[]) to {feed};
