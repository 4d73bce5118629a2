-- The history keeps rules as they were written: jsonb forgets the order of members.

alter table rules_history add column text text;

create or replace function keep_rules() returns trigger language plpgsql as $$
declare
  next bigint;
begin
  if tg_op = 'UPDATE' and new.value -> 'rules_text' is not distinct from old.value -> 'rules_text'
    and new.value -> 'rules' is not distinct from old.value -> 'rules' then
    return null;
  end if;
  select coalesce(max(revision), 0) + 1 into next from rules_history
    where project_id = new.project_id;
  insert into rules_history (project_id, revision, rules, text)
    values (new.project_id, next, nullif(new.value -> 'rules', 'null'), new.value ->> 'rules_text');
  delete from rules_history where project_id = new.project_id and revision <= next - 100;
  return null;
end $$;
