"""The process of the node that serves all WebSockets and delivers all changes and messages."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import uvloop

from server.base import garbage, unix
from server.base.bus import PgBus
from server.base.changes import connections_path, socket_path
from server.base.context import TOKEN_REVOKED, NodeConfig
from server.base.directory import ControlDirectory, Source
from server.base.events import Events, Failed, Noted
from server.base.hosts import HostRule
from server.base.lifeline import name_process
from server.base.logs import Logger
from server.base.metrics import Metrics, MetricsFile
from server.base.revocations import Revocations
from server.base.usage import Usage
from server.control import records
from server.node.gateway_main import read_listener
from server.realtime import control
from server.realtime.child import LISTEN
from server.realtime.feeds import Feeds, node_id
from server.realtime.nodes import Nodes
from server.realtime.process import Process, listening
from server.realtime.relay import socket_for_workers
from server.realtime.streams import DocumentFeeds

START_WAIT = 10.0  # seconds for the projects to be read before it answers without them
METRICS_EVERY = 1.0  # seconds


async def serve(config: NodeConfig, host: str, port: int) -> None:
    """Runs until SIGTERM or SIGINT."""
    events = Events()
    events.listeners.append(Logger(config.access_log, config.log_format))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    bus = PgBus(config.control_dsn, events)
    source = Source(
        records.SELECT_ACTIVE,
        records.SELECT_ONE,
        lambda text: records.decode(text, config),
        records.TOPIC,
        records.WAKE,
    )
    directory = ControlDirectory(config.control_dsn, source, bus, events)
    usage = Usage(config.control_dsn, events)
    hosts = HostRule(config.base_domain, config.default_project, config.public_url, config.cdn_url)
    process = Process(
        directory, hosts, events, usage,
        lambda: directory.ready.is_set() and revocations.ready.is_set(),
    )  # fmt: skip
    revocations = Revocations(config.control_dsn, bus, process.revoked, events)
    node = node_id(config.data_dir)
    feeds = Feeds(process, node, config.control_dsn, directory.all, events)
    process.feeds = feeds
    process.connected = bus.connected.is_set
    process.streams = DocumentFeeds(process, events)
    process.nodes = Nodes(process, node, config.control_dsn, events)
    process.wake_project = directory.wake
    process.look_for = directory.look
    garbage.Sweeper(directory)
    bus.subscribe(TOKEN_REVOKED, process.revoked)
    metrics = Metrics()
    metrics.gauges += [process.gauges, feeds.gauges, process.nodes.gauges]
    file = MetricsFile(metrics, config.metrics_dir)

    bus.start()
    directory.start()
    usage.start()
    revocations.start()
    process.start()
    process.nodes.start()
    feeds.start()
    workers = await control.serve(process, events, socket_path(config.data_dir))
    process.listen(unix.listen(socket_for_workers(config.data_dir)))
    handed_over = unix.listen(connections_path(config.data_dir), kind=socket.SOCK_SEQPACKET)
    process.listen_to_workers(handed_over)
    try:
        async with asyncio.timeout(START_WAIT):
            await directory.ready.wait()
            await revocations.ready.wait()
    except TimeoutError:
        events.emit(Noted("realtime starts without projects", "the control database is away"))
    process.listen(listening(host, port))
    garbage.settle()
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), METRICS_EVERY)
        except TimeoutError:
            _write(file, events)
    workers.close()
    await process.stop()
    await revocations.stop()
    await directory.stop()
    await usage.stop()
    await bus.stop()
    _write(file, events)


def _write(file: MetricsFile, events: Events) -> None:
    try:
        file.write()
    except OSError as error:
        events.emit(Failed("writing the metrics", str(error)))


def main() -> int:
    name_process("ichibase-rt")
    host, _, port = os.environ[LISTEN].rpartition(" ")
    uvloop.run(serve(read_listener().config, host, int(port)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
