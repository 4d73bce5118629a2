-- Clusters, projects, keys and settings of a node. A project lives on one cluster and may be moved
-- to another, so every address is built from the cluster's row when it is read.

create table clusters (
  id text primary key,
  kind text not null check (kind in ('embedded', 'external')),
  host text not null,
  port int not null,
  socket_dir text,
  options jsonb not null default '{}',
  changed_at timestamptz not null default now()
);

create table owners (
  id uuid primary key default gen_random_uuid(),
  name text not null unique,
  created_at timestamptz not null default now()
);

create table projects (
  id text primary key,
  slug text not null unique,
  owner_id uuid not null references owners,
  cluster_id text not null references clusters,
  flavor text not null check (flavor in ('postgres', 'mongo', 'both')),
  tier text not null,
  state text not null check (state in ('creating', 'active', 'deleting')),
  database text not null unique,
  owner_password text not null,
  authenticator_password text not null,
  system_password text not null,
  storage_secret text not null,
  anon_key text not null,
  service_key text not null,
  mongo_url text,
  revision bigint not null default 1,
  created_at timestamptz not null default now(),
  changed_at timestamptz not null default now()
);

create table project_keys (
  project_id text not null references projects on delete cascade,
  kid text not null,
  algorithm text not null check (algorithm in ('HS256', 'RS256', 'ES256', 'EdDSA')),
  secret text not null,
  current boolean not null,
  created_at timestamptz not null default now(),
  primary key (project_id, kid)
);
create unique index one_current_key on project_keys (project_id) where current;

create table project_settings (
  project_id text not null references projects on delete cascade,
  section text not null,
  value jsonb not null check (jsonb_typeof(value) = 'object'),
  changed_at timestamptz not null default now(),
  primary key (project_id, section)
);

create table audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  actor text not null,
  action text not null,
  project text,
  detail jsonb not null default '{}'
);
create index audit_by_project on audit (project, id);

-- Every change of a project, its keys or its settings raises its revision and is told to all
-- workers once the transaction commits.
create function raise_revision() returns trigger language plpgsql as $$
begin
  new.revision := old.revision + 1;
  new.changed_at := now();
  return new;
end $$;

create function announce_project() returns trigger language plpgsql as $$
declare
  changed projects := case when tg_op = 'DELETE' then old else new end;
begin
  perform pg_notify('ichibase_bus', json_build_object('topic', 'project', 'payload',
    json_build_object('slug', changed.slug, 'revision', changed.revision))::text);
  return null;
end $$;

create function touch_project() returns trigger language plpgsql as $$
begin
  update projects set changed_at = now()
    where id = case when tg_op = 'DELETE' then old.project_id else new.project_id end;
  return null;
end $$;

create trigger raise_revision before update on projects
  for each row execute function raise_revision();
create trigger announce_project after insert or update or delete on projects
  for each row execute function announce_project();
create trigger touch_project after insert or update or delete on project_settings
  for each row execute function touch_project();
create trigger touch_project after update or delete on project_keys
  for each row execute function touch_project();
