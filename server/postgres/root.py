"""The root document and OPTIONS: what can be asked for, without touching rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ichicore.errors import ApiError
from ichicore.rest import hints
from ichicore.rest.catalog import Catalog, Routine
from server.base.http import Response

if TYPE_CHECKING:
    from server.postgres.service import RestRequest


def _allow(methods: str) -> Response:
    return Response(200, [("access-control-allow-origin", "*"), ("allow", methods)])


def table_options(catalog: Catalog, schema: str, name: str) -> Response:
    """OPTIONS of a table or view: the methods its updatability allows."""
    table = catalog.table(schema, name)
    if table is None:
        raise hints.no_table(catalog, schema, name)
    methods = ["OPTIONS,GET,HEAD"]
    if table.insertable:
        methods.append("POST")
    if table.insertable and table.updatable and table.primary_key:
        methods.append("PUT")
    if table.updatable:
        methods.append("PATCH")
    if table.deletable:
        methods.append("DELETE")
    return _allow(",".join(methods))


def function_options(routine: Routine) -> Response:
    """OPTIONS of a function."""
    return _allow("OPTIONS,POST" if routine.volatility == "volatile" else "OPTIONS,GET,HEAD,POST")


async def answer(generation: object, request: RestRequest) -> Response:
    """GET, HEAD and OPTIONS of the root."""
    if request.method == "OPTIONS":
        return _allow("OPTIONS,GET,HEAD")
    raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {request.method}")
