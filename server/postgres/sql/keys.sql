-- Primary, unique and foreign keys of all user relations: by column number (to follow them through
-- views) and by name. A foreign key of a partition that only mirrors its parent's is told apart.
select
  con.contype,
  con.conname,
  con.conrelid::text,
  n.nspname,
  c.relname,
  con.conkey::text,
  (
    select json_agg(a.attname order by k.position)::text
    from unnest(con.conkey) with ordinality as k (number, position)
    join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number
  ),
  con.confrelid::text,
  fn.nspname,
  fc.relname,
  con.confkey::text,
  (
    select json_agg(a.attname order by k.position)::text
    from unnest(con.confkey) with ordinality as k (number, position)
    join pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.number
  ),
  con.conparentid = 0,
  con.confdeltype in ('c', 'n', 'd') or con.confupdtype in ('c', 'n', 'd')
from pg_constraint con
join pg_class c on c.oid = con.conrelid
join pg_namespace n on n.oid = c.relnamespace
left join pg_class fc on fc.oid = con.confrelid
left join pg_namespace fn on fn.oid = fc.relnamespace
where con.contype in ('p', 'u', 'f')
  and n.nspname not in ('pg_catalog', 'information_schema')
