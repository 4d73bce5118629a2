"""The root document and OPTIONS: what can be asked for, without touching rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from ichicore.errors import ApiError
from ichicore.http.accept import MediaType
from ichicore.pg.executor import VALUES, Statement
from ichicore.rest import hints
from ichicore.rest.catalog import Catalog, Routine
from server.base.http import Response
from server.postgres import openapi
from server.postgres.negotiate import Chosen
from server.postgres.planning import VALUE, Plan

if TYPE_CHECKING:
    from server.postgres.service import Generation, RestRequest

OPENAPI = "application/openapi+json"
VISIBLE_NAMES = Statement(openapi.VISIBLE, result=VALUES)


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


def accepts(accepted: tuple[MediaType, ...]) -> str:
    """The media type of the document that a client takes. PGRST107 when it takes none."""
    for media in accepted:
        if media.text in (OPENAPI, "*/*"):
            return OPENAPI
        if media.text == "application/json":
            return media.text
    raise ApiError(
        406,
        "PGRST107",
        "None of these media types are available: " + ", ".join(m.text for m in accepted),
    )


async def answer(
    generation: Generation, request: RestRequest, schema: str, *, negotiated: bool
) -> Response:
    """GET, HEAD and OPTIONS of the root."""
    if request.method == "OPTIONS":
        return _allow("OPTIONS,GET,HEAD")
    if request.method not in ("GET", "HEAD"):
        raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {request.method}")
    settings = generation.settings
    kind = accepts(generation.accept(request.headers.get("accept")))
    visible = None
    if settings.openapi_mode == "follow-privileges":
        plan = Plan(
            "read", schema, "", VISIBLE_NAMES, [schema.encode()], VALUE,
            Chosen("json", "application/json"), generation.prefer(None), read_only=True,
        )  # fmt: skip
        outcome = await generation.runner.run(plan, request, [], None, None, 0)
        visible = orjson.loads(outcome.body if isinstance(outcome.body, bytes) else b"null")
    base_url = request.base_url + settings.base_path
    body = openapi.document(generation.catalog, settings, schema, visible, base_url)
    headers = [("content-type", f"{kind}; charset=utf-8")]
    if negotiated:
        headers.append(("content-profile", schema))
    return Response(200, headers, b"" if request.method == "HEAD" else body)
