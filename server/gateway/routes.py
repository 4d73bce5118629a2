"""The routes of a project's host and what each asks of its callers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Need(Enum):
    """What a caller must present; anything presented must be valid wherever credentials count."""

    NOTHING = 0  # the service itself decides, by the identity
    ANY = 1  # a key or a user token, in either header
    KEY = 2  # a project key in the header apikey
    IGNORED = 3  # headers are not read: tokens come in the query
    DEFERRED = 4  # as NOTHING, and the service decides about bad credentials too


class Route(NamedTuple):
    """name: first segment of the path. flavor: database the project must have. rest_errors: errors
    in the four-member shape of the Postgres REST engine. own_cors: the service's own answer to the
    origin is kept (True), taken out (False), or it gives none."""

    name: str
    need: Need
    flavor: str | None = None
    rest_errors: bool = False
    own_cors: bool | None = None
    module: str = ""
    factory: str = "create"


ROUTES = {
    route.name: route
    for route in (
        Route("postgres", Need.ANY, flavor="postgres", rest_errors=True,
              module="server.postgres.mount"),
        Route("mongo", Need.KEY, flavor="mongo", module="server.mongo.service"),
        Route("auth", Need.DEFERRED, module="server.auth.service"),
        Route("storage", Need.NOTHING, module="server.storage.service"),
        Route("cdn", Need.IGNORED, own_cors=True, module="server.storage.service",
              factory="create_cdn"),
        Route("functions", Need.DEFERRED, own_cors=False, module="server.functions.service"),
        Route("realtime", Need.NOTHING, module="server.realtime.service"),
    )
}  # fmt: skip
