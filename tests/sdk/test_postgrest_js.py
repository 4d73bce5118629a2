"""PostgREST's published JavaScript client works unchanged against a node."""

import subprocess
import time

import jwt

UID = "11111111-1111-4111-8111-111111111111"
SQL = """
create table notes (id int primary key, user_id uuid not null default auth.uid(), body text,
  tags text[] not null default '{}');
alter table notes enable row level security;
create policy own on notes using (user_id = (select auth.uid()))
  with check (user_id = (select auth.uid()));
create table comments (id int primary key, note_id int references notes on delete cascade,
  text text);
create function add(a int, b int) returns int language sql immutable as 'select a + b';
create function mine() returns setof notes language sql stable as 'select * from notes';
"""


def test_every_call_gives_what_the_client_expects(modules, node):
    node.cli("sql", "default", "-c", SQL)
    project = node.project()
    now = int(time.time())
    claims = {"sub": UID, "role": "authenticated", "aud": "authenticated",
              "iss": project["url"], "iat": now, "exp": now + 600}  # fmt: skip
    token = jwt.encode(claims, project["jwt_secret"], "HS256")
    done = subprocess.run(
        ["node", "postgrest.mjs", f"{node.url}/postgres", project["anon_key"], token],
        cwd=modules, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr[-3000:]
