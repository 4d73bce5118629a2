-- What projects use, and numbers of a tier replaced for one project. A row of the day -infinity
-- says how much there is now; every other counts what happened on that day (UTC).

alter table projects add column limits jsonb not null default '{}'
  check (jsonb_typeof(limits) = 'object');

create table usage (
  project_id text not null references projects on delete cascade,
  day date not null,
  counter text not null,
  value bigint not null,
  changed_at timestamptz not null default clock_timestamp(),
  primary key (project_id, day, counter)
);
create index usage_levels on usage (changed_at) where day = '-infinity';

create table usage_writers (
  id text primary key,
  batch bigint not null,
  at timestamptz not null default now()
);
