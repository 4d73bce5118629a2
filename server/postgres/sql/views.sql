-- The parse tree of every view that the schemas $1 show or that their views may be built upon ($2),
-- with the names of its columns as a JSON object by number.
select
  c.oid::text,
  n.nspname,
  c.relname,
  n.nspname = any($1::text[]),
  (
    select json_object_agg(a.attnum, a.attname)::text
    from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0
  ),
  r.ev_action::text
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_rewrite r on r.ev_class = c.oid and r.ev_type = '1'
where c.relkind in ('v', 'm')
  and (n.nspname = any($1::text[]) or n.nspname = any($2::text[]))
