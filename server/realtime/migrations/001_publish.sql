-- Messages from SQL. They are part of the transaction that publishes them: told to the receivers
-- when it commits, in the order of its changes, and never when it is rolled back. The one line for
-- each of channel, event and payload is what the change feed reads.

create function realtime.publish(channel text, event text, payload jsonb default 'null')
returns void language plpgsql volatile security definer set search_path = '' as $$
begin
  if channel is null or channel !~ '^[A-Za-z0-9_:.-]{1,128}$' then
    raise exception 'invalid channel' using errcode = '22023',
      detail = 'A channel is 1 to 128 letters, digits and _ : . -';
  end if;
  if event is null or event !~ '^[^\u0001-\u001f]{1,128}$' then
    raise exception 'invalid event' using errcode = '22023',
      detail = 'An event is a text of 1 to 128 characters on one line.';
  end if;
  payload := coalesce(payload, 'null');
  if octet_length(payload::text) > 32768 then
    raise exception 'payload too large' using errcode = '54000',
      detail = 'A payload is at most 32768 bytes as JSON.';
  end if;
  perform pg_catalog.pg_logical_emit_message(true, 'ichibase',
    channel || E'\n' || event || E'\n' || payload::text);
end $$;

create function realtime.to_user(uid uuid, event text, payload jsonb default 'null')
returns void language plpgsql volatile security definer set search_path = '' as $$
begin
  if uid is null then
    raise exception 'invalid user' using errcode = '22023', detail = 'The user is null.';
  end if;
  perform realtime.publish('user:' || uid::text, event, payload);
end $$;

comment on function realtime.publish(text, text, jsonb) is
  'Sends a message to all subscribers of a channel once the transaction commits.';
comment on function realtime.to_user(uuid, text, jsonb) is
  'Sends a message to all connections of a user once the transaction commits.';

-- A publisher speaks as the server, so clients may not: triggers that publish for them are
-- "security definer" functions of the owner.
revoke all on function realtime.publish(text, text, jsonb) from public;
revoke all on function realtime.to_user(uuid, text, jsonb) from public;
do $$
declare
  owner name := (select pg_get_userbyid(datdba) from pg_database where datname = current_database());
begin
  execute format('grant execute on function realtime.publish(text, text, jsonb), '
    'realtime.to_user(uuid, text, jsonb) to service_role, %I', owner);
end $$;
