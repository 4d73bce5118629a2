"""pg_dump and pg_restore: the embedded ones, or those of the system for a server outside."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.base.lifeline import die_with_parent
from server.control.database import Cluster
from server.node.embedded_pg import binaries

READ = 1 << 18
SAID = 4_000  # bytes kept of what a tool says


class ToolError(RuntimeError):
    """A tool failed; the text is what it said."""

    code = "database_failed"


def program(name: str, options: Mapping[str, Any]) -> str:
    """Path of a tool that fits the server which is reached with these options: the embedded ones
    know every one up to their own version, but no TLS."""
    if options.get("sslmode") in ("require", "verify-ca", "verify-full"):
        found = shutil.which(name)
        if found is None:
            raise ToolError(f"{name} is missing: install the client tools of the server's version")
        return found
    return str(binaries() / name)


def login(dsn: str) -> tuple[str, dict[str, str]]:
    """A connection string without its password, and the environment that has it: arguments can
    be read by every account of the machine."""
    parts: dict[str, Any] = {k: v for k, v in conninfo_to_dict(dsn).items() if v is not None}
    password = parts.pop("password", None)
    kept = ("PATH", "LANG", "LC_ALL", "HOME", "LD_LIBRARY_PATH", "PGSSLROOTCERT", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    environment["PGAPPNAME"] = "ichibase backup"
    given = parts.get("options", "")
    parts["options"] = f"{given} -c statement_timeout=0 -c lock_timeout=0".lstrip()
    return make_conninfo("", **parts), environment


class Tool:
    """One run of a tool, ended with its caller."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.command = command
        self.environment = environment
        self.said = b""

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What it writes; ToolError when it fails."""
        process = await asyncio.create_subprocess_exec(
            *self.command, env=self.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        listening = asyncio.create_task(self._listen(process.stderr))
        try:
            while piece := await process.stdout.read(READ):
                yield piece
            code = await process.wait()
            await listening
        finally:
            if process.returncode is None:
                process.kill()
                # Its end is noticed only once what it wrote has been read.
                while await process.stdout.read(READ):
                    pass
                await process.wait()
            listening.cancel()
            process._transport.close()  # type: ignore[attr-defined]  # with what was not read
        if code != 0:
            raise ToolError(self.said.decode("utf-8", "replace").strip()[-SAID:] or f"exit {code}")

    async def run(self) -> bytes:
        """All that it writes."""
        return b"".join([piece async for piece in self.output()])

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(READ):
            self.said = (self.said + piece)[-SAID:]


def dump(cluster: Cluster, dsn: str, snapshot: str) -> Tool:
    """pg_dump in the custom format, as the named snapshot sees the database."""
    target, environment = login(dsn)
    command = [
        program("pg_dump", cluster.options),
        "-Fc",
        "--no-password",
        "--lock-wait-timeout=60s",
    ]
    command += [f"--snapshot={snapshot}", "--no-sync", "-Z", "gzip:4", f"--dbname={target}"]
    return Tool(command, environment)


def restore(
    cluster: Cluster, dsn: str, file: Path, listed: Path, *options: str, strict: bool = True
) -> Tool:
    """pg_restore of the entries in the file `listed`, owned by the login of the dsn. strict: the
    first error ends it; otherwise it says in the end how many there were."""
    target, environment = login(dsn)
    command = [program("pg_restore", cluster.options), "--no-owner", "--no-password"]
    command += ["--exit-on-error"] if strict else []
    command += [f"--use-list={listed}", *options, f"--dbname={target}", str(file)]
    return Tool(command, environment)


def contents(cluster: Cluster, file: Path, *options: str) -> Tool:
    """The list of an archive's entries."""
    command = [program("pg_restore", cluster.options), "--list", *options, str(file)]
    return Tool(command, login("")[1])


def script(cluster: Cluster, file: Path, listed: Path) -> Tool:
    """The SQL of the entries in the file `listed`."""
    command = [
        program("pg_restore", cluster.options),
        "--no-owner",
        f"--use-list={listed}",
        "-f",
        "-",
    ]
    return Tool([*command, str(file)], login("")[1])
