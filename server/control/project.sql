-- Everything of a new project's database that a superuser must make. Every statement may run
-- again, so an interrupted creation is simply repeated. {owner}, {authenticator} and {system} are
-- quoted role names.

grant temporary on database {database} to public;
grant connect on database {database} to {owner}, {authenticator}, {system}, {feed};
grant create on database {database} to {system};

alter schema public owner to {owner};
grant usage on schema public to {system};
grant all on schema public to {owner};

create schema if not exists auth authorization {system};
create schema if not exists storage authorization {system};
create schema if not exists realtime authorization {system};
grant usage on schema auth, storage, realtime to anon, authenticated, service_role, {owner};

-- A setting that was local to an earlier transaction reads as '' afterwards, hence nullif.
create or replace function auth.uid() returns uuid language sql stable parallel safe as $$
  select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid
$$;
create or replace function auth.role() returns text language sql stable parallel safe as $$
  select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role', '')
$$;
create or replace function auth.email() returns text language sql stable parallel safe as $$
  select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email', '')
$$;
create or replace function auth.jwt() returns jsonb language sql stable parallel safe as $$
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb
$$;
alter function auth.uid() owner to {system};
alter function auth.role() owner to {system};
alter function auth.email() owner to {system};
alter function auth.jwt() owner to {system};

-- Migrations of the app's own schema, recorded by the owner's login beside the data.
create schema if not exists ichibase;
revoke all on schema ichibase from public;
grant usage on schema ichibase to {owner};
create table if not exists ichibase.migrations (
  name text primary key,
  checksum text not null,
  applied_at timestamptz not null default now()
);
grant select, insert on ichibase.migrations to {owner};
