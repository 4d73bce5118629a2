"""Lines of answered requests, from the status on that log-level sets."""

from __future__ import annotations

import sys
import time
from typing import Any

from server.gateway.request import EdgeRequest

FROM_STATUS = {"crit": 1000, "error": 500, "warn": 400, "info": 0, "debug": 0}


class AccessLog:
    def __init__(self, level: str) -> None:
        self.since = FROM_STATUS[level]

    def wants(self, status: int) -> bool:
        return status >= self.since

    @staticmethod
    def line(request: EdgeRequest, scope: Any, status: int, role: str | None = None) -> None:
        """One request in the combined log format, with the database role as the user."""
        headers = request.headers
        target = f"{scope.path}?{scope.query_string}" if scope.query_string else scope.path
        when = time.strftime("%d/%b/%Y:%H:%M:%S %z")
        text = (
            f"{request.peer or '-'} - {role or '-'} [{when}] "
            f'"{scope.method} {target} HTTP/{scope.http_version}" {status} - '
            f'"{headers.get("referer", "")}" "{headers.get("user-agent", "")}"'
        )
        print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)
