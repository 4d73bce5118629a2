-- Which relations run code of their own when written to (kind 'writes'), and which other relations a
-- write to one may reach (kind 'reaches'): behind a view, or down a partition or inheritance tree.
select 'writes', tgrelid::text, null
from pg_trigger
where not tgisinternal
union
select 'writes', ev_class::text, null
from pg_rewrite
where ev_type <> '1'
union
select 'reaches', r.ev_class::text, d.refobjid::text
from pg_depend d
join pg_rewrite r on r.oid = d.objid
where d.classid = 'pg_rewrite'::regclass
  and d.refclassid = 'pg_class'::regclass
  and d.refobjid <> r.ev_class
  and r.ev_class >= 16384
union
select 'reaches', inhparent::text, inhrelid::text
from pg_inherits
