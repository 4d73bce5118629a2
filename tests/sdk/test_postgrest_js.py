"""PostgREST's published JavaScript client works unchanged against a node."""

import shutil
import subprocess
import time
from pathlib import Path

import jwt
import pytest

from tests.process.running import RunningNode

HERE = Path(__file__).parent
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


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with the clients, as the lock file pins them."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: apt-get install npm")
    folder = tmp_path_factory.mktemp("sdk")
    for name in ("package.json", "package-lock.json", "postgrest.mjs"):
        shutil.copy(HERE / name, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder,
                   check=True, capture_output=True)  # fmt: skip
    return folder


def test_every_call_gives_what_the_client_expects(modules, tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    node = RunningNode(tmp_path)
    try:
        node.start()
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
    finally:
        node.stop()
