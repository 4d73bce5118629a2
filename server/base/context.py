"""What a worker process hands to the services it builds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ichicore.errors import ApiError
from server.base.changes import ChangeSink, socket_path
from server.base.limits import DEFAULT_TIERS, Tiers
from server.base.project import Identity, Project
from server.base.usage import Usage

if TYPE_CHECKING:
    from server.base.functions import Functions
    from server.postgres.pool import Pool

MAX_ENGINES = 64  # of tables in one worker; each has a connection of its own that listens


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one node. public_url, cdn_url: no trailing slash. base_domain: host suffix of
    the projects' subdomains. control_dsn: database with projects, keys and settings. storage_url:
    object store (s3://bucket/prefix, gs://..., az://...); None keeps files in data_dir.
    mongo_address: of the document server, without credentials; None when the node has none.
    body_limit: bytes of a request's body. statement_timeout_ms: for projects that set none.
    access_log: which requests get a log line; "errors" are 5xx and slow ones. tiers: limits by
    tier. maintenance_seconds: between looks at sizes, idle projects and due backups. backup_url:
    where backups are kept, a folder or an object store. backup_key_file: holds the passphrase that
    encrypts them, None for no encryption."""

    data_dir: Path
    control_dsn: str
    base_domain: str = "localhost"
    public_url: str = "http://127.0.0.1:8000"
    cdn_url: str = "http://127.0.0.1:8000/cdn"
    admin_url: str = "http://127.0.0.1:8001"
    default_project: str = "default"
    max_connections: int = 60
    storage_url: str | None = None
    mongo_address: str | None = None
    development: bool = True
    body_limit: int = 32 << 20
    statement_timeout_ms: int = 30_000
    access_log: Literal["off", "errors", "all"] = "errors"
    log_format: Literal["text", "json"] = "text"
    maintenance_seconds: float = 30.0
    backup_url: str | None = None
    backup_key_file: Path | None = None
    tiers: Tiers = msgspec.field(default_factory=lambda: DEFAULT_TIERS)

    @property
    def metrics_dir(self) -> Path:
        """Where the workers keep their counts; server.base.metrics.render adds them up."""
        return self.data_dir / "run" / "metrics"


# Topic of the bus that tells of access tokens revoked before they expire. Payload:
# {"project": <id>, "session_id": <id>} or {"project": <id>, "user_id": <id>, "before": <epoch
# seconds>}; the latter refuses tokens issued before that time. "exp" may tell when the last of
# the tokens expires (epoch seconds). A service revokes by WorkerContext.revocations, which tells
# workers that start later, too.
TOKEN_REVOKED = "token.revoked"  # noqa: S105


class Directory(Protocol):
    """Projects by slug; a missing slug gives None. Values are replaced when settings change."""

    def get(self, slug: str) -> Project | None: ...

    def all(self) -> list[Project]: ...

    def on_change(self, callback: Callable[[Project | None, str], None]) -> None:
        """Calls back with (new value or None when deleted, slug) in the worker's event loop."""
        ...


class Bus(Protocol):
    """Small messages between all workers of a node (at most 7 KB, at most once, in order)."""

    def publish(self, topic: str, payload: dict[str, Any]) -> Awaitable[None]: ...

    def subscribe(self, topic: str, callback: Callable[[dict[str, Any]], None]) -> None: ...


class Revoker(Protocol):
    """Ends access tokens in all workers; see server/base/revocations.py."""

    async def sessions(self, project_id: str, ids: list[str], until: float) -> None: ...

    async def user(self, project_id: str, id: str, before: float, until: float) -> None: ...

    async def replay(self, apply: Callable[[dict[str, Any]], None]) -> None: ...


class BusRevoker:
    """Tells the workers that run now and nobody later."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def sessions(self, project_id: str, ids: list[str], until: float) -> None:
        for id in ids:
            message = {"project": project_id, "session_id": id, "exp": until}
            await self.bus.publish(TOKEN_REVOKED, message)

    async def user(self, project_id: str, id: str, before: float, until: float) -> None:
        message = {"project": project_id, "user_id": id, "before": before, "exp": until}
        await self.bus.publish(TOKEN_REVOKED, message)

    async def replay(self, apply: Callable[[dict[str, Any]], None]) -> None:
        return


class Pools(Protocol):
    """Connection pools per project, made on first use, idle ones given back, one cap for all."""

    def data(self, project: Project) -> Pool:
        """Logs in as the authenticator: for requests made in a client's role."""
        ...

    def system(self, project: Project) -> Pool:
        """Logs in as the owner of the schemas auth, storage and realtime."""
        ...


def _no_verifier(project: Project, token: str) -> Identity:
    raise ApiError(401, "invalid_token", "Tokens cannot be verified here.")


class WorkerContext:
    """Shared by all services of one worker process.

    verify(project, token) gives the identity of a credential that came elsewhere than in a header
    (the realtime socket's ?token=): a project key or a user token; ApiError 401 when not valid.
    usage counts what projects use; it writes only where the worker has started it.
    revocations ends access tokens before they expire.
    changes: the way to the realtime process.
    """

    def __init__(
        self,
        config: NodeConfig,
        directory: Directory,
        pools: Pools,
        bus: Bus,
        verify: Callable[[Project, str], Identity] = _no_verifier,
        usage: Usage | None = None,
        revocations: Revoker | None = None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.pools = pools
        self.bus = bus
        self.verify = verify
        self.usage = usage or Usage(config.control_dsn)
        self.revocations: Revoker = revocations or BusRevoker(bus)
        self.changes = ChangeSink(socket_path(config.data_dir))
        self.functions: Functions | None = None  # made by server.base.functions.of
        self.on_start: list[Callable[[], Awaitable[None]]] = []
        self.on_stop: list[Callable[[], Awaitable[None]]] = [self.changes.stop]

    def serving(self, project: Project) -> bool:
        """Whether it is still there and awake."""
        present = self.directory.get(project.slug)
        return present is not None and present.state == "active"
