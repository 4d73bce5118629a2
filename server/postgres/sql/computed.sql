-- Functions of the schemas $1 from a row of one exposed relation to rows of another: computed
-- relationships. One that is not declared SETOF, or as ROWS 1, leads to a single row.
select
  n.nspname,
  p.proname,
  from_schema.nspname,
  from_table.relname,
  to_schema.nspname,
  to_table.relname,
  not p.proretset or p.prorows = 1
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
join pg_class from_table on from_table.reltype = p.proargtypes[0]
join pg_namespace from_schema on from_schema.oid = from_table.relnamespace
join pg_class to_table on to_table.reltype = p.prorettype
join pg_namespace to_schema on to_schema.oid = to_table.relnamespace
where p.pronargs = 1
  and n.nspname = any($1::text[])
  and from_schema.nspname = any($1::text[])
  and to_schema.nspname = any($1::text[])
  and from_table.relkind in ('r', 'v', 'm', 'f', 'p')
  and to_table.relkind in ('r', 'v', 'm', 'f', 'p')
