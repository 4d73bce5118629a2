"""What a project may use: the tiers' numbers, a node's changes of them, a project's own."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

TIERS = ("free", "pro", "business")
DEFAULTS = Path(__file__).with_name("tiers.toml")
LARGEST = 2**53  # what every JSON reader takes exactly

Some = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Connections = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]  # as many as PostgreSQL takes
Any0 = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]  # 0 where the text says what it means


class LimitsError(ValueError):
    """A tiers file or an override that cannot be used; the text names what is wrong."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every number of a tier. Bytes, milliseconds and plain counts.

    projects: active ones an owner may have. flavors: databases of a project, 1 or 2.
    database_bytes: Postgres and documents together. storage_bytes: files. connections: to the
    project's database, of one worker. statement_ms: longest statement of a request.
    owner_statement_ms: of the owner's own sessions.
    idle_transaction_ms, lock_ms, work_memory, parallel_workers (of one statement), temp_bytes: of
    the project's sessions in Postgres. log_bytes: of write-ahead log that they may write a second
    all together, in the embedded server; 0 for no limit.
    operation_ms, max_documents, document_body, document_bytes: of the document API.
    document_memory: of the project's own server of documents, where the node runs them, 0 for any.
    realtime_connections: sockets at once. realtime_messages: a second, per project.
    function_wall_ms, function_cpu_ms, function_memory, function_body: of one invocation.
    function_concurrency: invocations at once. function_bundle: size of a deployed function.
    functions, schedules: how many. schedule_seconds: shortest pause of a schedule.
    requests_per_second: of the whole project in one worker, 0 for no limit. traffic: bytes a
    second of the bodies of its requests, files and functions' answers, likewise. cpu_weight:
    percent of the processor time of a full share, while others want it too. backup_hours: between
    backups, 0 for none. backup_keep_days: how long they are kept. sleep_days: idle time until a
    project sleeps, 0 for never.
    """

    projects: Some
    flavors: Annotated[int, msgspec.Meta(ge=1, le=2)]
    database_bytes: Some
    storage_bytes: Any0
    connections: Connections
    statement_ms: Milliseconds
    owner_statement_ms: Milliseconds
    idle_transaction_ms: Milliseconds
    lock_ms: Milliseconds
    work_memory: Annotated[int, msgspec.Meta(ge=65_536, le=2**40)]
    parallel_workers: Any0
    temp_bytes: Any0
    log_bytes: Any0
    operation_ms: Milliseconds
    max_documents: Some
    document_body: Some
    document_bytes: Some
    document_memory: Any0
    realtime_connections: Any0
    realtime_messages: Any0
    function_wall_ms: Milliseconds
    function_cpu_ms: Milliseconds
    function_memory: Some
    function_concurrency: Some
    function_body: Some
    function_bundle: Some
    functions: Any0
    schedules: Any0
    schedule_seconds: Some
    requests_per_second: Any0
    traffic: Any0
    cpu_weight: Annotated[int, msgspec.Meta(ge=1, le=100)]
    backup_keep_days: Some
    backup_hours: Any0
    sleep_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)]


NAMES = tuple(field.name for field in msgspec.structs.fields(Limits))
Tiers = dict[str, Limits]


def changed(base: Limits, overrides: dict[str, Any]) -> Limits:
    """The limits with some numbers replaced. LimitsError names an unknown or impossible one."""
    if not overrides:
        return base
    for name in overrides:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise LimitsError(f"unknown limit: {name[:60]}{hint}")
    try:
        return msgspec.convert({**msgspec.structs.asdict(base), **overrides}, Limits)
    except msgspec.ValidationError as error:  # Expected `int` >= 1 - at `$.connections`
        wanted, _, place = str(error).partition(" - at `$.")
        raise LimitsError(f"{place.rstrip('`')}: {wanted}" if place else wanted) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise LimitsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LimitsError(f"{path} is not valid TOML: {error}") from None


def load(overrides: Path | None = None) -> Tiers:
    """The tiers by name: the defaults, with the numbers that the file `overrides` gives."""
    tiers = {name: msgspec.convert(values, Limits) for name, values in _read(DEFAULTS).items()}
    if overrides is None:
        return tiers
    for name, values in _read(overrides).items():
        if name not in tiers:
            raise LimitsError(
                f"{overrides}: unknown tier {name!r}; the tiers are {', '.join(tiers)}"
            )
        if not isinstance(values, dict):
            raise LimitsError(f"{overrides}: {name} must be a table")
        try:
            tiers[name] = changed(tiers[name], values)
        except LimitsError as error:
            raise LimitsError(f"{overrides}: [{name}] {error}") from None
    return tiers


DEFAULT_TIERS = load()
PRO = DEFAULT_TIERS["pro"]  # of projects that name no tier


def of(tiers: Tiers, tier: str, overrides: dict[str, Any]) -> Limits:
    """A project's limits. Overrides that this version does not know are left out: they were kept
    by another one."""
    base = tiers.get(tier, PRO)
    known = {name: value for name, value in overrides.items() if name in NAMES}
    try:
        return changed(base, known)
    except LimitsError:
        return base
