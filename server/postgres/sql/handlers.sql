-- Media type handlers of the schemas $1. A domain named like a media type is that media type; an
-- aggregate that gives it answers for the relation it aggregates (anyelement: for any), a plain
-- function that gives it answers for itself.
with media as (
  select
    t.oid,
    t.typname,
    quote_ident(n.nspname) || '.' || quote_ident(t.typname) as domain
  from pg_type t
  join pg_namespace n on n.oid = t.typnamespace
  where t.typtype = 'd'
    and (t.typname = '*/*' or t.typname ~* '^[a-z0-9.-]+/[a-z0-9.+-]+$')
)
select
  'aggregate',
  media.typname,
  media.domain,
  n.nspname,
  p.proname,
  target_schema.nspname,
  target.typname
from media
join pg_proc p on p.prorettype = media.oid and p.prokind = 'a' and p.pronargs = 1
join pg_namespace n on n.oid = p.pronamespace
join pg_type target on target.oid = p.proargtypes[0]
join pg_namespace target_schema on target_schema.oid = target.typnamespace
left join pg_class target_class on target_class.oid = target.typrelid
where n.nspname = any($1::text[])
  and (
    target.oid = 'anyelement'::regtype
    or target_class.relkind in ('r', 'v', 'm', 'f', 'p')
  )
union all
select
  'function',
  media.typname,
  media.domain,
  n.nspname,
  p.proname,
  n.nspname,
  p.proname
from media
join pg_proc p on p.prorettype = media.oid and p.prokind = 'f' and not p.proretset
join pg_namespace n on n.oid = p.pronamespace
where n.nspname = any($1::text[])
