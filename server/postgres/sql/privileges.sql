-- What the role in charge may use of the schema $1: names of tables, oids of functions, as one
-- JSON text.
select
  json_build_object(
    'tables', (
      select coalesce(json_agg(c.relname), '[]')
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = $1::text
        and c.relkind in ('r', 'v', 'm', 'f', 'p')
        and not c.relispartition
        and (
          pg_has_role(c.relowner, 'usage')
          or has_table_privilege(
            c.oid, 'select, insert, update, delete, truncate, references, trigger'
          )
          or has_any_column_privilege(c.oid, 'select, insert, update, references')
        )
    ),
    'functions', (
      select coalesce(json_agg(p.oid::bigint), '[]')
      from pg_proc p
      join pg_namespace n on n.oid = p.pronamespace
      where n.nspname = $1::text
        and p.prokind = 'f'
        and has_function_privilege(p.oid, 'execute')
    )
  )::text,
  1,
  null,
  null
