"""The manager of the document servers as a process of the node."""

from __future__ import annotations

import os
import sys

from server.base.context import NodeConfig
from server.mongo import address, embedded
from server.mongo.address import AddressError, DocumentServer
from server.mongo.lease import SOCKET
from server.node.children import Child
from server.node.files import DataDir
from server.node.ports import kept_port
from server.node.settings import NodeSettings, SettingsError

PASSWORD = "mongo_password"  # noqa: S105 - the name of a file


def prepare(settings: NodeSettings, data: DataDir) -> DocumentServer | None:
    """The server that this node's documents are kept in, told to the node's processes by a file.
    None when none is set and the embedded one is not installed. SettingsError for a bad URL."""
    path = data.run / address.FILE
    if settings.mongo_url:
        try:
            there = address.without_login(settings.mongo_url)
        except AddressError as error:
            raise SettingsError(f"mongo_url: {error}") from None
        server = DocumentServer(kind="external", admin_url=settings.mongo_url, address=there)
    elif embedded.installed():
        port = settings.mongo_port or kept_port(data, "mongo")
        server = DocumentServer(
            kind="embedded",
            admin_url=embedded.admin_url(port, data.secret(PASSWORD)),
            address=embedded.address(port),
            node_pid=os.getpid(),
            folder=str(data.root / "mongo"),
            desk=str(data.run / SOCKET),
            port=port,
        )
    else:
        path.unlink(missing_ok=True)
        return None
    data.write(path, address.written(server))
    return server


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """The manager of the embedded servers: started once their folder is there, which is made for
    the first project with documents."""
    server = address.read_server(config.data_dir)
    if server is None or server.folder is None or server.desk is None:
        return []
    folder = config.data_dir / "mongo"
    password = config.data_dir / "secrets" / PASSWORD
    return [
        Child(
            name="documents",
            command=[
                sys.executable, "-m", "server.mongo.manager", str(folder), server.desk,
                str(server.port), str(password), str(settings.mongo_servers),
            ],
            order=50,  # last, so that nothing waits for it
            stop_seconds=30.0,
            wanted=folder.is_dir,
        )
    ]  # fmt: skip
