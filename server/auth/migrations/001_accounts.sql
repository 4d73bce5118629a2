-- Users, the identities they sign in with, their sessions, and the record of what happened.

create table auth.users (
  id uuid primary key default gen_random_uuid(),
  email text unique,
  email_verified_at timestamptz,
  phone text unique,
  phone_verified_at timestamptz,
  password_hash text,
  metadata jsonb not null default '{}',
  app_metadata jsonb not null default '{}',
  disabled_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  last_sign_in_at timestamptz,
  constraint email_is_lower_case check (email = lower(email) and length(email) <= 254),
  constraint metadata_is_object check (jsonb_typeof(metadata) = 'object'),
  constraint app_metadata_is_object check (jsonb_typeof(app_metadata) = 'object')
) with (fillfactor = 85);

create index users_created_at on auth.users (created_at desc, id);

create table auth.identities (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users on delete cascade,
  provider text not null,
  subject text not null,
  email text,
  data jsonb not null default '{}',
  created_at timestamptz not null default now(),
  last_used_at timestamptz not null default now(),
  unique (provider, subject)
);

create index identities_user on auth.identities (user_id);

-- One row per sign-in. Only hashes of refresh tokens are stored. `salt` turned the token of
-- previous_hash into the one of token_hash, so that within the grace period the same successor can
-- be derived again from the token that the client presents; alone it is worth nothing.
-- No index covers a column that a refresh writes: the update stays within its page.
create table auth.sessions (
  id uuid primary key,
  user_id uuid not null references auth.users on delete cascade,
  token_hash bytea not null,
  previous_hash bytea,
  salt bytea,
  family_key bytea not null,
  rotated_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  last_used_at timestamptz not null default now(),
  expires_at timestamptz not null,
  ends_at timestamptz not null,
  revoked_at timestamptz,
  revoke_reason text,
  methods text[] not null,
  impersonated_by text,
  user_agent text,
  ip text,
  window_at timestamptz not null default now(),
  window_count integer not null default 0
) with (fillfactor = 70);

create index sessions_user on auth.sessions (user_id);
create index sessions_ends_at on auth.sessions (ends_at);

-- No foreign key: the record outlives the user.
create table auth.audit_events (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  event text not null,
  actor text not null,
  user_id uuid,
  session_id uuid,
  ip text,
  user_agent text,
  detail jsonb not null default '{}'
);

create index audit_events_at on auth.audit_events (at);
create index audit_events_user on auth.audit_events (user_id, id desc);

-- The developer's login may reference users and read what is not a secret.
do $$
declare
  developer text := (
    select pg_get_userbyid(datdba) from pg_database where datname = current_database()
  );
begin
  execute format('grant usage on schema auth to %I', developer);
  execute format('grant references (id) on auth.users to %I', developer);
  execute format(
    'grant select (id, email, email_verified_at, phone, phone_verified_at, metadata,'
    ' app_metadata, disabled_at, created_at, updated_at, last_sign_in_at) on auth.users to %I',
    developer
  );
end
$$;
