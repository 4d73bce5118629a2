"""Settings of a node: flags over environment over ichibase.toml over defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from server.base import limits
from server.base.limits import Tiers

PREFIX = "ICHIBASE_"
FILE = "ichibase.toml"


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it and says what would be."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """data_dir: everything the node keeps. host, port, workers: of the public listener.
    admin_host, admin_port: of the admin listener. realtime_host, realtime_port: where a proxy may
    send WebSockets; port 0 chooses one and keeps it. public_url: how clients reach the node,
    without a trailing slash; from host and port when not given. base_domain: projects are served at
    <project>.<base_domain>. database_url: an existing PostgreSQL server instead of the embedded
    one; its login must be able to create databases and roles. storage_url: an object store
    instead of files in data_dir. postgres_port: of the embedded server, on loopback; 0 chooses
    one and keeps it. mongo_url: an existing MongoDB instead of the embedded document server; its
    login must be able to create users and databases. mongo_port: of the embedded ones, as
    postgres_port. mongo_servers: how many of those may run at once, 0 for what half of the
    memory has room for. default_flavor: of the default project when it is made. max_connections:
    database connections of one worker. body_limit: bytes. drain_seconds: how long a stop waits
    for requests in flight. tiers_file: numbers that replace those of the tiers, TOML.
    maintenance_seconds: between looks at sizes, idle projects and due backups. backup_url: a
    folder or an object store (s3://bucket/prefix, gs://..., az://...) for backups, data_dir/backups
    when not given. backup_key_file: a file with the passphrase that encrypts backups."""

    data_dir: Path = Path("data")
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    realtime_host: str = "127.0.0.1"
    realtime_port: int = 0
    public_url: str | None = None
    cdn_url: str | None = None
    base_domain: str = "localhost"
    default_project: str = "default"
    database_url: str | None = None
    storage_url: str | None = None
    postgres_port: int = 0
    mongo_url: str | None = None
    mongo_port: int = 0
    mongo_servers: int = 0
    default_flavor: str = "both"
    max_connections: int = 60
    body_limit: int = 32 << 20
    statement_timeout_ms: int = 30_000
    drain_seconds: float = 15.0
    access_log: str = "errors"
    log_format: str = "text"
    development: bool = True
    tiers_file: Path | None = None
    maintenance_seconds: float = 30.0
    backup_url: str | None = None
    backup_key_file: Path | None = None

    def address(self) -> str:
        shown = "127.0.0.1" if self.host in {"0.0.0.0", "::", "localhost"} else self.host  # noqa: S104
        host = f"[{shown}]" if ":" in shown else shown
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    def cdn_address(self) -> str:
        return (self.cdn_url or f"{self.address()}/cdn").rstrip("/")

    def admin_address(self) -> str:
        return f"http://{self.admin_host}:{self.admin_port}"


NAMES = tuple(field.name for field in msgspec.structs.fields(NodeSettings))


def load(flags: dict[str, Any], environment: dict[str, str] | None = None) -> NodeSettings:
    """The node's settings. flags: those given on the command line, None meaning not given."""
    environment = dict(os.environ) if environment is None else environment
    values: dict[str, Any] = {}
    values.update(_file(environment))
    values.update(_environment(environment))
    values.update({name: value for name, value in flags.items() if value is not None})
    for name in values:
        if name not in NAMES:
            raise SettingsError(_unknown(name))
    try:
        settings = msgspec.convert(values, NodeSettings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"a setting is not valid: {error}") from None
    _check(settings)
    tiers(settings)
    return msgspec.structs.replace(settings, data_dir=settings.data_dir.expanduser().resolve())


def tiers(settings: NodeSettings) -> Tiers:
    """The tiers' limits as this node grants them; SettingsError says what is wrong with them."""
    try:
        return limits.load(settings.tiers_file)
    except limits.LimitsError as error:
        raise SettingsError(f"tiers_file: {error}") from None


def _path(kind: type[Any], value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError  # tells msgspec that the type is none of ours


def _check(settings: NodeSettings) -> None:
    for name in ("port", "admin_port"):
        if not 1 <= getattr(settings, name) <= 65535:
            raise SettingsError(f"{name} must be 1 to 65535")
    if not 0 <= settings.realtime_port <= 65535:
        raise SettingsError("realtime_port must be 0 to 65535")
    if settings.port == settings.admin_port and settings.host == settings.admin_host:
        raise SettingsError("port and admin_port must differ")
    if not 1 <= settings.workers <= 256:
        raise SettingsError("workers must be 1 to 256")
    if not 0 <= settings.drain_seconds <= 3600:
        raise SettingsError("drain_seconds must be 0 to 3600")
    if not 0.1 <= settings.maintenance_seconds <= 86_400:
        raise SettingsError("maintenance_seconds must be 0.1 to 86400")
    if settings.backup_key_file is not None:
        try:
            text = settings.backup_key_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"backup_key_file cannot be read: {error}") from None
        if len(text) < 16:
            raise SettingsError("backup_key_file must hold at least 16 characters")
    if settings.access_log not in {"off", "errors", "all"}:
        raise SettingsError("access_log is off, errors or all")
    if settings.default_flavor not in {"postgres", "mongo", "both"}:
        raise SettingsError("default_flavor is postgres, mongo or both")
    if settings.log_format not in {"text", "json"}:
        raise SettingsError("log_format is text or json")


def _environment(environment: dict[str, str]) -> dict[str, str]:
    found = {}
    for variable, value in environment.items():
        if variable.startswith(PREFIX) and value:
            name = variable[len(PREFIX) :].lower()
            if name not in NAMES and name not in {"config", "debug", "node_file"}:
                raise SettingsError(_unknown(name, f"environment variable {variable}"))
            if name in NAMES:
                found[name] = value
    if environment.get("DATABASE_URL") and "database_url" not in found:
        found["database_url"] = environment["DATABASE_URL"]
    if environment.get("MONGO_URL") and "mongo_url" not in found:
        found["mongo_url"] = environment["MONGO_URL"]
    return found


def _file(environment: dict[str, str]) -> dict[str, Any]:
    named = environment.get(f"{PREFIX}CONFIG")
    path = Path(named or FILE)
    if not named and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _unknown(name: str, what: str = "setting") -> str:
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what}: {name}{hint}" if what == "setting" else f"unknown {what}{hint}"
