-- Edge functions of all projects: what is deployed, every version that is kept, and secrets.

create table functions.functions (
  project_id text not null references public.projects on delete cascade,
  name text not null,
  version int not null,
  created_at timestamptz not null default now(),
  changed_at timestamptz not null default now(),
  primary key (project_id, name)
);

-- code: one ES module with its dependencies and its source map. lock: the dependencies' exact
-- versions. outbound: hosts that it may reach, null for all public ones.
create table functions.versions (
  project_id text not null,
  name text not null,
  version int not null,
  auth text not null check (auth in ('key', 'user', 'none')),
  outbound text[],
  code bytea not null,
  digest text not null,
  entrypoint text not null,
  files jsonb not null default '[]',
  lock text,
  created_at timestamptz not null default now(),
  primary key (project_id, name, version),
  foreign key (project_id, name) references functions.functions on delete cascade
    deferrable initially deferred
);

-- value: encrypted with a key that is not in this database.
create table functions.secrets (
  project_id text not null references public.projects on delete cascade,
  name text not null,
  value bytea not null,
  changed_at timestamptz not null default now(),
  primary key (project_id, name)
);

create function functions.announce() returns trigger language plpgsql as $$
begin
  perform pg_notify('ichibase_functions',
    case when tg_op = 'DELETE' then old.project_id else new.project_id end);
  return null;
end $$;

create trigger announce after insert or update or delete on functions.functions
  for each row execute function functions.announce();
create trigger announce after insert or update or delete on functions.secrets
  for each row execute function functions.announce();
