"""The process that runs the projects' document servers.

`python -m server.mongo.manager FOLDER SOCKET PORT PASSWORD_FILE [MOST]` makes the template once,
loads the program once, and then starts a server for each project that somebody uses.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from server.base import processor, unix
from server.base.lifeline import name_process
from server.mongo import embedded, moving
from server.mongo.desk import Desk
from server.mongo.embedded import EmbeddedMongoError
from server.mongo.folders import Folders, rotate
from server.mongo.front import Front
from server.mongo.instances import Instances
from server.mongo.zygote import ZygoteError

NAME = "ichibase-docs"


async def run(root: Path, path: Path, port: int, password: str, most: int) -> None:
    folders = Folders(root)
    folders.tidy()
    rotate(root / "mongo.log")
    log = os.open(root / "mongo.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    instances = Instances(folders, log, most)
    async with asyncio.TaskGroup() as both:
        both.create_task(asyncio.to_thread(embedded.prepare, folders.template, password, log))
        both.create_task(instances.start())
    await moving.move(root, instances, password, log)
    front = Front(instances, (folders.template / embedded.HELLO_FILE).read_bytes())
    desk = Desk(instances)
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    await front.start(listener)
    await desk.start(unix.listen(path))
    await stop.wait()
    front.stop()
    desk.stop()
    await instances.stop()


def main(arguments: list[str]) -> int:
    name_process(NAME)
    processor.turns(0, processor.MIDDLE)
    password = Path(arguments[3]).read_text().strip()
    most = int(arguments[4]) if len(arguments) > 4 else 0
    status = 0
    try:
        uvloop.run(run(Path(arguments[0]), Path(arguments[1]), int(arguments[2]), password, most))
    except* (EmbeddedMongoError, ZygoteError, OSError) as errors:
        for error in errors.exceptions:
            print(f"documents: {error}", file=sys.stderr, flush=True)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
