-- States of projects besides being made: asleep, suspended, deleted but kept for a while; owners
-- with a bound of their own; and what a change of state still has to do to the cluster.

alter table owners
  add column email text,
  add column projects int check (projects >= 0),
  add column suspended boolean not null default false,
  add column changed_at timestamptz not null default now();

alter table projects
  drop constraint projects_state_check,
  add constraint projects_state_check check (state in
    ('creating', 'active', 'sleeping', 'suspended', 'deleting', 'removing')),
  add column read_only boolean not null default false,
  add column reason text,
  add column state_at timestamptz not null default now(),
  add column delete_at timestamptz;
-- What was being deleted before this version was being removed at once.
update projects set state = 'removing' where state = 'deleting';
create index projects_by_owner on projects (owner_id);

create table duties (
  project_id text primary key references projects on delete cascade,
  since timestamptz not null default now()
);
