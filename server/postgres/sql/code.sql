-- Which relations run functions of the database's own that may change settings: kind 'writes' by a
-- default or check, kind 'reads' by a policy. And which relations a policy reads (kind 'through').
--
-- Found by name in the texts of the functions, and of those that they call: one that is found in
-- vain costs its tables a statement.
with recursive used (kind, relation, function) as (
  select 'reads', polrelid, found[1]::oid
  from pg_policy
  cross join lateral regexp_matches(
    concat(polqual::text, polwithcheck::text), ':(?:op)?funcid (\d+)', 'g') as found
  union
  select 'writes', adrelid, found[1]::oid
  from pg_attrdef
  cross join lateral regexp_matches(adbin::text, ':(?:op)?funcid (\d+)', 'g') as found
  union
  select 'writes', coalesce(nullif(c.conrelid, 0), a.attrelid), found[1]::oid
  from pg_constraint c
  left join pg_attribute a on a.atttypid = c.contypid and c.contypid <> 0
  cross join lateral regexp_matches(c.conbin::text, ':(?:op)?funcid (\d+)', 'g') as found
  where c.contype = 'c'
), called (kind, relation, function) as (
  select * from used
  where function >= 16384 or function = 'pg_catalog.set_config(text,text,boolean)'::regprocedure
  union
  select c.kind, c.relation, callee.oid
  from called c
  join pg_proc f on f.oid = c.function and f.oid >= 16384
  join pg_language l on l.oid = f.prolang and l.lanname not in ('internal', 'c')
  cross join lateral (
    select distinct word from regexp_split_to_table(
      coalesce(pg_get_function_sqlbody(f.oid), f.prosrc), '[^[:alnum:]_$]+') as word
  ) as words
  join pg_proc callee on callee.proname in (word, lower(word)) and callee.oid >= 16384
)
select distinct c.kind, c.relation::text, null
from called c
join pg_proc f on f.oid = c.function
join pg_language l on l.oid = f.prolang
where f.oid < 16384
  or l.lanname not in ('internal', 'c', 'sql', 'plpgsql')
  or (l.lanname in ('sql', 'plpgsql') and coalesce(pg_get_function_sqlbody(f.oid), f.prosrc)
        ~* '\m(set_config|set|reset|execute)\M')
union
select 'through', p.polrelid::text, d.refobjid::text
from pg_policy p
join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
where d.refclassid = 'pg_class'::regclass and d.refobjid <> p.polrelid
