"""The process of the public listener: Granian with the node's workers."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ichicore.http import lenient
from server.base import unix
from server.base.changes import connections_path
from server.base.context import NodeConfig
from server.base.lifeline import bind_to_parent, name_process, take_turns
from server.base.serving import register

NODE_FILE = "ICHIBASE_NODE_FILE"
# Bytes that a connection may hold of what it reads or writes; a request's line and headers fit.
BUFFER = 208 << 10
NODE = "server.app:application"
REST = "server.standalone.app:application"
# Below which paths requests may go a short way.
SHORT_WAYS = {NODE: ("/postgres/", "/mongo/v1/"), REST: ("/",)}
PROCESS_NAMES = {NODE: "ichibase-worker", REST: "ichibase-rest"}


class Listener(msgspec.Struct, frozen=True):
    """What the node writes for its children: where to listen and the workers' configuration."""

    host: str
    port: int
    workers: int
    admin_host: str
    admin_port: int
    drain_seconds: float
    config: NodeConfig


def read_listener() -> Listener:
    """What the node wrote into the file that NODE_FILE names."""
    text = Path(os.environ[NODE_FILE]).read_bytes()
    return msgspec.json.decode(text, type=Listener, dec_hook=lambda kind, value: kind(value))


def written(listener: Listener) -> str:
    """The text that read_listener understands."""
    return msgspec.json.encode(listener, enc_hook=str).decode()


def serve(
    target: str, host: str, port: int, workers: int, drain_seconds: float, *,
    socket: Path | None = None, socket_mode: int | None = None,
) -> None:  # fmt: skip
    """Runs an RSGI application until SIGTERM, which lets requests in flight finish for at most
    drain_seconds. Should this process be killed, the kernel kills its workers. socket: a unix
    socket to listen on instead of host and port."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, TaskImpl
    from granian.http import HTTP1Settings

    register()
    Granian(
        target,
        address=host,
        port=port,
        uds=socket,
        uds_permissions=socket_mode,
        interface=Interfaces.RSGI,
        workers=workers,
        loop=Loops.uvloop,
        task_impl=TaskImpl.asyncio,  # the other one leaks what a handler awaits
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=BUFFER),
        runtime_mode=RuntimeModes.mt,
        websockets=target != REST,
        backlog=4096,
        log_enabled=False,
        respawn_failed_workers=True,
        workers_kill_timeout=max(1, round(drain_seconds)),
    ).serve(target_loader=partial(_load, target, os.getpid()), wrap_loader=False)


def _load(target: str, main: int) -> Any:
    """Runs in each worker, before the application starts."""
    bind_to_parent(main)
    take_turns()
    name_process(PROCESS_NAMES.get(target, "ichibase-admin"))
    if target == NODE:
        realtime = connections_path(read_listener().config.data_dir)
        if realtime.parent.is_dir():  # else no realtime process belongs to this listener
            lenient.hand_over(unix.lasting_address(realtime))
    if lenient.install("_granian"):
        for path in SHORT_WAYS.get(target, ()):
            lenient.keep_bodies(path)
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def main() -> int:
    name_process("ichibase-http")
    listener = read_listener()
    serve(
        NODE, listener.host, listener.port, listener.workers,
        listener.drain_seconds,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
