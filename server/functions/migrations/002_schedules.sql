-- When a function runs by itself, and when it did so last.

alter table functions.versions add column schedule text[];

-- due: of the newest run that a node has taken on. status: of its answer, null while it runs and
-- 0 when there was none.
create table functions.runs (
  project_id text not null,
  name text not null,
  due timestamptz not null,
  status int,
  primary key (project_id, name),
  foreign key (project_id, name) references functions.functions on delete cascade
);
