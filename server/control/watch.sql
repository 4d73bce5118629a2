-- Tells the workers to read the schema again after DDL. Event triggers need a superuser.

create or replace function ichibase.schema_changed_by_ddl() returns event_trigger
language plpgsql set search_path = '' as $$
begin
  if exists (
    select from pg_catalog.pg_event_trigger_ddl_commands() c
    where c.schema_name is distinct from 'pg_temp'
      and c.command_tag not in ('CREATE INDEX', 'ALTER INDEX', 'CREATE STATISTICS',
        'ALTER STATISTICS', 'REFRESH MATERIALIZED VIEW', 'CREATE PUBLICATION',
        'ALTER PUBLICATION', 'CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION')
  ) then
    perform pg_catalog.pg_notify('pgrst', 'reload schema');
  end if;
end $$;

create or replace function ichibase.schema_changed_by_drop() returns event_trigger
language plpgsql set search_path = '' as $$
begin
  if exists (
    select from pg_catalog.pg_event_trigger_dropped_objects() o
    where not o.is_temporary
  ) then
    perform pg_catalog.pg_notify('pgrst', 'reload schema');
  end if;
end $$;

drop event trigger if exists ichibase_ddl;
drop event trigger if exists ichibase_drop;
create event trigger ichibase_ddl on ddl_command_end
  execute function ichibase.schema_changed_by_ddl();
create event trigger ichibase_drop on sql_drop
  execute function ichibase.schema_changed_by_drop();
