-- With an empty path a caller's temporary types come before those that the functions mean.
alter function realtime.publish(text, text, jsonb) set search_path = pg_catalog, pg_temp;
alter function realtime.to_user(uuid, text, jsonb) set search_path = pg_catalog, pg_temp;
