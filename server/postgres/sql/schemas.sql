-- The server's version number, then the comments of the schemas $1.
select null, current_setting('server_version_num')
union all
select nspname, obj_description(oid, 'pg_namespace')
from pg_namespace
where nspname = any($1::text[])
