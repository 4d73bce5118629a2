"""What a project uses, beside what it may use."""

from __future__ import annotations

from pathlib import Path

import msgspec

from server.base.limits import Limits
from server.base.metrics import live
from server.control.database import Connection, fetch
from server.control.lifecycle import shown_state
from server.control.records import Record


class Quota(msgspec.Struct, frozen=True):
    """percent: used of limit, rounded down; 0 without a limit."""

    used: int
    limit: int
    percent: int


class Report(msgspec.Struct, frozen=True):
    """quotas: what there is now, by name. month, today: what was counted since the month or the
    day began (UTC), by counter. measured_at: of the databases' size, None before the first time.
    last_active: when a request was last written down, within seconds. live: what is open now on
    the node that was asked, by kind, as its processes told seconds ago."""

    project: str
    tier: str
    state: str
    quotas: dict[str, Quota]
    month: dict[str, int]
    today: dict[str, int]
    measured_at: str | None
    last_active: str | None
    live: dict[str, int]


LEVELS = (
    "select counter, value, changed_at::text from usage where project_id = $1 and day = '-infinity'"
)
FLOWS = """select counter, sum(value)::bigint,
    coalesce(sum(value) filter (where day = (now() at time zone 'utc')::date), 0)::bigint
  from usage where project_id = $1 and day > '-infinity'
    and day >= date_trunc('month', now() at time zone 'utc')::date
  group by 1 order by 1"""
ACTIVE = """select max(changed_at)::text from usage
  where project_id = $1 and day >= (now() at time zone 'utc')::date - 400"""


def quota(used: int, limit: int) -> Quota:
    return Quota(used, limit, used * 100 // limit if limit else 0)


KINDS = (
    "database_sessions", "realtime_connections", "function_invocations", "function_processes",
    "document_servers",
)  # fmt: skip


async def report(control: Connection, record: Record, limits: Limits, metrics: Path) -> Report:
    """The project's use now. metrics: where the node's processes put theirs."""
    rows = await fetch(control, LEVELS, (record.id,))
    levels = {counter: value for counter, value, _ in rows}
    measured = next((at for counter, _, at in rows if counter == "database_bytes"), None)
    flows = await fetch(control, FLOWS, (record.id,))
    databases = levels.get("database_bytes", 0) + levels.get("document_bytes", 0)
    quotas = {
        "database_bytes": quota(databases, limits.database_bytes),
        "storage_bytes": quota(levels.get("storage_bytes", 0), limits.storage_bytes),
    }
    return Report(
        project=record.slug,
        tier=record.tier,
        state=shown_state(record),
        quotas=quotas,
        month={counter: month for counter, month, _ in flows},
        today={counter: today for counter, _, today in flows},
        measured_at=measured,
        last_active=(await fetch(control, ACTIVE, (record.id,)))[0][0],
        live={**dict.fromkeys(KINDS, 0), **live(metrics, record.slug)},
    )
