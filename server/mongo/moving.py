"""Moves documents out of the one server that all projects of a node shared in earlier versions.

Each database goes into a folder of its own under another name until it is whole. What was there
stays as `data.moved`. The projects' logins are made anew by the node, as those of restored ones.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.base.lifeline import die_with_parent
from server.base.ports import free_port
from server.mongo import embedded
from server.mongo.embedded import EmbeddedMongoError
from server.mongo.instances import Instances

OLD, MOVED = "data", "data.moved"
PREFIX = "moving-"
OURS = "ichi_"  # what projects' databases begin with
BATCH = 500
START_MS = 120_000


async def move(root: Path, instances: Instances, password: str, log: int) -> None:
    """Once; begun again, it goes on with the databases that are left. EmbeddedMongoError."""
    old = root / OLD
    if not old.is_dir():
        return
    for rest in instances.folders.projects.glob(f"{PREFIX}*"):
        shutil.rmtree(rest)
    if (root / "login").exists():  # else it had never been ready
        await _move_all(root, instances, password, log)
    old.rename(root / MOVED)


async def _move_all(root: Path, instances: Instances, password: str, log: int) -> None:
    from pymongo import AsyncMongoClient
    from pymongo.errors import PyMongoError

    port = free_port()
    process = _start(root, port, log)
    url = embedded.admin_url(port, password)
    source: AsyncMongoClient[Any] = AsyncMongoClient(url, serverSelectionTimeoutMS=START_MS)
    try:
        async with source:
            names = [n for n in await source.list_database_names() if n.startswith(OURS)]
            for number, name in enumerate(names, 1):
                print(f"documents: moving {name} to a server of its own ({number} of {len(names)})",
                      file=sys.stderr, flush=True)  # fmt: skip
                await _move_one(source, name, instances, password)
    except PyMongoError as error:
        raise EmbeddedMongoError(f"the documents could not be moved: {error}") from None
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, embedded.STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it had nothing to write
            process.kill()
            await asyncio.to_thread(process.wait)


def _start(root: Path, port: int, log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", embedded.PACKAGE, *embedded.arguments(root, port, cache="256M")],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root, preexec_fn=die_with_parent(),
    )  # fmt: skip


async def _move_one(source: Any, name: str, instances: Instances, password: str) -> None:
    from pymongo import AsyncMongoClient

    folders = instances.folders
    if folders.there(name):
        return
    partial = PREFIX + name
    held = await instances.hold(partial, make=True, look=True)
    try:
        target: AsyncMongoClient[Any] = AsyncMongoClient(embedded.admin_url(held.port, password))
        async with target:
            await _copy(source[name], target[name])
    finally:
        instances.release(held)
    await instances.end(partial)
    folders.of(partial).rename(folders.of(name))


async def _copy(source: Any, target: Any) -> None:
    """All collections and views of a database, with their options and indexes."""
    from bson.codec_options import CodecOptions
    from bson.raw_bson import RawBSONDocument

    raw: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
    entries = await (await source.list_collections()).to_list()
    for entry in sorted(entries, key=lambda one: one.get("type") == "view"):
        name = entry["name"]
        if name.startswith("system."):
            continue
        await target.command("create", name, **entry.get("options", {}))
        if entry.get("type") == "view":
            continue
        kept = target.get_collection(name, codec_options=raw)
        documents = source.get_collection(name, codec_options=raw).find()
        while batch := await documents.to_list(BATCH):
            await kept.insert_many(batch, ordered=False)
        indexes = [dict(one) async for one in await source[name].list_indexes()]
        indexes = [one for one in indexes if one["name"] != "_id_"]
        for one in indexes:
            one.pop("ns", None)
        if indexes:
            await target.command("createIndexes", name, indexes=indexes)
