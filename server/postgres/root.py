"""The root document and OPTIONS: what can be asked for, without touching rows."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from ichicore.errors import ApiError
from ichicore.http.accept import MediaType
from ichicore.http.prefer import Preferences
from ichicore.pg.executor import VALUES, Statement
from ichicore.rest import hints
from ichicore.rest.catalog import Catalog, Routine
from server.base.http import Response
from server.postgres import openapi
from server.postgres.execute import Caller, Runner
from server.postgres.negotiate import Chosen, content_type
from server.postgres.plan import BODY, Plan
from server.postgres.settings import RestSettings

DOCUMENTS = 8  # kept; a document of a large schema takes megabytes
OPENAPI = "application/openapi+json"
ACCEPTED = frozenset((OPENAPI, "application/json", "*/*"))
ANSWER = Chosen("custom", content_type(OPENAPI))
PRIVILEGES = Statement(openapi.PRIVILEGES_SQL, result=VALUES)


def _allow(methods: str) -> Response:
    return Response(200, [("access-control-allow-origin", "*"), ("allow", methods)])


def options() -> Response:
    """OPTIONS of the root."""
    return _allow("OPTIONS,GET,HEAD")


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


class RootDocument:
    """The OpenAPI documents of one catalog, as each role sees them."""

    def __init__(self, catalog: Catalog, settings: RestSettings, runner: Runner) -> None:
        self._catalog = catalog
        self._settings = settings
        self._runner = runner
        self._bodies: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    async def answer(
        self,
        caller: Caller,
        accepted: Iterable[MediaType],
        preferences: Preferences,
        schema: str,
        *,
        negotiated: bool,
        base_url: str,
    ) -> Response:
        """GET or HEAD of the root. The role's privileges are asked for each time, so that the
        answer never shows what a role may no longer see."""
        accepted = list(accepted)
        if not any(media.text in ACCEPTED for media in accepted):
            raise ApiError(
                406,
                "PGRST107",
                "None of these media types are available: "
                + ", ".join(media.text for media in accepted),
            )
        plan = Plan(
            action="read",
            schema=schema,
            target="",
            main=PRIVILEGES,
            layout=[schema.encode()],
            result=BODY,
            media=ANSWER,
            preferences=preferences,
            read_only=True,
        )
        outcome = await self._runner.run(plan, caller, [], None, None, 0)
        headers = [("content-type", ANSWER.content_type)]
        if negotiated:
            headers.append(("content-profile", schema))
        if caller.method == "HEAD":
            return Response(200, headers)
        if not isinstance(outcome.body, bytes):
            raise TypeError("privileges come as one value, never as a spool")
        told = b"" if self._settings.openapi_mode == "ignore-privileges" else outcome.body
        body = self._body(schema, told)
        return Response(200, headers, openapi.document(body, self._settings, base_url))

    def _body(self, schema: str, told: bytes) -> bytes:
        """told: the role's privileges as JSON, empty to show everything."""
        key = (schema, hashlib.blake2b(told).digest())
        found = self._bodies.get(key)
        if found is None:
            privileges = openapi.read_privileges(told) if told else None
            found = openapi.body(self._catalog, self._settings, schema, privileges)
            self._bodies[key] = found
            if len(self._bodies) > DOCUMENTS:
                self._bodies.popitem(last=False)
        else:
            self._bodies.move_to_end(key)
        return found
