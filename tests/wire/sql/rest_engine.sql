create schema api;
create table api.clients (id int primary key, name text not null);
create table api.projects (
  id int primary key, name text, client_id int references api.clients deferrable,
  info jsonb default '{"a": 1}'
);
insert into api.clients values (1, 'Ada'), (2, 'Bob');
insert into api.projects values (1, 'one', 1), (2, 'two', 1), (3, 'three', null);
create table api.secret (id int, owner text default current_setting('request.jwt.claims')::json->>'sub');
alter table api.secret enable row level security;
create policy own on api.secret using (owner = current_setting('request.jwt.claims')::json->>'sub');
insert into api.secret values (1, 'u1'), (2, 'u2');
create table api.dropbox (id int primary key, note text);
create function api.add(a int, b int default 10) returns int language sql immutable as 'select a + b';
create function api.everyone() returns setof api.clients language sql stable as
  'select * from api.clients order by id';
create function api.nothing() returns void language sql as 'select';
create function api.whole(json) returns json language sql as 'select $1';
create function api.answer(status text, headers text) returns int language plpgsql as $$
begin
  perform set_config('response.status', status, true), set_config('response.headers', headers, true);
  return 1;
end $$;
create function api.break_later() returns void language plpgsql as $$
begin
  set constraints all deferred;
  update api.projects set client_id = 99 where id = 1;
end $$;
create function api.complain() returns void language plpgsql as $$
begin raise sqlstate 'PT402' using message = 'pay', hint = 'soon'; end $$;
create function api.nap() returns void language sql as 'select pg_sleep(5)';
create function api.facts() returns json language sql as $$
  select json_build_object('role', current_user, 'method', current_setting('request.method'),
    'header', current_setting('request.headers')::json->>'x-test',
    'cookie', current_setting('request.cookies')::json->>'c',
    'app', current_setting('app.settings.name'), 'isolation', current_setting('transaction_isolation'))
$$;
create function api.wide() returns table (id int, filler text) language sql stable as
  $$ select n, repeat('x', 2000) from generate_series(1, 3000) n $$;
create function api.leak() returns text language sql as
  $$ select coalesce(current_setting('response.headers', true), '') $$;
create function api.mark_session(text) returns void language sql as
  $$ select set_config('app.mark', $1, false), set_config('timezone', 'Asia/Tokyo', false) $$;
create function api.session_mark() returns text language sql stable as
  $$ select coalesce(current_setting('app.mark', true), '') || current_setting('timezone') $$;
create function api.set_deep() returns text language plpgsql as $$
begin perform set_config('app.mark', 'left behind', false); return 'deep'; end $$;
create function api.set_it() returns text language sql as $$ select api.set_deep() $$;
create table api.diary (id int, note text default api.set_it());
create table api.checked (id int check (api.set_it() = 'deep'));
create table api.watched (id int primary key);
insert into api.watched values (1);
alter table api.watched enable row level security;
create policy watch on api.watched using (api.set_it() is not null);
create table api.asks (id int references api.watched);
insert into api.asks values (1);
create table api.indirect (id int);
insert into api.indirect values (1);
alter table api.indirect enable row level security;
create policy ask on api.indirect using (exists (select from api.watched w where w.id = indirect.id));
create function api.shout(api.clients) returns text language plpgsql as $$
begin perform set_config('app.mark', 'shouted', false); return upper($1.name); end $$;
grant select, insert on api.diary, api.checked, api.watched, api.asks, api.indirect
  to rest_anon, rest_user;
create table api.late (id int);
create function api.look_late() returns trigger language plpgsql as $$ begin
  if current_setting('request.jwt.claims') = '' then raise 'without claims'; end if; return new;
end $$;
create constraint trigger look_late after insert on api.late deferrable initially deferred
  for each row execute function api.look_late();
grant insert on api.late to rest_anon;
grant usage on schema api to rest_anon, rest_user;
grant select, insert, update, delete on api.clients, api.projects, api.secret to rest_anon, rest_user;
grant insert on api.dropbox to rest_anon;
