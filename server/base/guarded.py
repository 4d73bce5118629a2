"""Sessions that have more rights in a project's database than the project's owner.

The owner may give the database, and with it every session there, other defaults (ALTER DATABASE ...
SET), and may make functions, operators and types with the names of those that a statement means. So
such sessions begin with settings of their own, which come before those of the database, and find
what has no schema in pg_catalog alone. pg_temp is named last because it comes first where it is not
named.
"""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

SETTINGS = {
    "search_path": "pg_catalog,pg_temp",
    "role": "none",
    "local_preload_libraries": "",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "exit_on_error": "off",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "datestyle": "ISO,MDY",
    "client_encoding": "UTF8",
    "check_function_bodies": "on",
    "client_min_messages": "notice",
    # Memory, of which such sessions need little: these are what a server has that was told nothing.
    "work_mem": "4MB",
    "hash_mem_multiplier": "2",
    "maintenance_work_mem": "64MB",
    "temp_buffers": "8MB",
    # Of the change feed: who has more keeps all of a transaction in memory, which nobody ends.
    "logical_decoding_work_mem": "16MB",
    "wal_sender_timeout": "60s",
    # What goes into the server's log, which all projects share.
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
    "log_parameter_max_length_on_error": "0",
    "gin_fuzzy_search_limit": "0",  # else an index finds some of the rows
}
OPTIONS = " ".join(
    "-c " + f"{name}={value}".replace("\\", "\\\\").replace(" ", "\\ ")
    for name, value in SETTINGS.items()
)


def guarded(dsn: str) -> str:
    """The connection string with these settings behind those that it has."""
    given = conninfo_to_dict(dsn).get("options")
    return make_conninfo(dsn, options=f"{given} {OPTIONS}" if given else OPTIONS)
