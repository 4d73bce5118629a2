-- The validator of a file's content has a column of its own, so that SHA-256 is taken of those files
-- alone whose uploads state it. Null, of older rows, stands for the first half of their SHA-256.

alter table storage.objects add column etag text;
alter table storage.objects alter column sha256 drop not null;

-- As before, with the content's etag.
create function storage.finish_upload(
  of_id uuid, of_version text, of_sha256 bytea, of_etag text, quota bigint, grace double precision,
  out outcome text, out object_id uuid, out delta bigint, out created boolean
) language plpgsql as $$
declare
  used storage.usage;
  done storage.uploads;
  old storage.objects;
begin
  delta := 0;
  created := false;
  select * into used from storage.usage for update;
  delete from storage.uploads where id = of_id and version = of_version returning * into done;
  if not found then
    select id into object_id from storage.objects where version = of_version;
    if found then
      outcome := 'ok';
      return;
    end if;
    insert into storage.garbage (version) values (of_version) on conflict do nothing;
    outcome := 'gone';
    return;
  end if;
  select * into old from storage.objects where bucket = done.bucket and path = done.path for update;
  delta := done.size - coalesce(old.size, 0);
  if delta > done.reserved and used.bytes + used.reserved - done.reserved + delta > quota then
    update storage.usage set reserved = reserved - done.reserved;
    insert into storage.garbage (version) values (of_version) on conflict do nothing;
    outcome := 'over_quota';
    return;
  end if;
  created := old.id is null;
  if created then
    insert into storage.buckets (id) values (done.bucket) on conflict do nothing;
    insert into storage.objects (bucket, path, version, size, content_type, sha256, etag, owner_id)
    values (done.bucket, done.path, of_version, done.size, done.content_type, of_sha256, of_etag,
      done.owner_id) returning id into object_id;
  else
    object_id := old.id;
    update storage.objects set version = of_version, size = done.size,
      content_type = done.content_type, sha256 = of_sha256, etag = of_etag, updated_at = now(),
      owner_id = coalesce(done.owner_id, old.owner_id)
      where id = old.id;
    insert into storage.garbage (version, due_at)
      values (old.version, now() + make_interval(secs => grace)) on conflict do nothing;
  end if;
  update storage.usage set bytes = bytes + delta, reserved = reserved - done.reserved,
    objects = objects + created::int;
  outcome := 'ok';
end $$;

-- What another node of an older version still calls.
create or replace function storage.finish_upload(
  of_id uuid, of_version text, of_sha256 bytea, quota bigint, grace double precision,
  out outcome text, out object_id uuid, out delta bigint, out created boolean
) language sql as $$
  select * from storage.finish_upload(of_id, of_version, of_sha256, null, quota, grace)
$$;

revoke execute on function
  storage.finish_upload(uuid, text, bytea, text, bigint, double precision) from public;
