"""The process of the public listener: Granian with the node's workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from server.base.context import NodeConfig

NODE_FILE = "ICHIBASE_NODE_FILE"


class Listener(msgspec.Struct, frozen=True):
    """What the node writes for its children: where to listen and the workers' configuration."""

    host: str
    port: int
    workers: int
    admin_host: str
    admin_port: int
    config: NodeConfig


def read_listener() -> Listener:
    """What the node wrote into the file that NODE_FILE names."""
    text = Path(os.environ[NODE_FILE]).read_bytes()
    return msgspec.json.decode(text, type=Listener, dec_hook=lambda kind, value: kind(value))


def written(listener: Listener) -> str:
    """The text that read_listener understands."""
    return msgspec.json.encode(listener, enc_hook=str).decode()


def serve(target: str, host: str, port: int, workers: int) -> None:
    """Runs an RSGI application until SIGTERM, which lets requests in flight finish."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, TaskImpl

    Granian(
        target,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        workers=workers,
        loop=Loops.uvloop,
        task_impl=TaskImpl.asyncio,
        http=HTTPModes.http1,
        runtime_mode=RuntimeModes.st,
        websockets=True,
        backlog=4096,
        log_enabled=False,
        respawn_failed_workers=True,
        workers_kill_timeout=15,
    ).serve()


def main() -> int:
    listener = read_listener()
    serve("server.app:application", listener.host, listener.port, listener.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
