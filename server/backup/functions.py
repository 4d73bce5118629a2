"""A project's functions in its backups: the version that is served of each, and the secrets.

One stream of records, as documents.py makes them: kind F is a function, kind S a secret, in
msgpack. A backup with a key has a secret's value; one without a key has it only as it lies in the
control database, sealed with the `functions_key` of the node, which no backup holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from server.backup.documents import parse, record
from server.base import migrations
from server.base.context import NodeConfig
from server.control.database import Connection, fetch
from server.functions.vault import Vault, VaultError, key_path


class Function(msgspec.Struct, frozen=True):
    """The version that was served, as schema `functions` of the control database has it."""

    name: str
    version: int
    auth: str
    outbound: list[str] | None
    code: bytes
    digest: str
    entrypoint: str
    files: list[str]
    lock: str | None
    schedule: list[str] | None = None


class Secret(msgspec.Struct, frozen=True, omit_defaults=True):
    """value: None in a backup without a key."""

    name: str
    sealed: bytes
    value: str | None = None


THERE = "select pg_catalog.to_regclass('functions.functions') is not null"
NAMES = "select name from functions.functions where project_id = $1 order by name"
SERVED = """select f.name, f.version, v.auth, v.outbound, v.code, v.digest, v.entrypoint, v.files,
    v.lock, v.schedule
  from functions.functions f join functions.versions v using (project_id, name, version)
  where f.project_id = $1 and f.name = $2"""
SECRETS = "select name, value from functions.secrets where project_id = $1 order by name"
ADD = """with made as (insert into functions.functions (project_id, name, version)
    values ($1, $2, $3)
    on conflict (project_id, name) do update set version = excluded.version, changed_at = now())
  insert into functions.versions
    (project_id, name, version, auth, outbound, code, digest, entrypoint, files, lock, schedule)
  values ($1, $2, $3, $4, $5::text[], $6, $7, $8, $9::jsonb, $10, $11::text[])
  on conflict (project_id, name, version) do nothing"""
STORE = """insert into functions.secrets (project_id, name, value) values ($1, $2, $3)
  on conflict (project_id, name) do update set value = excluded.value, changed_at = now()"""


async def any_of(control: Connection, project_id: str) -> bool:
    """Whether the project has a function or a secret."""
    if not (await fetch(control, THERE))[0][0]:
        return False
    found = await fetch(
        control,
        "select exists (select from functions.functions where project_id = $1) "
        "or exists (select from functions.secrets where project_id = $1)",
        (project_id,),
    )
    return bool(found[0][0])


async def read(
    control: Connection, data_dir: Path, project_id: str, *, opened: bool
) -> AsyncIterator[bytes]:
    """All of a project's. opened: with the values of secrets, where this node can read them."""
    vault = Vault(key_path(data_dir))
    for (name,) in await fetch(control, NAMES, (project_id,)):
        for row in await fetch(control, SERVED, (project_id, name)):
            yield record(b"F", msgspec.msgpack.encode(Function(*row)))
    for name, sealed in await fetch(control, SECRETS, (project_id,)):
        value = None
        if opened:
            try:
                value = vault.open(project_id, name, bytes(sealed))
            except VaultError:
                value = None  # it is as lost here as it will be after a restore, which says so
        yield record(b"S", msgspec.msgpack.encode(Secret(name, bytes(sealed), value)))
    yield record(b"E")


async def write(
    control: Connection, config: NodeConfig, ids: tuple[str, str], stream: AsyncIterator[bytes]
) -> tuple[int, list[str]]:
    """Gives a project what the stream has. ids: of the project that was backed up, and of this
    one. How many functions there were, and what is missing, in words."""
    before, project_id = ids
    await migrations.apply_async(config.control_dsn, ("server.functions", "functions"))
    key = key_path(config.data_dir)
    vault = Vault(key)
    count = 0
    lost: list[str] = []
    async for kind, body in parse(stream):
        if kind == b"F":
            one = msgspec.msgpack.decode(body, type=Function)
            await control.execute(
                ADD,
                (project_id, one.name, one.version, one.auth, one.outbound, one.code, one.digest,
                 one.entrypoint, msgspec.json.encode(one.files).decode(), one.lock, one.schedule),
            )  # fmt: skip
            count += 1
        elif kind == b"S":
            secret = msgspec.msgpack.decode(body, type=Secret)
            value = secret.value
            if value is None:
                try:
                    value = vault.open(before, secret.name, secret.sealed)
                except VaultError:
                    lost.append(secret.name)
                    continue
            sealed = vault.seal(project_id, secret.name, value)
            await control.execute(STORE, (project_id, secret.name, sealed))
    if not lost:
        return count, []
    return count, [
        f"secrets of functions that were stored with another key: {', '.join(lost)}; set them "
        f"anew, or put the {key.name} of the node that made the backup into {key.parent}, restart "
        "the node and restore again"
    ]
