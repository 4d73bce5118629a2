"""Removes the files of a project that is removed."""

from __future__ import annotations

from ichicore.errors import ApiError
from server.base.context import NodeConfig


async def drop(config: NodeConfig, project_id: str) -> None:
    """Every process that may finish a removal does it: the one that was asked, the next start, the
    maintenance. ApiError 503 when the store fails."""
    # Here, so that processes that remove nothing need no client of an object store.
    from server.storage.stores import StoreError, open_store

    try:
        store = open_store(config)
        try:
            await store.drop(project_id)
        finally:
            store.close()
    except (StoreError, OSError) as error:
        raise ApiError(503, "unavailable", f"The file store failed: {error}") from None
