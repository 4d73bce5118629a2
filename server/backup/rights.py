"""What a dump says of the project's logins by name: rights, default rights and policies. They are
made again for the logins of the database that is filled, whose names may be others."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from server.backup import tools
from server.backup.listing import Entry
from server.control.database import Cluster, connect

# A policy goes on over lines, and its strings may hold anything: only the last such end is the end.
POLICY = re.compile(r"^CREATE POLICY .*(?=^--\n-- PostgreSQL database dump complete$)", re.M | re.S)
# Comments and commands of psql take a line. Names and texts may go on over lines, which are no
# statements of their own whatever they look like.
PART = re.compile(r"""--.*|\\.*|"[^"]*"|'[^']*'|;|[^-\\"';]+|.""")
NAME = r"""("(?:[^"]|"")+"|[a-z_][a-z0-9_]*)"""
EXTENSION = re.compile(f"CREATE EXTENSION IF NOT EXISTS {NAME} WITH SCHEMA {NAME}")
ALONE = "select pg_catalog.set_config('search_path', '', false)"  # the dump names all schemas


class Rights:
    """file: the dump. before, after: the databases' names, with which those of their logins begin.
    warnings: gets what could not be made."""

    def __init__(
        self, cluster: Cluster, file: Path, before: str, after: str, warnings: list[str]
    ) -> None:
        self.cluster = cluster
        self.file = file
        self.before, self.after = f"{before}_", f"{after}_"
        self.warnings = warnings

    async def make(self, dsn: str, what: list[Entry]) -> None:
        """Rights and default rights, by the login of the dsn."""
        if what:
            await self._run(dsn, statements(await self._script(what)))

    async def names(self, what: list[Entry]) -> bool:
        """Whether logins are named whose names have to be changed."""
        return bool(what) and self.before != self.after and self.before in await self._script(what)

    async def policies(self, dsn: str, what: list[Entry]) -> None:
        """Policies, by the login of the dsn. Each is written by itself, to be told from others."""
        found = []
        for entry in what:
            found += POLICY.findall(await self._script([entry]))
        await self._run(dsn, found)

    async def _script(self, what: list[Entry]) -> str:
        listed = self.file.with_name("rights.list")
        listed.write_text("".join(f"{entry.line}\n" for entry in what))
        return (await tools.script(self.cluster, self.file, listed).run()).decode()

    async def _run(self, dsn: str, written: list[str]) -> None:
        async with await connect(dsn) as connection:
            await connection.execute(ALONE)
            for statement in written:
                try:
                    await connection.execute(statement.replace(self.before, self.after))
                except psycopg.OperationalError:
                    raise
                except psycopg.Error as error:
                    self.warnings.append(f"{str(error).splitlines()[0]} ({statement[:200]})")


def statements(script: str) -> list[str]:
    """The statements of a script of rights or extensions. What only psql understands is left out,
    and so is a change of the session's login."""
    found = []
    parts: list[str] = []
    for match in PART.finditer(script):
        part = match[0]
        if part == ";":
            statement = "".join(parts).strip()
            if statement.split(" ")[0] in ("GRANT", "REVOKE", "ALTER", "CREATE"):
                found.append(statement)
            parts = []
        elif not part.startswith(("--", "\\")):
            parts.append(part)
    return found


def extensions(script: str) -> list[tuple[str, str]]:
    """Extensions that a script makes, with their schemas."""
    found = [EXTENSION.fullmatch(statement) for statement in statements(script)]
    return [(_name(match[1]), _name(match[2])) for match in found if match]


def _name(written: str) -> str:
    return written[1:-1].replace('""', '"') if written.startswith('"') else written
