-- Warnings given of quotas, work that takes long, and the backups there are.

create table quota_notices (
  project_id text not null references projects on delete cascade,
  quota text not null,
  stage int not null,
  at timestamptz not null default now(),
  primary key (project_id, quota)
);

create table jobs (
  id bigint generated always as identity primary key,
  kind text not null,
  project text,
  args jsonb not null default '{}',
  state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed')),
  step text not null default '',
  done bigint not null default 0,
  total bigint not null default 0,
  result jsonb,
  error text,
  actor text not null,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz
);
create index jobs_open on jobs (id) where state in ('queued', 'running');

create function announce_job() returns trigger language plpgsql as $$
begin
  perform pg_notify('ichibase_jobs', new.id::text);
  return null;
end $$;
create trigger announce_job after insert on jobs for each row execute function announce_job();

create table backups (
  id text primary key,
  project_id text not null,
  project text not null,
  kind text not null check (kind in ('nightly', 'manual')),
  state text not null check (state in ('running', 'done', 'failed')),
  encrypted boolean not null default false,
  bytes bigint not null default 0,
  manifest jsonb not null default '{}',
  error text,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  verified_at timestamptz,
  keep_until timestamptz
);
create index backups_by_project on backups (project_id, started_at);
