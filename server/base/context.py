"""What a worker process hands to the services it builds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from server.base.project import Project

if TYPE_CHECKING:
    from server.postgres.pool import Pool


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one node. public_url, cdn_url: no trailing slash. base_domain: host suffix of
    the projects' subdomains. control_dsn: database with projects, keys and settings. storage_url:
    object store (s3://bucket/prefix, gs://..., az://...); None keeps files in data_dir."""

    data_dir: Path
    control_dsn: str
    base_domain: str = "localhost"
    public_url: str = "http://127.0.0.1:8000"
    cdn_url: str = "http://127.0.0.1:8000/cdn"
    admin_url: str = "http://127.0.0.1:8001"
    default_project: str = "default"
    max_connections: int = 60
    storage_url: str | None = None
    development: bool = True


class Directory(Protocol):
    """Projects by slug; a missing slug gives None. Values are replaced when settings change."""

    def get(self, slug: str) -> Project | None: ...

    def on_change(self, callback: Callable[[Project | None, str], None]) -> None:
        """Calls back with (new value or None when deleted, slug) in the worker's event loop."""
        ...


class Bus(Protocol):
    """Small messages between all workers of a node (at most 7 KB, at most once, in order)."""

    def publish(self, topic: str, payload: dict[str, Any]) -> Awaitable[None]: ...

    def subscribe(self, topic: str, callback: Callable[[dict[str, Any]], None]) -> None: ...


class Pools(Protocol):
    """Connection pools per project, made on first use, idle ones given back, one cap for all."""

    def data(self, project: Project) -> Pool:
        """Logs in as the authenticator: for requests made in a client's role."""
        ...

    def system(self, project: Project) -> Pool:
        """Logs in as the owner of the schemas auth, storage and realtime."""
        ...


class WorkerContext:
    """Shared by all services of one worker process."""

    def __init__(self, config: NodeConfig, directory: Directory, pools: Pools, bus: Bus) -> None:
        self.config = config
        self.directory = directory
        self.pools = pools
        self.bus = bus
        self.on_start: list[Callable[[], Awaitable[None]]] = []
        self.on_stop: list[Callable[[], Awaitable[None]]] = []
