"""Answers of requests on the short way, by the same rules as on the general one."""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.http.target import canonical
from ichicore.pg.executor import Result
from server.base.http import Headers, Response
from server.postgres import faults, ranges
from server.postgres.execute import Outcome, check, outcome_of
from server.postgres.plan import AFFECTED, Plan
from server.postgres.response import respond


def page(plan: Plan, values: list[bytes]) -> tuple[int | None, int]:
    """(limit or None, offset) of a read without a Range header. Raises ApiError 416 PGRST103."""
    return ranges.page(values, plan.limit_slot, plan.offset_slot, None, plan.cap)


def answer(
    plan: Plan, results: list[Result], offset: int, query: str, base_path: str, *, minimal: bool
) -> Response:
    """The answer to a request whose first statement was the opening one."""
    try:
        outcome = outcome_of(plan, results, 1, plan.cap)
        check(plan, outcome)
        shown = canonical(query.encode()) if plan.action == "read" else ""
        return respond(plan, outcome, offset=offset, canonical=shown, base_path=base_path)
    except ApiError as error:
        return faults.api_error(error, minimal=minimal)


def constant(plan: Plan) -> tuple[int, Headers] | None:
    """Status and headers of a write whose answer is the same whatever it did, else None."""
    if not plan.plain or plan.action != "insert" or plan.result != AFFECTED:
        return None
    response = respond(plan, Outcome(1), offset=0, canonical="", base_path="")
    return response.status, response.headers
