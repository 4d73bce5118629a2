"""The program: `ichibase rest [FILE] [--dump-config | --ready | --example]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg

from ichicore.pg.errors import PgError
from server.base.lifeline import name_process
from server.cli.output import installed
from server.node.gateway_main import REST, serve
from server.postgres import faults
from server.standalone import conffile
from server.standalone.app import CONFIG_PATH, Standalone, effective, read_config
from server.standalone.auth import Authenticator
from server.standalone.config import Config, ConfigError, dump, unknown

DRAIN_SECONDS = 15.0
PATIENCE = 2.0  # seconds
POSTGREST = "14"  # whose ways it has
SPECIAL = {"!4": "0.0.0.0", "*4": "0.0.0.0", "*": "::", "!6": "::", "*6": "::"}  # noqa: S104
EXAMPLE = """\
# The database to serve; its login should be able to switch to the roles below and nothing else.
db-uri = "postgresql://authenticator:secret@localhost:5432/app"
db-schemas = "public"
db-anon-role = "anon"

# At least 32 characters, or a JWK or JWKSet as JSON; @ names a file.
jwt-secret = "@/etc/ichibase/jwt_secret"

server-host = "127.0.0.1"
server-port = 3000
# admin-server-port = 3001
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ichibase rest",
        description="Serves one database as the postgrest program does: the same configuration "
        "file and PGRST_* environment.",
    )
    parser.add_argument("file", nargs="?", help="configuration file")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (1)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--dump-config", action="store_true", help="print the settings in force")
    group.add_argument("-e", "--example", action="store_true", help="print an example file")
    group.add_argument("--dump-schema", action="store_true", help="print what is served, as JSON")
    group.add_argument("--ready", action="store_true", help="ask a running server's admin port")
    group.add_argument("-v", "--version", action="store_true", help="print the version")
    options = parser.parse_args(arguments)
    if options.version:
        print(f"ichibase rest {installed()}, as PostgREST {POSTGREST}")
        return 0
    if options.example:
        print(EXAMPLE, end="")
        return 0
    if options.file:
        os.environ[CONFIG_PATH] = str(Path(options.file).resolve())
    try:
        config = read_config()
        Authenticator(config)
    except (ConfigError, conffile.ConfFileError) as error:
        print(f"Error in config: {error}", file=sys.stderr)
        return 1
    file = conffile.parse(Path(options.file).read_text()) if options.file else {}
    for name in unknown(file, dict(os.environ)):
        print(f"unknown setting {name} is ignored", file=sys.stderr)
    if options.dump_config:
        return _dump_config(config)
    if options.ready:
        return _ready(config)
    if options.dump_schema:
        return _dump_schema(config)
    return _serve(config, options.workers)


def _dump_config(config: Config) -> int:
    """With what the database says, when it answers."""
    try:
        config = asyncio.run(effective(config))
    except psycopg.Error as error:
        print(f"the settings in the database are not shown: {str(error).strip()}", file=sys.stderr)
    print(dump(config), end="")
    return 0


def _dump_schema(config: Config) -> int:
    async def read() -> bytes:
        server = Standalone(await effective(config))
        try:
            await server.reload_catalog()
            return server.summary() or b""
        finally:
            await server.pool.close()

    try:
        print(asyncio.run(read()).decode())
    except (ConfigError, psycopg.Error, PgError, *faults.POOL_ERRORS) as error:
        print(f"cannot read the schema: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


def _ready(config: Config) -> int:
    if config.admin_port is None:
        print("there is no admin-server-port to ask", file=sys.stderr)
        return 1
    host = "127.0.0.1" if config.admin_host in SPECIAL else config.admin_host
    host = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{host}:{config.admin_port}/ready", timeout=5):
            print("OK")
            return 0
    except (urllib.error.URLError, OSError) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1


def _serve(config: Config, workers: int) -> int:
    def forward(number: int, frame: object) -> None:
        """The reload signals are for the workers."""
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGUSR1, forward)
    signal.signal(signal.SIGUSR2, forward)
    socket_path = Path(config.unix_socket) if config.unix_socket else None
    host = _address(config.host)
    try:
        if socket_path is None:
            _check(host, config.port)
        else:
            _claim(socket_path)
        if config.admin_port is not None:
            _check(_address(config.admin_host), config.admin_port)
    except ConfigError as error:
        print(f"Error in config: {error}", file=sys.stderr)
        return 1
    where = config.unix_socket or f"{host}:{config.port}"
    print(f"listening on {where}", file=sys.stderr, flush=True)
    name_process("ichibase-rest")
    try:
        serve(
            REST, host, config.port, workers, DRAIN_SECONDS, socket=socket_path,
            socket_mode=config.unix_socket_mode if socket_path else None,
        )  # fmt: skip
    finally:
        if socket_path is not None:
            socket_path.unlink(missing_ok=True)
    return 0


def _address(host: str) -> str:
    """The address that one of the names for all of them stands for."""
    return SPECIAL.get(host, host)


def _claim(path: Path) -> None:
    """Removes the socket that a program which was killed has left. ConfigError when another one
    listens on it, or none can be made."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot make a socket in {path.parent}")
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror}") from None
        else:
            raise ConfigError(f"cannot listen on {path}: another program does")


def _check(host: str, port: int) -> None:
    """ConfigError when it cannot be listened on. A program that was killed may still be letting go
    of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_server((host, port), family=family):
                return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None
        time.sleep(0.1)


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


if __name__ == "__main__":
    sys.exit(main())
