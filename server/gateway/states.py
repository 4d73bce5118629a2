"""What a project's state and quotas make of a request, before a service sees it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from time import perf_counter

import psycopg

from ichicore.errors import ApiError
from server.base.project import Project, over_quota

WAKE_SECONDS = 15.0  # a request waits so long for its project to wake
HOLD_SECONDS = 0.25
APART_SECONDS = 0.002
MOST_HELD = 512  # requests of one worker; more are refused at once
RESTING = ("sleeping", "outdated")  # states that a request ends
Wake = Callable[[str], Awaitable[Project | None]]

# Operations of the document API that cannot make the database larger.
SHRINKING = frozenset(
    {"find", "findOne", "count", "distinct", "aggregate", "deleteOne", "deleteMany",
     "findOneAndDelete"}
)  # fmt: skip


def too_many(wait: float) -> ApiError:
    """wait: seconds until the next request is let through."""
    return ApiError(
        429, "rate_limited", "The project gets more requests a second than its plan allows.",
        headers=(("retry-after", str(max(1, math.ceil(wait)))),),
    )  # fmt: skip


class Holding:
    """Keeps what is refused waiting for a moment: a client that asks again as soon as it is refused
    would take more of the worker's time than one that is served. They are let go one after the
    other, so that they do not all come back at the same moment."""

    def __init__(self) -> None:
        self.held = 0
        self._last = 0.0  # when the last of them is let go

    async def hold(self) -> None:
        if self.held < MOST_HELD:
            self.held += 1
            now = perf_counter()
            self._last = max(now + HOLD_SECONDS, self._last + APART_SECONDS)
            try:
                await asyncio.sleep(self._last - now)
            finally:
                self.held -= 1


def waking() -> ApiError:
    return ApiError(
        503, "project_waking", "The project was asleep and is waking; try again in a moment.",
        headers=(("retry-after", "5"),),
    )  # fmt: skip


def upgrading() -> ApiError:
    return ApiError(
        503, "project_upgrading",
        "The project is being brought up to date with a new version of the server; try again in a "
        "moment.", headers=(("retry-after", "5"),),
    )  # fmt: skip


async def awake(wake: Wake | None, project: Project) -> None:
    """Wakes the project, or waits until it is up to date; ApiError 503 when that takes too long."""
    late = upgrading if project.state == "outdated" else waking
    if wake is None:
        raise late()
    try:
        async with asyncio.timeout(WAKE_SECONDS):
            await wake(project.slug)
    except (TimeoutError, OSError, psycopg.Error):
        raise late() from None


def check(project: Project, service: str, method: str, path: str) -> None:
    """Refuses what the project's state does not allow. path: from the service's prefix on."""
    if project.state == "suspended":
        raise ApiError(403, "project_suspended", "This project is suspended.")
    if project.state == "outdated":
        raise upgrading()
    if project.state == "broken":
        raise ApiError(
            503, "project_upgrade_failed",
            "The project could not be brought up to date with a new version of the server; its "
            "operator has to see to it.", headers=(("retry-after", "60"),),
        )  # fmt: skip
    if project.state != "active":
        raise waking()
    if project.read_only and grows(service, method, path):
        raise over_quota()


def grows(service: str, method: str, path: str) -> bool:
    """Whether a request may make the project's databases larger. Functions of the database are
    let through: they run in transactions that cannot write."""
    if service == "postgres":
        return method in ("POST", "PATCH", "PUT") and not path.startswith("/rpc/")
    if service == "mongo":
        parts = path.split("/")  # /v1/<op>/<collection>
        return len(parts) < 3 or parts[2] not in SHRINKING
    return service == "auth" and path == "/signup"
