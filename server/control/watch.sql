-- Tells the workers to read the schema again after DDL, and the change feed that types may have
-- changed; keeps the published tables such that their owner can still write to them. Event triggers
-- need a superuser. {system_name} is a role's name as a literal.

-- Whoever may emit messages into the log could speak as the server. Two functions do it for others.
do $$
declare
  emit regprocedure;
begin
  for emit in
    select oid from pg_catalog.pg_proc where proname = 'pg_logical_emit_message'
    and pronamespace = 'pg_catalog'::regnamespace
  loop
    execute format('revoke execute on function %s from public', emit);
    execute format('grant execute on function %s to %I', emit, {system_name});
  end loop;
end $$;

create or replace function ichibase.schema_changed() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_catalog.pg_notify('pgrst', 'reload schema');
  if exists (select from pg_catalog.pg_publication where pubname = 'ichibase_realtime') then
    perform pg_catalog.pg_logical_emit_message(true, 'ichibase_ddl', '');
    begin
      perform ichibase.publish_tables(null);
    exception when others then
      raise warning 'the published tables were not checked: %', sqlerrm;
    end;
  end if;
end $$;
revoke all on function ichibase.schema_changed() from public;

create or replace function ichibase.schema_changed_by_ddl() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (
    select from pg_catalog.pg_event_trigger_ddl_commands() c
    where c.schema_name is distinct from 'pg_temp'
      and c.command_tag not in ('CREATE INDEX', 'ALTER INDEX', 'CREATE STATISTICS',
        'ALTER STATISTICS', 'REFRESH MATERIALIZED VIEW', 'CREATE PUBLICATION',
        'ALTER PUBLICATION', 'CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION')
  ) then
    perform ichibase.schema_changed();
  end if;
end $$;

create or replace function ichibase.schema_changed_by_drop() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (
    select from pg_catalog.pg_event_trigger_dropped_objects() o
    where not o.is_temporary
      and o.object_type not in ('publication', 'publication relation', 'publication namespace')
  ) then
    perform ichibase.schema_changed();
  end if;
end $$;

drop event trigger if exists ichibase_ddl;
drop event trigger if exists ichibase_drop;
create event trigger ichibase_ddl on ddl_command_end
  execute function ichibase.schema_changed_by_ddl();
create event trigger ichibase_drop on sql_drop
  execute function ichibase.schema_changed_by_drop();
