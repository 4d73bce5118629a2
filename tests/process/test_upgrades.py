"""A new version on a node with projects of an older one: it answers at once, brings them up to date
while it serves, goes on where it was killed, and leaves aside what cannot be upgraded."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from server.control.records import VERSION
from tests.process.running import RunningNode, wait_until

NAMES = ("first", "second", "third", "fourth")

# Holds up whoever changes the schema, as long as a file is there.
HOLD = """
create or replace function public.hold() returns event_trigger language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
begin
  while (select size from pg_stat_file('{path}', true)) is not null loop
    perform pg_sleep(0.1);
  end loop;
end $$;
create event trigger hold on ddl_command_start execute function public.hold();
"""


class Upgraded(RunningNode):
    """keys: service keys by name."""

    def api(self, path, method="GET", body=None):
        token = (self.data_dir / "secrets" / "admin_token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin_port}/admin/v1/projects{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {token}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def create(self, name):
        self.keys[name] = self.api("", "POST", {"name": name})["service_key"]
        sql = "create table here (n int); insert into here values (1)"
        self.api(f"/{name}/sql", "POST", {"sql": sql})

    def begin(self):
        self.keys = {}
        self.start()
        with ThreadPoolExecutor(2) as two:
            list(two.map(self.create, NAMES))

    def control(self, text, *values):
        listener = json.loads((self.data_dir / "run" / "node.json").read_text())
        with psycopg.connect(listener["config"]["control_dsn"], autocommit=True) as control:
            cursor = control.execute(text, values)
            return cursor.fetchall() if cursor.description else []

    def inside(self, name, text):
        """Runs as the superuser in a project's database."""
        folder = self.data_dir / "postgres"
        database = self.control("select database from projects where slug = %s", name)[0][0]
        with psycopg.connect(
            host=str(folder / "socket"), port=self.project_port(), user="postgres",
            password=(folder / "superuser").read_text().strip(), dbname=database, autocommit=True,
        ) as session:  # fmt: skip
            cursor = session.execute(text)
            return cursor.fetchall() if cursor.description else []

    def id_of(self, name):
        return self.control("select id from projects where slug = %s", name)[0][0]

    def age(self, *names):
        """Makes them as an older program has left them."""
        for name in names:
            self.inside(
                name,
                f"""drop function if exists auth.email();
                alter default privileges for role ichi_{self.id_of(name)}_owner in schema public
                  revoke all on tables from anon""",
            )
        self.control(
            "update projects set provisioned = 1, feed_password = case slug when 'first' then '' "
            "else feed_password end where slug = any(%s)", list(names),
        )  # fmt: skip

    def ask(self, name):
        """(status, answer) of a request to a project."""
        request = urllib.request.Request(f"{self.url}/postgres/here", headers={
            "host": f"{name}.localhost", "authorization": f"Bearer {self.keys[name]}",
        })  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["code"]

    def current(self):
        """Names of those that are up to date."""
        rows = self.control(
            "select slug from projects where provisioned = %s and slug = any(%s)",
            VERSION, list(NAMES),
        )  # fmt: skip
        return {row[0] for row in rows}

    def shown(self, name):
        return self.api(f"/{name}")["state"]


@pytest.fixture(scope="module")
def node(module_folder):
    node = Upgraded(module_folder)
    node.begin()
    yield node
    node.end()


def test_projects_are_brought_up_to_date_while_the_node_serves_and_after_it_was_killed(node):
    path = node.data_dir / "postgres" / "hold"
    node.age(*NAMES, "default")
    node.inside("third", HOLD.format(path=path))
    path.touch()
    node.kill()
    node.start()  # ready, although one of them cannot be brought up to date now
    assert node.ask("second") == (200, [{"n": 1}])  # held until it was
    assert wait_until(lambda: node.current() == {"first", "second", "fourth"})
    assert node.shown("third") == "outdated"
    database = node.control("select database from projects where slug = 'third'")[0][0]
    assert wait_until(lambda: node.as_superuser(
        "select 1 from pg_stat_activity where wait_event = 'PgSleep' and xact_start is not null "
        f"and datname = '{database}'"
    ))  # fmt: skip
    node.kill()  # in the middle of it
    path.unlink()
    node.start()
    assert node.ask("third") == (200, [{"n": 1}])
    assert node.current() == set(NAMES)
    for name in (*NAMES, "default"):
        assert node.inside(name, "select auth.email()") == [(None,)]
        opened = "select from pg_default_acl where defaclacl::text ~ 'anon' and defaclobjtype = 'r'"
        assert node.inside(name, opened) == []  # what the owner has revoked stays so
    assert "bringing projects up to date 4 of them" in node.log.read_text()
    done = node.control("select project from audit where action = 'project.upgrade'")
    assert {row[0] for row in done} == {*NAMES, "default"}
    assert len(done) == len(NAMES) + 1
    assert node.control("select 1 from projects where feed_password = ''") == []


def test_a_project_that_cannot_be_upgraded_is_refused_alone(node):
    node.inside("first", "drop function auth.role(); "
                "create function auth.role() returns int language sql as 'select 1'")  # fmt: skip
    node.age("first", "second")
    assert wait_until(lambda: node.ask("first") == (503, "project_upgrade_failed"))
    assert node.ask("second") == (200, [{"n": 1}])
    assert node.shown("first") == "broken"
    assert "project first could not be brought up to date" in node.log.read_text()
    assert "cannot change return type" in node.log.read_text()
    done = node.cli("projects", "upgrade", "first", ok=False)
    assert (done.returncode, "cannot change return type" in done.stderr) == (1, True)
    failures = "select count(*) from audit where action = 'project.upgrade_failed'"
    assert node.control(failures) == [(1,)]  # the second said the same

    node.inside("first", "drop function auth.role()")
    assert "first is active" in node.cli("projects", "upgrade", "first").stdout
    assert wait_until(lambda: node.ask("first") == (200, [{"n": 1}]))
    assert node.api("/first/upgrade", "POST", {})["state"] == "active"  # nothing to do


def test_an_owners_transaction_does_not_keep_a_project_from_its_upgrade(node):
    """The owner may hold rows that describe the schema for as long as a transaction lasts."""
    dsn = node.api("/fourth")["database_url"]
    node.age("fourth")
    with psycopg.connect(dsn) as owner:
        owner.execute("alter default privileges in schema public grant select on tables to anon")
        owner.execute("grant usage on schema public to anon")
        owner.execute("alter role current_user password 'mine'")
        assert wait_until(
            lambda: node.ask("fourth") == (200, [{"n": 1}]) and "fourth" in node.current()
        )
        with pytest.raises(psycopg.OperationalError):
            owner.execute("select 1")
    psycopg.connect(dsn).close()
