"""The Postgres REST engine: one request in, one answer out. Knows no HTTP server and no tokens."""

from __future__ import annotations

from collections import OrderedDict
from time import perf_counter
from typing import Literal, cast

from ichicore.errors import ApiError
from ichicore.http import accept, prefer
from ichicore.http.prefer import Preferences
from ichicore.http.target import canonical
from ichicore.pg.errors import PgError
from ichicore.rest import query as queries
from ichicore.rest import shape
from ichicore.rest.ast import Query
from ichicore.rest.catalog import Catalog, Routine
from server.base.http import Response
from server.postgres import faults, payloads, ranges, root, short
from server.postgres.execute import ROLE_SETTINGS, Opening, Preface, Runner, Setting, ending
from server.postgres.plan import Payload, Plan
from server.postgres.planning import Planner, without_tx
from server.postgres.pool import Pool
from server.postgres.response import respond
from server.postgres.settings import RestSettings

PLANS = 2000  # kept; a plan takes a few kilobytes
WRITES: dict[str, Literal["insert", "update", "put", "delete"]] = {
    "POST": "insert",
    "PATCH": "update",
    "PUT": "put",
    "DELETE": "delete",
}


class RestRequest:
    """One request to the engine.

    method: upper case. path: decoded, from the engine's root on. query: raw bytes after "?".
    headers: lower-case name to value, repeated ones joined with ", ". body: whole. looked: what a
    large one has been found to be. role: database role to work in. claims_json: the token's
    payload. is_anonymous: the role is the one of callers without a token. base_url: scheme and host
    as the client sees them. token_seconds: time the token's verification took, for Server-Timing.
    """

    __slots__ = (
        "base_url",
        "body",
        "claims_json",
        "headers",
        "is_anonymous",
        "looked",
        "method",
        "path",
        "query",
        "role",
        "token_seconds",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: bytes,
        headers: dict[str, str],
        body: bytes,
        *,
        role: str,
        claims_json: bytes = b"{}",
        is_anonymous: bool = False,
        base_url: str = "",
        token_seconds: float | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.role = role
        self.claims_json = claims_json
        self.is_anonymous = is_anonymous
        self.base_url = base_url
        self.token_seconds = token_seconds
        self.looked: payloads.Given | ApiError | None = None


class Prepared:
    """A request that is ready to run: its plan and the values the plan leaves out."""

    __slots__ = ("body", "plan", "values")

    def __init__(self, plan: Plan, values: list[bytes], body: bytes | None) -> None:
        self.plan = plan
        self.values = values
        self.body = body


class Generation:
    """Everything that depends on one catalog: replaced as a whole, so a request sees one."""

    def __init__(
        self,
        catalog: Catalog,
        settings: RestSettings,
        pool: Pool,
        roles: dict[str, tuple[Setting, ...]],
    ) -> None:
        self.catalog = catalog
        self.settings = settings
        self.planner = Planner(catalog, settings)
        self.runner = Runner(pool, settings, Preface(settings, roles))
        self.document = root.RootDocument(catalog, settings, self.runner)
        self.plans: OrderedDict[object, Plan] = OrderedDict()
        self.preferences: dict[str | None, Preferences] = {}
        self.accepts: dict[str | None, tuple[accept.MediaType, ...]] = {}

    def remember(self, key: object, plan: Plan) -> None:
        plan.express = plan.is_single() and not self.settings.server_timing_enabled
        if plan.express:
            plan.plain = plan.is_plain()
            plan.tail = ending(plan)
            plan.cap = self.settings.max_rows
            plan.constant = short.constant(plan)
        self.plans[key] = plan
        if len(self.plans) > PLANS:
            self.plans.popitem(last=False)

    def short_preface(self, plan: Plan, role: str) -> Opening | None:
        """The opening statement of a plain read, None when more than that opens it."""
        preface = self.runner.preface
        if preface.pre_request is not None or preface.isolation(role, plan) is not None:
            return None
        return preface.opening(role, plan)

    def prefer(self, header: str | None) -> Preferences:
        found = self.preferences.get(header)
        if found is None:
            found = prefer.parse(header, self.catalog.timezones)
            if not self.settings.tx_end.endswith("allow-override"):
                found = without_tx(found)
            if len(self.preferences) > 500:
                self.preferences.clear()
            self.preferences[header] = found
        return found

    def accept(self, header: str | None) -> tuple[accept.MediaType, ...]:
        found = self.accepts.get(header)
        if found is None:
            found = tuple(accept.parse(header))
            if len(self.accepts) > 500:
                self.accepts.clear()
            self.accepts[header] = found
        return found


class RestEngine:
    """Answers requests against one database. `use` gives it a catalog; before that every request
    gets 503 PGRST002."""

    def __init__(self, settings: RestSettings, pool: Pool) -> None:
        self.settings = settings
        self.pool = pool
        self.generation: Generation | None = None

    @property
    def catalog(self) -> Catalog | None:
        return None if self.generation is None else self.generation.catalog

    def use(
        self,
        catalog: Catalog,
        settings: RestSettings | None = None,
        roles: dict[str, tuple[Setting, ...]] | None = None,
    ) -> None:
        """Serve from another catalog and, when given, other settings and role settings."""
        if settings is not None:
            self.settings = settings
        if roles is None:
            before = self.generation
            roles = {} if before is None else before.runner.preface.roles
        self.generation = Generation(catalog, self.settings, self.pool, roles)

    async def handle(self, request: RestRequest) -> Response:
        """The answer; never raises for what a client or the database did."""
        minimal = self.settings.error_verbosity == "minimal"
        timed = self.settings.server_timing_enabled
        started = perf_counter() if timed else 0.0
        try:
            response = await self._answer(request, started)
            if timed and response.headers[-1][0] != "server-timing":
                now = perf_counter()
                response.headers.append(
                    ("server-timing", _timing(request.token_seconds, started, now, now))
                )
            return response
        except ApiError as error:
            return faults.api_error(error, minimal=minimal)
        except PgError as error:
            return faults.database_error(
                error, authenticated=not request.is_anonymous, minimal=minimal
            )
        except faults.POOL_ERRORS as error:
            return faults.pool_error(error, minimal=minimal, busy=self.settings.busy_status)

    async def _answer(self, request: RestRequest, started: float) -> Response:
        generation = self.generation
        if generation is None:
            raise ApiError(
                503,
                "PGRST002",
                "Could not query the database for the schema cache. Retrying.",
            )
        path = request.path
        if len(request.body) >= payloads.LARGE and request.looked is None:
            given = request.headers.get("content-type")
            request.looked = await payloads.looked_at(request.body, given)
        if path == "/" or not path:
            routine_name = generation.settings.root_spec
            if generation.settings.openapi_mode == "disabled":
                raise ApiError(404, "PGRST126", "Root endpoint metadata is disabled")
            if routine_name is None:
                return await self._root(generation, request)
            return await self._call(generation, request, routine_name.rpartition(".")[2], started)
        name = path[1:]
        if name.startswith("rpc/"):
            name = name[4:]
            if "/" in name:
                raise _no_such_path()
            return await self._call(generation, request, name, started)
        if "/" in name:
            raise _no_such_path()
        return await self._relation(generation, request, name, started)

    async def _root(self, generation: Generation, request: RestRequest) -> Response:
        method = request.method
        if method == "OPTIONS":
            return root.options()
        if method not in ("GET", "HEAD"):
            raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {method}")
        self._parse(generation, request)
        schema, negotiated = self._schema(generation, request, "accept-profile")
        return await generation.document.answer(
            request,
            generation.accept(request.headers.get("accept")),
            generation.prefer(request.headers.get("prefer")),
            schema,
            negotiated=negotiated,
            base_url=request.base_url,
        )

    # --- tables and views ----------------------------------------------------------------------

    async def _relation(
        self, generation: Generation, request: RestRequest, name: str, started: float
    ) -> Response:
        method = request.method
        head = method == "HEAD"
        if head or method == "GET":
            prepared = self._read(generation, request, name, head)
        elif method in WRITES:
            prepared = self._write(generation, request, name, WRITES[method])
        elif method == "OPTIONS":
            schema, _ = self._schema(generation, request, "accept-profile")
            self._parse(generation, request)
            return root.table_options(generation.catalog, schema, name)
        else:
            raise ApiError(405, "PGRST117", f"Unsupported HTTP method: {method}")
        return await self._run(generation, request, prepared, started)

    def _read(
        self, generation: Generation, request: RestRequest, name: str, head: bool
    ) -> Prepared:
        headers = request.headers
        range_header = headers.get("range")
        ranged = range_header is not None and not head and ranges.is_range(range_header)
        accepted, preferred = headers.get("accept"), headers.get("prefer")
        profile = headers.get("accept-profile")
        scanned = shape.scan(request.query)
        key: object = None
        if scanned is not None:
            key = (head, name, profile, accepted, preferred, ranged, scanned[0])
            plan = generation.plans.get(key)
            if plan is not None:
                generation.plans.move_to_end(key)
                return Prepared(plan, scanned[1], None)
        schema, negotiated = self._schema(generation, request, "accept-profile")
        query = self._parse(generation, request)
        ranges.check_top(request.method, query, range_header)
        plan = generation.planner.read(
            schema,
            name,
            query,
            generation.accept(accepted),
            generation.prefer(preferred),
            head=head,
            ranged=ranged or bool(query.limit_slots.get(())),
        )
        return self._planned(generation, plan, query, scanned, key, schema, negotiated, None)

    def _write(
        self,
        generation: Generation,
        request: RestRequest,
        name: str,
        action: Literal["insert", "update", "put", "delete"],
    ) -> Prepared:
        headers = request.headers
        scanned = shape.scan(request.query, mutation=True)
        accepted, preferred = headers.get("accept"), headers.get("prefer")
        content_type = headers.get("content-type")
        given: payloads.Given | None = None
        key: object = None
        if scanned is not None:
            if action == "delete":
                given = payloads.NOTHING
            elif b"columns=" not in request.query:
                given = self._payload(generation, request, content_type, rpc=False)
            if given is not None:
                key = (
                    action,
                    name,
                    headers.get("content-profile"),
                    accepted,
                    preferred,
                    given.names,
                    given.is_object,
                    scanned[0],
                )
                plan = generation.plans.get(key)
                if plan is not None:
                    generation.plans.move_to_end(key)
                    return Prepared(plan, scanned[1], given.body)
        schema, negotiated = self._schema(generation, request, "content-profile")
        query = self._parse(generation, request, mutation=True)
        ranges.check_top(request.method, query, None)
        if given is None:
            columns = query.columns if action in ("insert", "update") else None
            if action == "delete":
                given = payloads.NOTHING
            else:
                given = payloads.read(
                    request.body, content_type, columns, rpc=False, looked=request.looked
                )
        plan = generation.planner.mutate(
            schema,
            name,
            action,
            query,
            Payload(tuple(sorted(given.names)), given.is_object),
            generation.accept(accepted),
            generation.prefer(preferred),
        )
        return self._planned(generation, plan, query, scanned, key, schema, negotiated, given.body)

    # --- functions -------------------------------------------------------------------------------

    async def _call(
        self, generation: Generation, request: RestRequest, name: str, started: float
    ) -> Response:
        method = request.method
        if method == "OPTIONS":
            schema, _ = self._schema(generation, request, "accept-profile")
            query = self._parse(generation, request, rpc=True)
            names = {key for key, _ in query.params}
            routine = generation.planner.routine(
                schema, name, names, is_post=False, content_type="application/json"
            )
            return root.function_options(routine)
        if method not in ("GET", "HEAD", "POST"):
            raise ApiError(405, "PGRST101", f"Cannot use the {method} method on RPC")
        prepared = self._invocation(generation, request, name)
        return await self._run(generation, request, prepared, started)

    def _invocation(self, generation: Generation, request: RestRequest, name: str) -> Prepared:
        method = request.method
        is_post, head = method == "POST", method == "HEAD"
        headers = request.headers
        profile_header = "content-profile" if is_post else "accept-profile"
        if head and generation.settings.profile_on_rpc_head and "content-profile" in headers:
            profile_header = "content-profile"
        range_header = headers.get("range")
        ranged = range_header is not None and method == "GET" and ranges.is_range(range_header)
        accepted, preferred = headers.get("accept"), headers.get("prefer")
        content_type = headers.get("content-type")
        scanned = shape.scan(request.query, rpc=not is_post)
        given = payloads.NOTHING
        key: object = None
        if is_post and (scanned is None or b"columns=" not in request.query):
            given = self._payload(generation, request, content_type, rpc=True)
        if scanned is not None and given.arguments is None:
            key = (
                method,
                "rpc",
                name,
                headers.get(profile_header),
                accepted,
                preferred,
                content_type,
                ranged,
                given.names,
                given.is_object,
                scanned[0],
            )
            plan = generation.plans.get(key)
            if plan is not None:
                generation.plans.move_to_end(key)
                return Prepared(plan, scanned[1], given.body)
        schema, negotiated = self._schema(generation, request, profile_header)
        query = self._parse(generation, request, rpc=not is_post)
        ranges.check_top(method, query, range_header)
        if is_post and query.columns is not None:
            given = payloads.read(
                request.body, content_type, query.columns, rpc=True, looked=request.looked
            )
        arguments = given.arguments
        names = set(given.names)
        if not is_post:
            arguments = tuple(
                (key_, value, slot)
                for (key_, value), slot in zip(query.params, query.param_slots, strict=True)
            )
            names = {key_ for key_, _, _ in arguments}
        routine = self._routine(generation, schema, name, names, is_post, given.media)
        whole = len(routine.params) == 1 and not routine.params[0].name
        body = given.body
        if whole and routine.params[0].type == "bytea":
            body = b"\\x" + request.body.hex().encode()
        plan = generation.planner.call(
            schema,
            name,
            routine,
            query,
            Payload(tuple(sorted(names)), given.is_object, arguments),
            generation.accept(accepted),
            generation.prefer(preferred),
            is_post=is_post,
            head=head,
            ranged=ranged or bool(query.limit_slots.get(())),
        )
        if whole and routine.params[0].type == "bytea":
            key = None
        return self._planned(generation, plan, query, scanned, key, schema, negotiated, body)

    def _routine(
        self,
        generation: Generation,
        schema: str,
        name: str,
        names: set[str],
        is_post: bool,
        media: str,
    ) -> Routine:
        return generation.planner.routine(schema, name, names, is_post=is_post, content_type=media)

    # --- common ------------------------------------------------------------------------------

    def _parse(
        self,
        generation: Generation,
        request: RestRequest,
        *,
        rpc: bool = False,
        mutation: bool = False,
    ) -> Query:
        return queries.parse(
            request.query,
            rpc=rpc,
            mutation=mutation,
            concatenate_order=generation.settings.concatenate_order,
        )

    def _payload(
        self, generation: Generation, request: RestRequest, content_type: str | None, *, rpc: bool
    ) -> payloads.Given:
        """The body of a request; a schema or query string that is wrong too is told of first."""
        try:
            return payloads.read(request.body, content_type, None, rpc=rpc, looked=request.looked)
        except ApiError:
            self._schema(generation, request, "content-profile")
            self._parse(generation, request, mutation=not rpc)
            raise

    def _schema(
        self, generation: Generation, request: RestRequest, header: str
    ) -> tuple[str, bool]:
        """The schema a request chooses, and whether its choice is told in the answer."""
        schemas = generation.settings.schemas
        wanted = request.headers.get(header)
        if wanted is None:
            return schemas[0], len(schemas) != 1
        if wanted not in schemas:
            raise ApiError(
                406,
                "PGRST106",
                f"Invalid schema: {wanted}",
                hint="Only the following schemas are exposed: " + ", ".join(schemas),
            )
        return wanted, True

    def _planned(
        self,
        generation: Generation,
        plan: Plan,
        query: Query,
        scanned: tuple[bytes, list[bytes]] | None,
        key: object,
        schema: str,
        negotiated: bool,
        body: bytes | None,
    ) -> Prepared:
        plan.profile = schema if negotiated else None
        values = [value.encode() for value in query.values]
        # The scanner has to find the same values as the parser, or its keys cannot be trusted.
        if key is not None and scanned is not None and plan.cacheable and scanned[1] == values:
            generation.remember(key, plan)
        return Prepared(plan, values, body)

    async def _run(
        self, generation: Generation, request: RestRequest, prepared: Prepared, started: float
    ) -> Response:
        plan = prepared.plan
        settings = generation.settings
        limit, offset = None, 0
        if plan.ranged:
            limit, offset = ranges.page(
                prepared.values,
                plan.limit_slot,
                plan.offset_slot,
                request.headers.get("range") if request.method == "GET" else None,
                settings.max_rows,
            )
        timed = settings.server_timing_enabled
        planned = perf_counter() if timed else 0.0
        outcome = await generation.runner.run(
            plan, request, prepared.values, prepared.body, limit, offset
        )
        ran = perf_counter() if timed else 0.0
        response = respond(
            plan,
            outcome,
            offset=offset,
            canonical=canonical(request.query) if plan.action == "read" else "",
            base_path=settings.base_path,
        )
        if timed:
            response.headers.append(
                ("server-timing", _timing(request.token_seconds, started, planned, ran))
            )
        return response


def _timing(token: float | None, started: float, planned: float, ran: float) -> str:
    """Server-Timing: durations in milliseconds. Parsing and planning are one step here."""
    parts = [
        ("jwt", token or 0.0),
        ("parse", 0.0),
        ("plan", planned - started),
        ("transaction", ran - planned),
        ("response", perf_counter() - ran),
    ]
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts)


def _no_such_path() -> ApiError:
    return ApiError(404, "PGRST125", "Invalid path specified in request URL")


async def role_settings(pool: Pool) -> dict[str, tuple[Setting, ...]]:
    """Settings of the roles that the login may become, which SET ROLE alone does not apply."""
    found: dict[str, list[Setting]] = {}
    for role, name, value in await pool.fetch(ROLE_SETTINGS, ()):
        found.setdefault(cast(str, role), []).append((cast(str, name), cast(str, value)))
    return {role: tuple(settings) for role, settings in found.items()}
