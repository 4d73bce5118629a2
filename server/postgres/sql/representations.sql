-- Implicit casts by function between a domain and json, jsonb or text, that this role may use.
with path as materialized (
  select set_config('search_path', '', true) as emptied
)
select found.source, found.target, found.function
from path
cross join lateral (
  select
    format_type(c.castsource, null) as source,
    format_type(c.casttarget, null) as target,
    quote_ident(n.nspname) || '.' || quote_ident(p.proname) as function
  from pg_cast c
  join pg_type source on source.oid = c.castsource
  join pg_type target on target.oid = c.casttarget
  join pg_proc p on p.oid = c.castfunc
  join pg_namespace n on n.oid = p.pronamespace
  where path.emptied = ''
    and c.castcontext = 'i'
    and c.castmethod = 'f'
    and has_function_privilege(p.oid, 'execute')
    and (
      source.typtype = 'd'
      and c.casttarget in ('json'::regtype, 'jsonb'::regtype, 'text'::regtype)
      or target.typtype = 'd'
      and c.castsource in ('json'::regtype, 'jsonb'::regtype, 'text'::regtype)
    )
  offset 0
) found
