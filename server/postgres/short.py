"""Answers of requests on the short way, by the same rules as on the general one."""

from __future__ import annotations

from ichicore.pg.executor import Result
from server.base.http import Headers, Response
from server.postgres import ranges
from server.postgres.execute import Outcome, main_outcome
from server.postgres.planning import AFFECTED, Plan
from server.postgres.response import respond


def page(plan: Plan, values: list[bytes]) -> tuple[int | None, int]:
    """(limit or None, offset) of a read without a Range header. Raises ApiError 416 PGRST103."""
    return ranges.page(values, plan.limit_slot, plan.offset_slot, None, plan.cap)


def read(plan: Plan, result: Result, offset: int, canonical: str, base_path: str) -> Response:
    """The answer to a read."""
    outcome = Outcome(result.rows, body=result.body)
    return respond(plan, outcome, offset=offset, canonical=canonical, base_path=base_path)


def written(plan: Plan, result: Result, base_path: str) -> Response:
    """The answer to a write."""
    outcome = main_outcome(plan, result)
    return respond(plan, outcome, offset=0, canonical="", base_path=base_path)


def constant(plan: Plan) -> tuple[int, Headers] | None:
    """Status and headers of a write whose answer is the same whatever it did, else None."""
    if plan.action != "insert" or plan.result != AFFECTED:
        return None
    response = respond(plan, Outcome(1), offset=0, canonical="", base_path="")
    return response.status, response.headers
