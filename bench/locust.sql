-- The tables of bench/locustfile.py: ichibase sql default -f bench/locust.sql
create table if not exists todos (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  title text not null,
  done boolean not null default false,
  created_at timestamptz not null default now()
);
create index if not exists todos_by_user on todos (user_id, id desc);
alter table todos enable row level security;
drop policy if exists own_todos on todos;
create policy own_todos on todos to authenticated
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
