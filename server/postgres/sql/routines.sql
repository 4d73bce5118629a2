-- Every callable function of the schemas $1, its input parameters as one JSON array.
-- A single unnamed parameter is allowed for the types that take a whole request body.
with recursive path as materialized (
  select set_config('search_path', '', true) as emptied
),
bases (domain, base) as (
  select oid, typbasetype
  from pg_type
  where typtype = 'd'
  union all
  select bases.domain, inner_type.typbasetype
  from bases
  join pg_type inner_type on inner_type.oid = bases.base
  where inner_type.typtype = 'd'
)
select
  f.oid::text,
  f.nspname,
  f.proname,
  f.description,
  f.params,
  f.type_schema,
  f.type_name,
  f.proretset,
  f.is_composite,
  f.is_alias,
  f.provolatile,
  f.is_variadic,
  f.settings,
  f.prorows
from path
cross join lateral (
  select
    p.oid,
    n.nspname,
    p.proname,
    obj_description(p.oid, 'pg_proc') as description,
    (
      select
        json_agg(
          json_build_array(
            coalesce(given.name, ''),
            format_type(given.type, null),
            case given.type
              when 'bit'::regtype then 'bit varying'
              when 'bit[]'::regtype then 'bit varying[]'
              when 'character'::regtype then 'character varying'
              when 'character[]'::regtype then 'character varying[]'
              else format_type(given.type, null)
            end,
            given.position <= p.pronargs - p.pronargdefaults,
            given.mode = 'v'
          )
          order by given.position
        )::text
      from (
        select
          argument.name,
          argument.type,
          coalesce(argument.mode, 'i') as mode,
          row_number() over (order by argument.position) as position
        from unnest(
          coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargnames, p.proargmodes
        ) with ordinality as argument (type, name, mode, position)
        where coalesce(argument.mode, 'i') in ('i', 'b', 'v')
      ) given
    ) as params,
    tn.nspname as type_schema,
    coalesce(tc.relname, t.typname) as type_name,
    p.proretset,
    t.typtype = 'c' or coalesce(p.proargmodes && '{t,b,o}'::"char"[], false) as is_composite,
    declared.typtype = 'd' as is_alias,
    p.provolatile,
    p.provariadic <> 0 as is_variadic,
    to_json(p.proconfig)::text as settings,
    p.prorows
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  join pg_type declared on declared.oid = p.prorettype
  left join (
    bases
    join pg_type base on base.oid = bases.base and base.typtype <> 'd'
  ) on bases.domain = declared.oid
  join pg_type t on t.oid = coalesce(base.oid, declared.oid)
  join pg_namespace tn on tn.oid = t.typnamespace
  left join pg_class tc on tc.oid = t.typrelid
  where path.emptied = ''
    and n.nspname = any($1::text[])
    and p.prokind = 'f'
    and t.oid <> 'trigger'::regtype
    and (
      p.pronargs = 0
      or p.proargnames is not null
      or p.pronargs = 1
      and p.proargtypes[0] in (
        'bytea'::regtype, 'json'::regtype, 'jsonb'::regtype, 'text'::regtype, 'xml'::regtype
      )
    )
  offset 0
) f
