"""The functions process of a node."""

from __future__ import annotations

import asyncio
import signal
import sys

from server.base.functions import socket_path
from server.base.lifeline import name_process
from server.base.listen import Listener as Listen
from server.base.project import Project
from server.control import records
from server.functions.build import Builder
from server.functions.confine import ConfineError
from server.functions.journal import say
from server.functions.manager import Manager
from server.functions.rpc import Rpc
from server.functions.schedules import Scheduler
from server.functions.store import Scheduled, Store
from server.functions.vault import Vault, key_path
from server.node.gateway_main import Listener, read_listener

CHANNEL = "ichibase_functions"


async def run(listener: Listener) -> None:
    """Serves until SIGTERM."""
    config = listener.config
    store = Store(config.control_dsn, Vault(key_path(config.data_dir)))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104
    manager = Manager(config.data_dir, store, (host, listener.port))
    builder = Builder(manager.confinement, config.data_dir / "functions" / "cache")
    builder.clear()

    async def find(slug: str) -> Project | None:
        rows = await store.run(records.SELECT_ONE, (slug,))
        return records.decode(rows[0][0], config) if rows else None

    def tell(function: Scheduled, level: str, text: str) -> None:
        manager.journal.about(function.project_id, function.name, function.version, level, text)

    scheduler = Scheduler(store, (host, listener.port), find, tell)
    rpc = Rpc(manager, builder, scheduler.token)
    rpc.schedules_changed = scheduler.changed
    await manager.start()
    await rpc.start(socket_path(config.data_dir))
    scheduler.start()
    told = Listen(
        config.control_dsn, CHANNEL, "ichibase functions", rpc.noticed, lambda: None,
        lambda reason: say(f"lost the control database: {reason}"),
    )  # fmt: skip
    told.start()
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    await ending.wait()
    await told.stop()
    await scheduler.stop()
    rpc.close()
    await manager.stop()


def main() -> int:
    name_process("ichibase-fn")
    try:
        asyncio.run(run(read_listener()))
    except ConfineError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
