"""What the node checks of the file store before it starts; the service has no process of its
own."""

from __future__ import annotations

from server.base.context import NodeConfig
from server.node.children import Child, ChildError
from server.node.settings import NodeSettings


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """None. ChildError for a storage_url that cannot be used: told now, not with the first file."""
    if config.storage_url and not config.storage_url.startswith("file://"):
        from server.storage.remote import StoreUrlError, connect

        try:
            connect(config.storage_url)
        except StoreUrlError as error:
            raise ChildError(str(error)) from None
    return []
