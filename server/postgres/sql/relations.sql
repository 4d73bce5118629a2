-- Every relation of the schemas $1 that the API may show, one row each, its columns as one JSON
-- array in attnum order. Partitions are left out: their partitioned table stands for them.
-- The search path is emptied for this statement, so that type names and default expressions come
-- out qualified; the lateral reference makes the planner do that first.
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
  rel.oid::text,
  rel.nspname,
  rel.relname,
  rel.relkind,
  rel.writes,
  rel.relrowsecurity,
  rel.description,
  rel.columns
from path
cross join lateral (
  select
    c.oid,
    n.nspname,
    c.relname,
    c.relkind,
    -- bits of the CmdType numbers: 4 update, 8 insert, 16 delete
    case
      when c.relkind in ('r', 'p') then 28
      when c.relkind in ('v', 'f') then pg_relation_is_updatable(c.oid, true)
      else 0
    end as writes,
    c.relrowsecurity,
    obj_description(c.oid, 'pg_class') as description,
    (
      select
        json_agg(
          json_build_array(
            a.attname,
            case
              when t.typtype = 'd' and base.typnamespace = 'pg_catalog'::regnamespace
                then format_type(base.oid, null)
              when t.typtype <> 'd' and t.typnamespace = 'pg_catalog'::regnamespace
                then format_type(t.oid, null)
              else format_type(a.atttypid, a.atttypmod)
            end,
            format_type(a.atttypid, a.atttypmod),
            a.atttypid::bigint,
            not (a.attnotnull or t.typnotnull),
            case
              when t.typtype = 'd' and d.adbin is null then pg_get_expr(t.typdefaultbin, 0)
              when a.attidentity = 'd' then (
                select format('nextval(%L)', dep.objid::regclass)
                from pg_depend dep
                where dep.classid = 'pg_class'::regclass
                  and dep.refclassid = 'pg_class'::regclass
                  and dep.refobjid = a.attrelid
                  and dep.refobjsubid = a.attnum
                  and dep.deptype = 'i'
                limit 1
              )
              when a.attgenerated <> '' then null
              else pg_get_expr(d.adbin, d.adrelid)
            end,
            case
              when length_of.modifier = -1 then null
              when length_of.type in ('varchar'::regtype, 'bpchar'::regtype)
                then length_of.modifier - 4
              when length_of.type in ('bit'::regtype, 'varbit'::regtype) then length_of.modifier
            end,
            case
              when coalesce(base.typtype, t.typtype) = 'e' then (
                select json_agg(e.enumlabel order by e.enumsortorder)
                from pg_enum e
                where e.enumtypid = coalesce(base.oid, t.oid)
              )
            end,
            note.description
          )
          order by a.attnum
        )::text
      from pg_attribute a
      join pg_type t on t.oid = a.atttypid
      left join (
        bases
        join pg_type base on base.oid = bases.base and base.typtype <> 'd'
      ) on bases.domain = t.oid
      cross join lateral (
        select
          case when t.typtype = 'd' then t.typbasetype else t.oid end as type,
          case when t.typtype = 'd' then t.typtypmod else a.atttypmod end as modifier
      ) length_of
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      left join pg_description note
        on note.objoid = a.attrelid
        and note.objsubid = a.attnum
        and note.classoid = 'pg_class'::regclass
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    ) as columns
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  where path.emptied = ''
    and n.nspname = any($1::text[])
    and c.relkind in ('r', 'v', 'm', 'f', 'p')
    and not c.relispartition
  offset 0
) rel
