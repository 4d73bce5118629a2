"""Settings of one Postgres REST engine, whichever file, environment or project they come from."""

from __future__ import annotations

from typing import Literal

import msgspec

TxEnd = Literal["commit", "commit-allow-override", "rollback", "rollback-allow-override"]
BUSY = 503  # RestSettings.busy_status of a node's projects
OpenApiMode = Literal["follow-privileges", "ignore-privileges", "disabled"]


class RestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Named after the PostgREST options they answer to (db-schemas is `schemas`, and so on).

    concatenate_order: repeated order= parameters add up instead of the first one winning.
    profile_on_rpc_head: Content-Profile chooses the schema on HEAD /rpc too.
    preset: session settings that every connection of the pool has from its start, as (name, value);
    a transaction need not set them again.
    writes: functions may write; otherwise each call is a read-only transaction.
    busy_status: of the answer to a request for which no connection came free.
    base_path: prefix under which clients see the engine ("/postgres" or ""), for Location.
    """

    schemas: tuple[str, ...] = ("public",)
    anon_role: str | None = None
    extra_search_path: tuple[str, ...] = ("public",)
    pre_request: str | None = None
    tx_end: TxEnd = "commit"
    max_rows: int | None = None
    aggregates_enabled: bool = False
    plan_enabled: bool = False
    root_spec: str | None = None
    prepared_statements: bool = True
    hoisted_tx_settings: tuple[str, ...] = (
        "statement_timeout",
        "plan_filter.statement_cost_limit",
        "default_transaction_isolation",
    )
    openapi_mode: OpenApiMode = "follow-privileges"
    openapi_security_active: bool = False
    openapi_server_proxy_uri: str | None = None
    server_timing_enabled: bool = False
    error_verbosity: Literal["verbose", "minimal"] = "verbose"
    app_settings: tuple[tuple[str, str], ...] = ()
    statement_timeout_ms: int | None = None
    concatenate_order: bool = False
    profile_on_rpc_head: bool = False
    writes: bool = True
    busy_status: int = 504
    base_path: str = ""
    preset: tuple[tuple[str, str], ...] = ()
