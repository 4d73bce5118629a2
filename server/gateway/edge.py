"""From the HTTP server's call to a service's answer: host, origin, credentials, route, reply."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Awaitable, Callable
from time import perf_counter, time
from typing import Any

import orjson

from ichicore.errors import ApiError
from ichicore.http.express import Tally
from ichicore.token.cache import GenerationCache
from server.base.context import Directory
from server.base.events import Events, Failed, Served
from server.base.hosts import SLUG, HostRule, UnknownProject, malformed, unknown
from server.base.http import JSON, Response, Service, error_response, json_response
from server.base.keys import Denied, KeyRing, forget, missing_key, revoke
from server.base.metrics import Metrics
from server.base.project import NOBODY, Identity, Project
from server.gateway import largefile, limits, reply, states
from server.gateway.request import EdgeRequest
from server.gateway.routes import ROUTES, Need, Route
from server.gateway.site import Site
from server.gateway.traffic import Traffic
from server.gateway.watch import Watch

MAX_ID = 128
GONE = 499  # what the log says of a request whose client left
HOSTS = 4096  # Host headers remembered
FORBIDDEN_ORIGIN = 403
WAKINGS = 3  # times that one request wakes its project
TOO_MANY = 429
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@")

Mount = Callable[[Route], Awaitable[Service | None]]


def refusal(error: ApiError, route: Route | None) -> Response:
    """The answer to a refused request, in the shape of the route's errors."""
    if route is None or not route.rest_errors:
        return error_response(error)
    body = {
        "code": error.code, "details": error.details, "hint": error.hint,
        "message": error.message,
    }  # fmt: skip
    return Response(error.status, [JSON, *error.headers], orjson.dumps(body))


def unavailable(what: str = "The service is starting or its database is away.") -> ApiError:
    return ApiError(503, "unavailable", what, headers=(("retry-after", "1"),))


class Edge:
    """Serves one worker's requests.

    `mount` gives the service of a route, made on first use, or None when this build has none.
    `ready` tells whether the worker can serve projects, `missing` names the parts without which
    some requests fail. `wants_line` is asked before an event is made for an answered request.
    `wake` wakes a sleeping project, by its slug; `look` looks once more for a project that the
    directory does not know.
    """

    def __init__(
        self,
        directory: Directory,
        hosts: HostRule,
        mount: Mount,
        events: Events,
        metrics: Metrics,
        *,
        body_limit: int,
        ready: Callable[[], bool],
        missing: Callable[[], list[str]],
        wants_line: Callable[[int, float], bool],
        wake: states.Wake | None = None,
        look: states.Wake | None = None,
    ) -> None:
        self.wake = wake
        self.look = look
        self.directory = directory
        self.hosts = hosts
        self.mount = mount
        self.events = events
        self.metrics = metrics
        self.body_limit = body_limit
        self.ready = ready
        self.missing = missing
        self.wants_line = wants_line
        self.services: dict[str, Service] = {}
        self._mounting: dict[str, asyncio.Task[Service | None]] = {}
        self.denied: dict[str, Denied] = {}  # by project id
        self.traffics: dict[str, Traffic] = {}  # by project id
        self.holding = states.Holding()
        self._sites: dict[str, Site] = {}
        self._by_host: GenerationCache[Site] = GenerationCache(HOSTS)
        self._timers = {name: metrics.route(name) for name in (*ROUTES, "edge")}
        self.watch = Watch()
        # by the general way, by route
        self.opened: dict[str, Callable[[str | None, Site], None]] = {}
        self._prefix = secrets.token_hex(6)
        self._count = 0
        directory.on_change(self._changed)
        metrics.gauges.append(self._gauges)

    def start(self) -> None:
        """Begins to watch for clients that leave, in the running loop."""
        self.watch.start()

    async def stop(self) -> None:
        await self.watch.stop()
        await largefile.stop()

    # One request

    async def handle(self, scope: Any, protocol: Any) -> None:
        """One call of the HTTP server. Always answers, unless the client has left."""
        started = perf_counter()
        self._count = number = self._count + 1
        request = EdgeRequest(scope, protocol, self.body_limit)
        request.id = f"{self._prefix}{number:08x}"
        watch = self.watch
        watch.in_flight[number] = (started, asyncio.current_task(), protocol)
        code = ""
        try:
            response = await self._answer(request, scope, protocol)
            if response is None:  # a socket, which has its own end
                return
            if response.stream is not None:
                status = await reply.send_stream(protocol, response, request)
            elif response.file is not None:
                status = await reply.send_file(protocol, response, request)
            else:
                status = reply.send(protocol, response, request)
        except ApiError as error:
            code = error.code
            status = self._refuse(error, request, protocol)
        except asyncio.CancelledError:
            if number not in watch.gone:
                raise
            self.metrics.count("ichibase_client_gone_total")
            status = GONE
        except Exception as error:
            status = self._fault(error, request, protocol)
        finally:
            del watch.in_flight[number]
            if watch.watchers:
                watch.over(number)
        seconds = perf_counter() - started
        route = request.route
        self._timers["edge" if route is None else route.name].observe(status, seconds)
        if self.wants_line(status, seconds):
            self.line(request, scope, status, seconds, code)
        if request.unread():
            await request.let_pass()

    async def _answer(self, request: EdgeRequest, scope: Any, protocol: Any) -> Response | None:
        headers = request.collect()
        given = headers.get("x-request-id")
        if given is not None and len(given) <= MAX_ID and _ID_CHARACTERS.issuperset(given):
            request.id = given or request.id
        path: str = scope.path
        end = path.find("/", 1)
        host = headers.get("host")
        site = self._by_host.get(host)
        route = site.routes.get(path if end < 0 else path[:end]) if site is not None else None
        if route is None or site is None:
            try:
                found = self._locate(request, host or scope.authority, path)
            except UnknownProject as error:
                if not error.slug or self.look is None or not await self.look(error.slug):
                    raise
                found = self._locate(request, host or scope.authority, path)
            if isinstance(found, Response):
                return found
            site, route, rest = found
        else:
            rest = path[end:] if end > 0 else "/"
        request.path = rest
        request.route = route
        request.project = site.project
        request.slug = site.slug
        request.traffic = site.traffic
        origin = headers.get("origin")
        request.cors = site.cors.headers(origin)
        if (
            origin is not None
            and request.method == "OPTIONS"
            and "access-control-request-method" in headers
        ):
            asked = headers.get("access-control-request-headers")
            request.cors = site.cors.preflight(origin, asked)
            if not route.own_cors:
                return Response(204)
        if len(rest) + len(request.query) > limits.MAX_URL:
            raise limits.url_too_long()
        if "\ufffd" in rest or "\x00" in rest:
            raise ApiError(400, "bad_request", "The path is not valid UTF-8 text.")
        if len(headers) > 30 or len(headers.get("cookie", "")) > 4096:
            limits.check_headers(headers)
        if not site.tally.take(perf_counter()):
            await self.holding.hold()
            raise states.too_many(site.tally.wait())
        request.identity = self._identify(site.ring, route, request)
        if not site.plain:
            site = await self._admitted(site, route, request)
        service = self.services.get(route.name)
        if service is None:
            service = await self._mounted(route)
        if "upgrade" in headers and scope.proto != "http":
            await self._socket(site, service, request, protocol)
            return None
        try:
            response = await service.handle(request)
        except ApiError as error:
            if error.status == TOO_MANY:
                await self.holding.hold()
            raise
        opened = self.opened.get(route.name)
        if opened is not None:
            opened(host, site)
        return response

    async def _admitted(self, site: Site, route: Route, request: EdgeRequest) -> Site:
        """What the project's state makes of a request: wakes it, or refuses. Gives the site of
        the project that is awake."""
        if site.project.state in states.RESTING:
            if request.refusal is not None and route.name == "auth":
                raise request.refusal  # nobody wakes a project without a key of its own
            for _ in range(WAKINGS):  # it may be put to sleep once more meanwhile
                await states.awake(self.wake, site.project)
                site = self.site(site.slug)
                request.project = site.project
                if site.project.state not in states.RESTING:
                    break
        states.check(site.project, route.name, request.method, request.path)
        return site

    def _identify(self, ring: KeyRing, route: Route, request: EdgeRequest) -> Identity:
        need = route.need
        if need is Need.IGNORED:
            return NOBODY
        headers = request.headers
        try:
            found = ring.identify(headers.get("authorization"), headers.get("apikey"), time())
        except ApiError as error:
            if need is not Need.DEFERRED:
                raise
            request.refusal = error
            return NOBODY
        if need is Need.ANY:
            if found is NOBODY:
                raise missing_key()
        elif need is Need.KEY and found.key_role is None:
            raise missing_key()
        return found

    def _locate(
        self, request: EdgeRequest, host: str | None, path: str
    ) -> Response | tuple[Site, Route, str]:
        """Site, route and the path within it when the quick look-ups have not found them."""
        if path == "/healthz":
            return json_response(200, {"status": "ok"})
        if path == "/readyz":
            return self._readiness()
        if not host:
            raise malformed()
        slug = self.hosts.slug(host)
        if not self.ready():
            raise unavailable()
        first, _, rest = path[1:].partition("/")
        if first == "cdn" and slug is not None:
            slug, _, rest = rest.partition("/")
            if not slug:
                raise ApiError(404, "not_found", "There is nothing at this path.")
        elif slug is None:
            slug = first
        else:
            site = self.site(slug)
            self._by_host.put(host, site)
            request.cors = site.cors.headers(request.headers.get("origin"))
            route = ROUTES.get(first)
            if route is None:
                raise ApiError(404, "not_found", "There is nothing at this path.")
            request.route = route
            if route.flavor is not None and f"/{first}" not in site.routes:
                raise ApiError(
                    404, f"{route.flavor}_not_enabled",
                    f"This project has no {route.flavor.capitalize()} database.",
                )  # fmt: skip
            return site, route, f"/{rest}"
        if not SLUG.fullmatch(slug):
            raise unknown()
        return self.site(slug), ROUTES["cdn"], f"/{rest}"

    def _readiness(self) -> Response:
        """Whether this worker can serve, for who spreads requests over nodes."""
        missing = self.missing()
        if not missing:
            return json_response(200, {"status": "ready"})
        error = unavailable(f"Not ready: {', '.join(missing)}.")
        body = {"code": error.code, "detail": error.message, "not_ready": missing}
        return json_response(error.status, body, list(error.headers))

    def site(self, slug: str) -> Site:
        """What is kept for a project; ApiError 404 project_not_found."""
        site = self._sites.get(slug)
        if site is None:
            project = self.directory.get(slug)
            if project is None:
                raise UnknownProject(slug)
            denied = self.denied.setdefault(project.id, Denied())
            traffic = self.traffics.get(project.id)
            if traffic is None:
                traffic = self.traffics[project.id] = Traffic(Tally())
            site = self._sites[slug] = Site(project, denied, traffic)
        return site

    def site_of(self, host: str) -> Site | None:
        """What a Host header served before names."""
        return self._by_host.get(host)

    def short_request(
        self, route: str, id: str, scope: Any, protocol: Any, headers: dict[str, str]
    ) -> EdgeRequest:
        """What is told of a request that went a short way, and answered it where it failed."""
        request = EdgeRequest(scope, protocol, self.body_limit)
        request.headers = headers
        request.route = ROUTES[route]
        request.id = id
        site = self.site_of(headers["host"])
        if site is not None:
            request.slug = site.slug
            request.traffic = site.traffic
            request.cors = site.cors.headers(headers.get("origin"))
        return request

    def short_line(
        self, route: str, id: str, scope: Any, headers: dict[str, str], status: int, seconds: float
    ) -> None:
        """The line in the log of a request that went a short way and was slow or failed."""
        if self.wants_line(status, seconds):
            request = self.short_request(route, id, scope, None, headers)
            self.line(request, scope, status, seconds, "")

    async def _mounted(self, route: Route) -> Service:
        """The service of a route, made once."""
        making = self._mounting.get(route.name)
        if making is None:
            making = asyncio.ensure_future(self.mount(route))
            self._mounting[route.name] = making
        try:
            service = await asyncio.shield(making)
        except Exception:
            self._mounting.pop(route.name, None)  # the next request tries again
            raise
        if service is None:
            raise ApiError(404, "not_found", f"This server has no {route.name} service.")
        self.services[route.name] = service
        return service

    async def _socket(
        self, site: Site, service: Service, request: EdgeRequest, protocol: Any
    ) -> None:
        """A WebSocket: only for services that take one, only from pages of listed origins."""
        serve = getattr(service, "websocket", None)
        origin = request.headers.get("origin")
        if serve is None:
            protocol.close(404)
        elif origin is not None and not site.cors.allows(origin):
            protocol.close(FORBIDDEN_ORIGIN)
        else:
            await serve(request, protocol)

    def _fault(self, error: Exception, request: EdgeRequest, protocol: Any) -> int:
        """Logs what must not happen and answers 500, unless an answer has begun."""
        self.metrics.count("ichibase_faults_total")
        trace = "".join(traceback.format_exception(error))
        self.events.emit(Failed(f"{request.method} {request._scope.path}", trace, request.id))
        internal = ApiError(500, "internal", "The server could not serve this request.")
        return self._refuse(internal, request, protocol)

    @staticmethod
    def _refuse(error: ApiError, request: EdgeRequest, protocol: Any) -> int:
        """Tells the client, unless an answer has begun."""
        try:
            return reply.send(protocol, refusal(error, request.route), request)
        except RuntimeError:  # the HTTP server's "already answered"
            return error.status

    def line(
        self, request: EdgeRequest, scope: Any, status: int, seconds: float, code: str
    ) -> None:
        """Tells of an answered request."""
        route = request.route
        self.events.emit(
            Served(
                request.id, request.slug, "edge" if route is None else route.name, request.method,
                scope.path, status, seconds, request.peer, code,
            )
        )  # fmt: skip

    # What others tell

    def _changed(self, project: Project | None, slug: str) -> None:
        self._sites.pop(slug, None)
        self._by_host.clear()
        if project is None:
            present = {one.id for one in self.directory.all()}
            forget(self.denied, present)
            for id in self.traffics.keys() - present:
                del self.traffics[id]

    def revoked(self, message: dict[str, Any]) -> None:
        """A message of the topic TOKEN_REVOKED."""
        project = message.get("project")
        if isinstance(project, str):
            revoke(self.denied.setdefault(project, Denied()), message)

    def requests(self) -> list[tuple[str, int]]:
        """Requests by project id since the last call."""
        return [(id, one.tally.drain()) for id, one in self.traffics.items() if one.tally.count]

    def verify(self, project: Project, token: str) -> Identity:
        """The identity of a key or user token; ApiError 401 when it is not valid."""
        return self.site(project.slug).ring.token(token, time())

    def _gauges(self) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        hits = sum(site.ring.known.hits for site in self._sites.values())
        misses = sum(site.ring.known.misses for site in self._sites.values())
        return [
            ("ichibase_requests_in_flight", (), len(self.watch.in_flight)),
            ("ichibase_token_cache_hits_total", (), hits),
            ("ichibase_token_cache_misses_total", (), misses),
        ]
