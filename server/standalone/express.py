"""The short way of plain reads and writes, for `ichibase rest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ichicore.http.express import PECULIAR as ANYWHERE
from ichicore.http.express import Express, Tally
from server.gateway.express import ShortWay
from server.gateway.request import EdgeRequest
from server.postgres import faults, short

if TYPE_CHECKING:
    from server.standalone.app import Standalone

PECULIAR = ANYWHERE | {"origin"}


class RestWay(ShortWay):
    """Open to the hosts that the general way has answered since the last change of the
    configuration."""

    def __init__(self, server: Standalone) -> None:
        super().__init__(Express("", "/", PECULIAR), faults, short, server.handle)
        self.server = server
        self.tally = Tally()
        self.used = 0.0
        self.watched_by(server.watch)
        self.way.observe = _unobserved

    def configure(self) -> None:
        """Takes over the server's configuration."""
        trace = self.server.config.trace_header
        self.way.peculiar = PECULIAR if trace is None else PECULIAR | {trace.lower()}
        self.minimal = self.server.config.rest.error_verbosity == "minimal"
        self.close_all()

    def open(self, host: str | None) -> None:
        """A request of this host was served the general way: the next ones may go the short way."""
        server = self.server
        known = self.way.lanes.get(host)
        if server.engine.generation is None or server.log.wants(200):
            return
        if known is not None and known.generation is server.engine.generation:
            return
        lane = self.lane(server.engine, server.pool)
        lane.known = server.auth.known
        lane.nobody = server.auth.nobody
        lane.denied = None
        lane.extra = ()
        lane.rest = self
        lane.tally = self.tally
        lane.writes = True
        self.keep(host, lane)

    def request(
        self, scope: Any, protocol: Any, headers: dict[str, str], number: int
    ) -> EdgeRequest:
        request = EdgeRequest(scope, protocol, 0)
        request.headers = headers
        request.id = ""
        return request

    def failed(
        self, scope: Any, protocol: Any, headers: dict[str, str], error: Exception, number: int,
        role: str,
    ) -> int:  # fmt: skip
        status = super().failed(scope, protocol, headers, error, number, role)
        if self.server.log.wants(status):
            request = self.request(scope, protocol, headers, number)
            self.server.log.line(request, scope, status, role)
        return status

    def noted(
        self, scope: Any, headers: dict[str, str], number: int, status: int, seconds: float
    ) -> None:
        """Failed ones have their line already, and slow ones need none."""

    def fault(self, error: Exception, request: EdgeRequest, protocol: Any) -> int:
        return self.server.fault(error, request, protocol)

    def anonymous(self, role: str) -> bool:
        return role == self.server.config.anon_role


def _unobserved(status: int, seconds: float) -> None:
    """Nothing counts the times."""
