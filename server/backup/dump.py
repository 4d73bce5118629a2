"""`ichibase dump`: what a project's owner has made in its database, as a script of SQL.

pg_dump runs with the owner's login, which reads neither password hashes nor sessions: the schemas
of this program are left out. The script loads into another project as it is: it names no login of
this one, and what every database has already is not made again. (An archive of pg_dump holds the
settings of the database, read from a table that has those of all projects and is closed to owners.)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from server.cli.client import CommandError, reason

OURS = ("auth", "storage", "realtime", "ichibase", "information_schema", "pg_*")
SAID = 2_000  # bytes shown of what a failed pg_dump said last
PUBLIC = b"CREATE SCHEMA public;\n"
PREAMBLE = b"SET row_security = off;\n"
# A project opens its new tables to these roles, and a script says only what is open.
CLOSED = b"""
DO $$ DECLARE wanted record; BEGIN
  FOR wanted IN SELECT kind, rolname FROM pg_catalog.pg_roles,
    unnest('{TABLES, SEQUENCES, FUNCTIONS}'::text[]) kind
    WHERE rolname IN ('anon', 'authenticated', 'service_role')
  LOOP
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON %s FROM %I',
      wanted.kind, wanted.rolname);
  END LOOP;
END $$;
"""


def command(program: str, target: str) -> list[str]:
    """pg_dump with its arguments. Schemas and extensions are asked for, because a dump of
    everything has what belongs to the server in it: event triggers, publications."""
    return [
        program, "--no-password", "--no-owner", "--no-sync", "--large-objects",
        "--schema=*", *(f"--exclude-schema={name}" for name in OURS),
        "--extension=*", "--exclude-extension=plpgsql", f"--dbname={target}",
    ]  # fmt: skip


def portable(lines: Iterable[bytes], database: str) -> Iterator[bytes]:
    """A script without the names of the project's logins, which begin with that of its database.
    The rows of tables are left as they are."""
    defaults = f"ALTER DEFAULT PRIVILEGES FOR ROLE {database}_owner ".encode()
    system = f" TO {database}_system;\n".encode()
    rows = closed = False
    for line in lines:
        if line == PREAMBLE and not closed:
            closed = True
            yield line + CLOSED
            continue
        if rows:
            rows = line != b"\\.\n"
        elif line.startswith(b"COPY ") and line.endswith(b" FROM stdin;\n"):
            rows = True
        elif line == PUBLIC:
            yield PUBLIC.replace(b"SCHEMA", b"SCHEMA IF NOT EXISTS")
            continue
        elif line.startswith(defaults):
            yield b"ALTER DEFAULT PRIVILEGES " + line[len(defaults) :]
            continue
        elif line.startswith(b"GRANT ") and line.endswith(system):
            continue
        yield line


def _write(url: str, out: IO[bytes]) -> None:
    """CommandError with what pg_dump said."""
    # Other commands do not wait for what this one needs.
    from psycopg.conninfo import conninfo_to_dict

    from server.backup import tools

    parts = conninfo_to_dict(url)
    target, environment = tools.login(url)
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads meanwhile could fill up
        try:
            program = tools.program("pg_dump", parts)
            running = subprocess.Popen(
                command(program, target), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=said,
            )  # fmt: skip
        except (tools.ToolError, OSError) as error:
            raise CommandError(str(error)) from None
        with running:
            assert running.stdout is not None
            try:
                out.writelines(portable(running.stdout, str(parts["dbname"])))
                out.flush()
            except OSError:
                running.kill()
                raise
        if running.returncode:
            said.seek(max(0, said.seek(0, os.SEEK_END) - SAID))
            text = said.read().decode("utf-8", "replace").strip()
            raise CommandError(f"pg_dump failed: {text}")


def run(options: argparse.Namespace) -> int:
    from server.cli.main import client

    project = client(options).call("GET", f"/admin/v1/projects/{quote(options.project, safe='')}")
    url = project["database_url"]
    if url is None:
        raise CommandError(f'The project "{options.project}" has no tables of its own.')
    if options.file is None:
        try:
            _write(url, sys.stdout.buffer)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            raise CommandError(f"cannot write: {reason(error)}") from None
        return 0
    path = Path(options.file)
    partial = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _write(url, file)
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {reason(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return 0


def register(commands: Any) -> None:
    text = "Write what a project's owner has made in its database, as SQL."
    one = commands.add_parser("dump", help=text, description=text)
    one.add_argument("project")
    one.add_argument("-f", "--file", help="where to (standard output)")
    one.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    one.set_defaults(run=run)
