-- Access rules that were in force, so that a mistake can be taken back. The newest 100 of a
-- project are kept.

create table rules_history (
  project_id text not null references projects on delete cascade,
  revision bigint not null,
  rules jsonb,
  changed_at timestamptz not null default clock_timestamp(),
  primary key (project_id, revision)
);

create function keep_rules() returns trigger language plpgsql as $$
declare
  next bigint;
begin
  if tg_op = 'UPDATE' and new.value -> 'rules' is not distinct from old.value -> 'rules' then
    return null;
  end if;
  select coalesce(max(revision), 0) + 1 into next from rules_history
    where project_id = new.project_id;
  insert into rules_history (project_id, revision, rules)
    values (new.project_id, next, nullif(new.value -> 'rules', 'null'));
  delete from rules_history where project_id = new.project_id and revision <= next - 100;
  return null;
end $$;

create trigger keep_rules after insert or update on project_settings
  for each row when (new.section = 'mongo') execute function keep_rules();
