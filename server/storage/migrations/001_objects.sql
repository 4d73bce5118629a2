-- Buckets, objects, uploads under way, and blobs to delete. The bytes lie in the store, each
-- version of an object under a name of its own that is never used again.
--
-- Whatever changes the bytes in use locks the one row of storage.usage first, so the counters and
-- the rows they count change together and no two changes can wait for each other.

create table storage.buckets (
  id text primary key,
  size_limit bigint,
  allowed_types text[],
  cache_seconds integer,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint name_is_plain check (id ~ '^[a-z0-9][a-z0-9-]{1,62}$'),
  constraint size_limit_is_positive check (size_limit > 0),
  constraint cache_seconds_is_sane check (cache_seconds between 0 and 31536000)
);

create table storage.usage (
  only_row boolean primary key default true check (only_row),
  bytes bigint not null default 0 check (bytes >= 0),
  reserved bigint not null default 0 check (reserved >= 0),
  objects bigint not null default 0 check (objects >= 0)
);
insert into storage.usage default values;

create table storage.objects (
  id uuid primary key default gen_random_uuid(),
  bucket text not null references storage.buckets,
  path text collate "C" not null,
  version text not null unique,
  size bigint not null check (size >= 0),
  content_type text not null,
  sha256 bytea not null,
  owner_id uuid,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (bucket, path)
);

-- A row for each upload URL that may still be used, and for each upload under way: `version` is
-- then the blob it writes, noted before its first byte. `reserved` is its share of usage.reserved.
create table storage.uploads (
  id uuid primary key,
  bucket text not null,
  path text collate "C" not null,
  size bigint not null,
  content_type text not null,
  sha256 bytea,
  owner_id uuid,
  reserved bigint not null,
  version text unique,
  url_until timestamptz not null,
  expires_at timestamptz not null,
  created_at timestamptz not null default now()
);
create index uploads_expires_at on storage.uploads (expires_at);

create table storage.garbage (
  version text primary key,
  due_at timestamptz not null default now()
);
create index garbage_due_at on storage.garbage (due_at);

-- Gives back what uploads that have run out had reserved. The usage row is locked by the caller.
create function storage.release_expired() returns bigint language plpgsql as $$
declare
  freed bigint;
begin
  with old as (
    delete from storage.uploads where id in (
      select id from storage.uploads where expires_at < now() order by expires_at limit 1000
    ) returning reserved, version
  ), dropped as (
    insert into storage.garbage (version) select version from old where version is not null
    on conflict do nothing
  )
  select coalesce(sum(reserved), 0) into freed from old;
  if freed > 0 then
    update storage.usage set reserved = reserved - freed;
  end if;
  return freed;
end $$;

create function storage.sweep_uploads() returns bigint language plpgsql as $$
begin
  if not exists (select 1 from storage.uploads where expires_at < now()) then
    return 0;
  end if;
  perform 1 from storage.usage for update;
  return storage.release_expired();
end $$;

-- Reserves room for one upload. version: the blob's name when the upload begins at once, else null.
-- outcome: ok, too_large, type_refused, over_quota, too_many.
create function storage.reserve(
  new_id uuid, in_bucket text, at_path text, of_size bigint, of_type text, with_sha256 bytea,
  for_owner uuid, new_version text, url_seconds double precision, seconds double precision,
  quota bigint, most_pending bigint, default_limit bigint,
  out outcome text, out most bigint
) language plpgsql as $$
declare
  used storage.usage;
  rule storage.buckets;
  before bigint;
  need bigint;
begin
  select * into used from storage.usage for update;
  used.reserved := used.reserved - storage.release_expired();
  select * into rule from storage.buckets where id = in_bucket;
  if not found then
    insert into storage.buckets (id) values (in_bucket) returning * into rule;
  end if;
  most := least(rule.size_limit, default_limit);
  if of_size > most then
    outcome := 'too_large';
    return;
  end if;
  if rule.allowed_types is not null and not exists (
    select 1 from unnest(rule.allowed_types) allowed
    where allowed = split_part(of_type, ';', 1)
      or (allowed like '%/*' and starts_with(of_type, left(allowed, -1)))
  ) then
    outcome := 'type_refused';
    return;
  end if;
  if (select count(*) from (select 1 from storage.uploads limit most_pending) pending)
    >= most_pending then
    outcome := 'too_many';
    return;
  end if;
  select size into before from storage.objects where bucket = in_bucket and path = at_path;
  need := greatest(0, of_size - coalesce(before, 0));
  if used.bytes + used.reserved + need > quota then
    outcome := 'over_quota';
    most := greatest(0, quota - used.bytes - used.reserved + coalesce(before, 0));
    return;
  end if;
  insert into storage.uploads (id, bucket, path, size, content_type, sha256, owner_id, reserved,
    version, url_until, expires_at)
  values (new_id, in_bucket, at_path, of_size, of_type, with_sha256, for_owner, need, new_version,
    now() + make_interval(secs => url_seconds), now() + make_interval(secs => seconds));
  if need > 0 then
    update storage.usage set reserved = reserved + need;
  end if;
  outcome := 'ok';
end $$;

-- Takes an upload URL into use for `seconds`. outcome: ok, gone (used or released), expired, busy.
create function storage.begin_upload(
  of_id uuid, new_version text, seconds double precision, out outcome text, out wanted bytea
) language plpgsql as $$
declare
  found_row storage.uploads;
begin
  select * into found_row from storage.uploads where id = of_id for update;
  if not found then
    outcome := 'gone';
  elsif found_row.version is not null then
    outcome := 'busy';
  elsif found_row.url_until < now() then
    outcome := 'expired';
  else
    update storage.uploads
      set version = new_version, expires_at = now() + make_interval(secs => seconds)
      where id = of_id;
    outcome := 'ok';
    wanted := found_row.sha256;
  end if;
end $$;

-- An upload that failed: its URL may be used again while it lasts, what it reserved stays reserved
-- as long. Without `again` it is released at once.
create function storage.abandon_upload(of_id uuid, of_version text, again boolean) returns void
language plpgsql as $$
begin
  perform 1 from storage.usage for update;
  update storage.uploads set version = null,
    expires_at = case when again then url_until else now() - interval '1 second' end
    where id = of_id and version = of_version;
  insert into storage.garbage (version) select of_version
    where not exists (select 1 from storage.objects where version = of_version)
    on conflict do nothing;
  perform storage.release_expired();
end $$;

-- Makes a stored blob the object's content. outcome: ok, gone (its time ran out), over_quota.
-- delta: bytes more than before; created: no object was there. May be repeated when its answer was
-- lost.
create function storage.finish_upload(
  of_id uuid, of_version text, of_sha256 bytea, quota bigint, grace double precision,
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
    insert into storage.objects (bucket, path, version, size, content_type, sha256, owner_id)
    values (done.bucket, done.path, of_version, done.size, done.content_type, of_sha256,
      done.owner_id) returning id into object_id;
  else
    object_id := old.id;
    update storage.objects set version = of_version, size = done.size,
      content_type = done.content_type, sha256 = of_sha256, updated_at = now(),
      owner_id = coalesce(done.owner_id, old.owner_id)
      where id = old.id;
    insert into storage.garbage (version, due_at)
      values (old.version, now() + make_interval(secs => grace)) on conflict do nothing;
  end if;
  update storage.usage set bytes = bytes + delta, reserved = reserved - done.reserved,
    objects = objects + created::int;
  outcome := 'ok';
end $$;

-- Deletes one object, or with `below` everything under the folder as well.
create function storage.remove(
  in_bucket text, at_path text, below boolean, grace double precision,
  out removed bigint, out freed bigint
) language plpgsql as $$
begin
  perform 1 from storage.usage for update;
  with gone as (
    delete from storage.objects
    where bucket = in_bucket
      and (path = at_path or (below and path > at_path || '/' and path < at_path || '0'))
    returning version, size
  ), dropped as (
    insert into storage.garbage (version, due_at)
    select version, now() + make_interval(secs => grace) from gone on conflict do nothing
  )
  select count(*), coalesce(sum(size), 0) into removed, freed from gone;
  if removed > 0 then
    update storage.usage set bytes = bytes - freed, objects = objects - removed;
  end if;
end $$;

-- Renames within a bucket; what was at the target is replaced. `size` is null when the source is
-- missing.
create function storage.move(
  in_bucket text, old_path text, new_path text, grace double precision, out size bigint
) language plpgsql as $$
declare
  source storage.objects;
  target storage.objects;
begin
  perform 1 from storage.usage for update;
  select * into source from storage.objects where bucket = in_bucket and path = old_path for update;
  if not found then
    return;
  end if;
  size := source.size;
  if old_path = new_path then
    return;
  end if;
  delete from storage.objects where bucket = in_bucket and path = new_path returning * into target;
  if found then
    insert into storage.garbage (version, due_at)
      values (target.version, now() + make_interval(secs => grace)) on conflict do nothing;
    update storage.usage set bytes = bytes - target.size, objects = objects - 1;
  end if;
  update storage.objects set path = new_path, updated_at = now() where id = source.id;
end $$;

revoke execute on all functions in schema storage from public;

-- For the policies of the app's own tables.

create function storage.object_exists(in_bucket text, at_path text) returns boolean
language sql stable parallel safe security definer set search_path = '' as $$
  select exists (select 1 from storage.objects where bucket = in_bucket and path = at_path)
$$;
create function storage.object_owner(in_bucket text, at_path text) returns uuid
language sql stable parallel safe security definer set search_path = '' as $$
  select owner_id from storage.objects where bucket = in_bucket and path = at_path
$$;
create function storage.foldername(path text) returns text[]
language sql immutable parallel safe as $$
  select (string_to_array(path, '/'))[1:cardinality(string_to_array(path, '/')) - 1]
$$;
create function storage.filename(path text) returns text
language sql immutable parallel safe as $$
  select substring(path from '[^/]*$')
$$;
create function storage.extension(path text) returns text
language sql immutable parallel safe as $$
  select lower(substring(path from '\.([^./]+)$'))
$$;

alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
alter table storage.usage enable row level security;
alter table storage.uploads enable row level security;
alter table storage.garbage enable row level security;
grant select on storage.objects, storage.buckets to anon, authenticated, service_role;
create policy users_see_their_own on storage.objects for select to authenticated using (
  owner_id::text = (select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
);
do $$
declare
  app_owner text := (
    select pg_get_userbyid(datdba) from pg_database where datname = current_database()
  );
begin
  execute format('grant select, references on storage.objects, storage.buckets to %I', app_owner);
  execute format('create policy app_owner_sees_all on storage.objects for select to %I using (true)',
    app_owner);
  execute format('create policy app_owner_sees_all on storage.buckets for select to %I using (true)',
    app_owner);
end $$;
