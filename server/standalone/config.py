"""The program's settings: database over environment over file over defaults, as in PostgREST."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg

from server.postgres.settings import RestSettings
from server.standalone import rolepath

ALIASES = {
    "db-max-rows": "max-rows", "db-pre-request": "pre-request", "db-root-spec": "root-spec",
    "db-schemas": "db-schema", "jwt-secret-is-base64": "secret-is-base64",
    "jwt-role-claim-key": "role-claim-key", "db-pool-max-idletime": "db-pool-timeout",
    "server-cors-allowed-origins": "cors-allowed-origins",
}  # fmt: skip
DEFAULTS: dict[str, str | None] = {
    "db-aggregates-enabled": "false", "db-anon-role": None, "db-channel": "pgrst",
    "db-channel-enabled": "true", "db-config": "true", "db-extra-search-path": "public",
    "db-hoisted-tx-settings":
        "statement_timeout,plan_filter.statement_cost_limit,default_transaction_isolation",
    "db-max-rows": None, "db-plan-enabled": "false", "db-pool": "10",
    "db-pool-acquisition-timeout": "10", "db-pool-automatic-recovery": "true",
    "db-pool-max-idletime": "30", "db-pool-max-lifetime": "1800", "db-pre-config": None,
    "db-pre-request": None, "db-prepared-statements": "true", "db-root-spec": None,
    "db-schemas": "public", "db-tx-end": "commit", "db-uri": "postgresql://",
    "jwt-aud": None, "jwt-cache-max-entries": "1000", "jwt-role-claim-key": ".role",
    "jwt-secret": None, "jwt-secret-is-base64": "false", "log-level": "error",
    "log-query": "false", "openapi-mode": "follow-privileges",
    "openapi-security-active": "false", "openapi-server-proxy-uri": None,
    "server-cors-allowed-origins": None, "server-host": "!4", "server-port": "3000",
    "server-timing-enabled": "false", "server-trace-header": None, "server-unix-socket": None,
    "server-unix-socket-mode": "660", "admin-server-host": None, "admin-server-port": None,
    "client-error-verbosity": "verbose", "server-reuseport": "false",
    "url-use-legacy-target-names": "true",
}  # fmt: skip
# Settings that may come from the database, without the connection's own and the listeners'.
FROM_DATABASE = tuple(
    name for name in DEFAULTS
    if name.startswith(("db-", "jwt-", "openapi-", "server-trace", "server-cors", "server-timing"))
    and not name.startswith(("db-uri", "db-pool", "db-channel", "db-config"))
)  # fmt: skip


class ConfigError(ValueError):
    """A setting that cannot be used, and why."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Typed settings. keys: what verifies tokens, as parsed by the auth module."""

    rest: RestSettings
    uri: str
    anon_role: str | None
    channel: str
    channel_enabled: bool
    from_database: bool
    pre_config: str | None
    pool: int
    pool_acquisition_timeout: int
    pool_max_idletime: int
    jwt_secret: bytes | None
    jwt_aud: str | None
    role_path: tuple[Any, ...]
    jwt_cache: int
    cors_origins: tuple[str, ...] | None
    trace_header: str | None
    host: str
    port: int
    unix_socket: str | None
    unix_socket_mode: int
    admin_host: str
    admin_port: int | None
    log_level: str
    shown: dict[str, str]


def unknown(file: dict[str, Any], environment: dict[str, str]) -> list[str]:
    """Settings that mean nothing here, for a warning."""
    known = set(DEFAULTS) | set(ALIASES.values())
    names = [n for n in file if n not in known and not n.startswith("app.settings.")]
    for variable in environment:
        if variable.startswith("PGRST_") and not variable.startswith("PGRST_APP_SETTINGS_"):
            name = variable[6:].lower().replace("_", "-")
            if name not in known:
                names.append(variable)
    return names


def load(
    file: dict[str, Any], environment: dict[str, str], database: dict[str, str] | None = None
) -> Config:
    """file: as conffile.parse gives it. database: settings by name with underscores."""
    database = database or {}

    def text(name: str, *, empty: bool = False) -> str | None:
        for candidate in (name, ALIASES.get(name)):
            if candidate is None:
                continue
            key = candidate.replace("-", "_")
            found: Any = database.get(key)
            if found is None:
                found = environment.get(f"PGRST_{key.upper()}")
            if found is None:
                found = file.get(candidate)
            if found is None:
                continue
            found = str(found).lower() if isinstance(found, bool) else str(found)
            if found or empty:
                return found
        return DEFAULTS[name]

    def flag(name: str) -> bool:
        value = text(name) or "false"
        letters = re.sub(r"[^A-Za-z]", "", value).lower()
        if letters in {"true", "false"}:
            return letters == "true"
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise ConfigError(f"{name} must be true or false, not {value!r}")
        return int(value) > 0

    def number(name: str, least: int = 0, most: int = 999_999_999) -> int | None:
        value = text(name)
        if value is None:
            return None
        if not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
        if not least <= int(value) <= most:
            raise ConfigError(f"{name} must be between {least} and {most}, not {value}")
        return int(value)

    def one_of(name: str, allowed: tuple[str, ...], message: str) -> str:
        value = text(name) or ""
        if value not in allowed:
            raise ConfigError(message)
        return value

    def listed(name: str, *, empty: bool = False) -> tuple[str, ...]:
        value = text(name, empty=empty)
        return tuple(part.strip() for part in value.split(",")) if value else ()

    proxy = text("openapi-server-proxy-uri")
    if proxy is not None and _malformed_proxy(proxy):
        raise ConfigError(
            "Malformed proxy uri, a correct example: https://example.com:8443/basePath"
        )
    audience = text("jwt-aud")
    if audience is not None and ":" in audience and not urlsplit(audience).scheme:
        raise ConfigError("jwt-aud should be a string or a valid URI")
    try:
        role_path = rolepath.parse(text("jwt-role-claim-key") or ".role")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    port = number("server-port", 1, 65535) or 3000
    admin_port = number("admin-server-port", 1, 65535)
    if admin_port == port:
        raise ConfigError("admin-server-port cannot be the same as server-port")
    schemas = listed("db-schemas")
    if not schemas or not all(schemas):
        raise ConfigError("db-schemas needs at least one schema")
    origins = text("server-cors-allowed-origins")
    host = text("server-host") or "!4"
    rest = RestSettings(
        schemas=schemas,
        anon_role=text("db-anon-role"),
        extra_search_path=listed("db-extra-search-path", empty=True),
        pre_request=text("db-pre-request"),
        tx_end=one_of(  # type: ignore[arg-type]
            "db-tx-end",
            ("commit", "commit-allow-override", "rollback", "rollback-allow-override"),
            "Invalid transaction termination. Check your configuration.",
        ),
        max_rows=number("db-max-rows"),
        aggregates_enabled=flag("db-aggregates-enabled"),
        plan_enabled=flag("db-plan-enabled"),
        root_spec=text("db-root-spec"),
        prepared_statements=flag("db-prepared-statements"),
        hoisted_tx_settings=listed("db-hoisted-tx-settings"),
        openapi_mode=one_of(  # type: ignore[arg-type]
            "openapi-mode", ("follow-privileges", "ignore-privileges", "disabled"),
            "Invalid openapi-mode. Check your configuration.",
        ),
        openapi_security_active=flag("openapi-security-active"),
        openapi_server_proxy_uri=proxy,
        server_timing_enabled=flag("server-timing-enabled"),
        error_verbosity=one_of(  # type: ignore[arg-type]
            "client-error-verbosity", ("verbose", "minimal"),
            "Invalid client-error-verbosity. Check your configuration.",
        ),
        app_settings=_app_settings(file, environment),
    )  # fmt: skip
    uri = _text(_from_file(text("db-uri") or "postgresql://"), "db-uri").strip()
    try:
        psycopg.conninfo.conninfo_to_dict(uri)
    except psycopg.ProgrammingError:  # whose text may have the password
        raise ConfigError("db-uri cannot be used: it is no connection string") from None
    return Config(
        rest=rest,
        uri=uri,
        anon_role=text("db-anon-role"),
        channel=text("db-channel") or "pgrst",
        channel_enabled=flag("db-channel-enabled"),
        from_database=flag("db-config"),
        pre_config=text("db-pre-config"),
        pool=number("db-pool", 1) or 10,
        pool_acquisition_timeout=number("db-pool-acquisition-timeout", 1) or 10,
        pool_max_idletime=number("db-pool-max-idletime", 1) or 30,
        jwt_secret=_secret(text("jwt-secret"), flag("jwt-secret-is-base64")),
        jwt_aud=audience,
        role_path=role_path,
        jwt_cache=number("jwt-cache-max-entries") or 0,
        cors_origins=tuple(o.strip() for o in origins.split(",")) if origins else None,
        trace_header=text("server-trace-header"),
        host=host,
        port=port,
        unix_socket=text("server-unix-socket"),
        unix_socket_mode=_socket_mode(text("server-unix-socket-mode") or "660"),
        admin_host=text("admin-server-host") or host,
        admin_port=admin_port,
        log_level=one_of(
            "log-level", ("crit", "error", "warn", "info", "debug"),
            "Invalid logging level. Check your configuration.",
        ),
        shown={name: value for name in DEFAULTS if (value := text(name)) is not None},
    )  # fmt: skip


def dump(config: Config) -> str:
    """The settings as a configuration file. Secrets are left out."""
    lines = []
    for name, value in sorted(config.shown.items()):
        if name in {"jwt-secret", "db-uri"}:
            continue
        bare = value in {"true", "false"} or (value.isdigit() and DEFAULTS[name] != value + "x")
        lines.append(f"{name} = {value if bare else json.dumps(value, ensure_ascii=False)}")
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}"
              for name, value in config.rest.app_settings]  # fmt: skip
    return "\n".join(lines) + "\n"


def _app_settings(file: dict[str, Any], environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    found = {n: str(v) for n, v in file.items() if n.startswith("app.settings.")}
    for variable, value in environment.items():
        if variable.startswith("PGRST_APP_SETTINGS_"):
            found[f"app.settings.{variable[19:]}"] = value
    return tuple(sorted(found.items()))


def _from_file(value: str) -> bytes:
    """A value that begins with @ names a file that holds it."""
    if not value.startswith("@"):
        return value.encode()
    return _read(Path(value[1:])).removesuffix(b"\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{what} is not UTF-8") from None


def read_file(path: Path) -> str:
    """The text of a file. ConfigError when there is none."""
    return _text(_read(path), str(path))


def _secret(value: str | None, is_base64: bool) -> bytes | None:
    if value is None:
        return None
    found = _from_file(value)
    if not is_base64:
        return found
    standard = (
        _text(found, "jwt-secret").strip().replace("-", "+").replace("_", "/").replace(".", "=")
    )
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("jwt-secret is not valid base64") from None


def _socket_mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]+", text):
        raise ConfigError("Invalid server-unix-socket-mode: not an octal")
    mode = int(text, 8)
    if not 0o600 <= mode <= 0o777:
        raise ConfigError("Invalid server-unix-socket-mode: needs to be between 600 and 777")
    return mode


def _malformed_proxy(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return True
    return parts.scheme not in {"http", "https"} or not parts.hostname or port == 0
