"""The short way of plain reads and writes: a request whose plan is known goes from the HTTP server
to the database and back without a task, a future or a layer in between.

Only requests without any peculiarity go this way; `Express.handle` gives None for all others, which
then take the general way. Both give the same answers.
"""
cimport cython

from ichicore.http.plain cimport body_length, numbered, plain_headers, verified
from ichicore.pg.group cimport Group, Statement
from ichicore.pg.placing cimport Placing
from ichicore.http import lenient as _lenient
from ichicore.rest import payload as _payload
from ichicore.rest import shape as _shape
from ichicore.rest.sql cimport bind

cdef object scan = _shape.scan
cdef object look_into = _payload.scan
cdef object kept_body = _lenient.body
cdef str BODY_HEADER = _lenient.BODY_HEADER

# Headers with which a request takes the general way.
PECULIAR = frozenset((
    "range", "cookie", "x-request-id", "transfer-encoding", "upgrade", "content-encoding", "expect",
))
cdef str DOCUMENTS = "/mongo/v1/"
cdef str CALL = "rpc/"
cdef dict ACTIONS = {"POST": "insert", "PATCH": "update", "DELETE": "delete"}
cdef enum:
    MAX_URL = 8192
    MAX_HEADERS = 24
    MAX_BODY = 65536
    SLOW = 1  # seconds from which a request may be worth a line in the log


cdef long long EACH = 131072
cdef double DEBT = 5.0  # seconds in which a project pays for what it got, at most


@cython.final
cdef class Tally:
    """Requests of one project in this worker, and how many more it may make now.

    count: since the last drain. rate: requests a second that may go on for ever, 0 for any number;
    up to `burst` may come at once.
    """

    cdef public long long count
    cdef readonly double rate
    cdef readonly double burst
    cdef double tokens
    cdef double last

    def limit(self, double rate, double burst):
        """Other numbers from now on. Tokens that are there stay."""
        if rate != self.rate or burst != self.burst:
            self.tokens = min(self.tokens, burst) if self.rate else burst
            self.rate = rate
            self.burst = burst

    cpdef bint take(self, double now):
        """Whether a request at `now` (seconds of a monotonic clock) may go on; counts it if so."""
        if self.rate:
            if now > self.last:
                self.tokens = min(self.burst, self.tokens + (now - self.last) * self.rate)
            self.last = now
            if self.tokens < 1:
                return False
            self.tokens -= 1
        self.count += 1
        return True

    cpdef charge(self, long long size):
        """An answer of so many bytes counts as so many requests more, of `EACH` bytes."""
        if self.rate and size > EACH:
            self.tokens = max(self.tokens - <double> size / EACH, -DEBT * self.rate)

    cpdef give_back(self):
        """A request that was taken is to be asked for again."""
        self.count -= 1
        if self.rate:
            self.tokens += 1

    def wait(self):
        """Seconds until the next request may go on."""
        return 0.0 if not self.rate or self.tokens >= 1 else (1 - self.tokens) / self.rate

    def drain(self):
        """The count, which begins anew."""
        cdef long long found = self.count
        self.count = 0
        return found


@cython.final
cdef class Lane:
    """What the way needs to know of one host. Replaced when the project or its catalog changes.

    known: verified credentials, by Authorization header, to objects with identity and until; where
    keyed, those of requests with an apikey header by the pair of both.
    nobody: such an object for requests without them, None when the general way decides.
    cors: (origin) -> headers of the answer to a request from it, None when that way decides.
    denied: true when some tokens are refused before they expire. plans: by the engine's keys.
    """

    cdef public object known
    cdef public object nobody
    cdef public object denied
    cdef public object cors
    cdef public bint keyed
    cdef public object plans
    cdef public object preface      # (plan, role) -> (statement, before, after), None: general way
    cdef public object submit       # (group, waiter, slow) hands a group to the pool
    cdef public Placing placing     # the same from another thread, for quick groups
    cdef public object leave        # (group) gives a group up
    cdef public str base_path
    cdef public tuple extra         # headers that every answer without an Origin carries
    cdef public object rest         # whose `used` is set, so that the project stays awake
    cdef public object engine       # whose `generation` must be the one of `plans`
    cdef public object generation
    cdef public Tally tally
    cdef public bint writes         # the project's state lets them pass


@cython.final
@cython.freelist(64)
cdef class Ticket:
    """A request on its way: the executor's waiter and what the HTTP server awaits."""

    cdef object protocol
    cdef object scope
    cdef object identity
    cdef str method
    cdef object callback
    cdef Group group
    cdef object plan
    cdef object headers
    cdef str query
    cdef str path
    cdef str kept                   # what the header says of a body that is kept
    cdef tuple extra                # headers of the answer that depend on the origin
    cdef Express express
    cdef Lane lane
    cdef double started
    cdef unsigned long long number
    cdef Py_ssize_t offset
    cdef bint finished
    cdef public bint _asyncio_future_blocking

    # The executor's side.

    def done(self):
        return self.finished

    def set_result(self, list results):
        cdef object plan = self.plan
        cdef object result, body
        cdef Py_ssize_t rows
        cdef list headers
        cdef str location
        cdef object query
        if self.finished:
            return
        if not plan.quick:
            plan.took(self.express.clock() - self.started)
        if not plan.plain:
            self.answered(results)
            return
        if plan.action != "read":
            if plan.constant is None:
                self.answered(results)
                return
            headers = self.express.sealed(list(plan.constant[1]), self)
            self.protocol.response_bytes(plan.constant[0], headers, b"")
            self.finish(plan.constant[0])
            return
        result = results[1]
        body = result.body
        if type(body) is not bytes:
            self.answered(results)
            return
        rows = result.rows
        location = self.lane.base_path + self.path
        query = self.express.canonical(self.query.encode())
        if query:
            location = f"{location}?{query}"
        headers = [
            ("content-range", f"{self.offset}-{self.offset + rows - 1}/*" if rows else "*/*"),
            ("content-location", location),
            ("content-type", plan.media.content_type),
        ]
        if plan.profile is not None:
            headers.append(("content-profile", plan.profile))
        self.protocol.response_bytes(200, self.express.sealed(headers, self), body)
        self.lane.tally.charge(len(body))
        self.finish(200)

    cdef int answered(self, list results) except -1:
        """Has others make the answer."""
        try:
            status = self.express.answered(self.scope, self.protocol, self.headers, self.plan,
                                           results, self.query, self.lane.base_path, self.number,
                                           self.offset)
        except Exception as error:
            self.set_exception(error)
            return 0
        self.finish(status)
        return 0

    def set_exception(self, error):
        if self.finished:
            return
        self.finish(self.express.failed(self.scope, self.protocol, self.headers, error,
                                        self.number, self.group.role))

    # The HTTP server's side.

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.finished:
            raise StopIteration
        self._asyncio_future_blocking = True
        return self

    def add_done_callback(self, callback, *, context=None):
        """For the one task that awaits this. It is called at once when the answer is sent, not in
        a later turn of the loop: nothing else runs in between that it could disturb."""
        if self.finished:
            callback(self)
        else:
            self.callback = callback

    def get_loop(self):
        return self.express.loop

    def result(self):
        return None

    def cancel(self):
        """The client has left."""
        if not self.finished:
            self.lane.leave(self.group)
            self.finish(499)

    cdef finish(self, int status):
        self.finished = True
        self.express.in_flight.pop(-<long long> self.number, None)
        if self.express.watchers:
            self.express.unwatch(-<long long> self.number)
        cdef double seconds = self.express.clock() - self.started
        self.express.observe(status, seconds)
        if status >= 500 or seconds >= SLOW:
            self.express.noted(self.scope, self.headers, self.number, status, seconds)
        callback = self.callback
        if callback is not None:
            self.callback = None
            callback(self)


cdef inline bint quick(plan) except -1:
    """Whether a plan's statements may stand before others on a connection."""
    return plan.quick or plan.proven_quick


@cython.final
cdef class Express:
    """One worker's short way. lanes: by Host header. in_flight: minus number to (started, ticket,
    protocol), shared with the general way, whose numbers are positive and which watches for clients
    that leave.

    prefix: of the ids that answers carry, "" for none. mount: what the paths of relations begin
    with. peculiar: names of headers with which a request takes the general way.
    """

    cdef public dict lanes
    cdef public dict in_flight
    cdef public dict watchers       # who watches for a client that leaves, by number
    cdef public object unwatch
    cdef public object observe      # (status, seconds)
    cdef public object noted        # (scope, headers, number, status, seconds) of slow and failed
    cdef public object failed       # (scope, protocol, headers, error, number, role): its status
    cdef public object answered     # makes an answer that is not made here: its status
    cdef public object resume       # (scope, protocol, body): a write goes on the general way
    cdef public object page         # (plan, values): limit or None, and offset
    cdef public object canonical    # query string -> the one of Content-Location
    cdef public object clock        # seconds, for durations
    cdef public object now          # epoch seconds
    cdef public object loop         # of the worker; a task that awaits a ticket asks for it
    cdef public object dumps        # JSON of a dict of headers
    cdef readonly str prefix
    cdef readonly str mount
    cdef public frozenset peculiar
    cdef unsigned long long count

    def __init__(self, str prefix, str mount="/postgres/", frozenset peculiar=PECULIAR):
        self.prefix = prefix
        self.mount = mount
        self.peculiar = peculiar
        self.lanes = {}

    cdef list sealed(self, list headers, Ticket ticket):
        """The headers of an answer, with its id and what its lane adds."""
        if self.prefix:
            headers.append(("x-request-id", numbered(self.prefix, ticket.number)))
        headers.extend(ticket.extra)
        return headers

    def handle(self, scope, protocol):
        """A ticket to await, or None when the request has to take the general way."""
        cdef Ticket ticket
        if scope.method != "GET":
            return None
        ticket = self.ticket(scope, protocol, "GET", scope.path)
        if ticket is None or not self.fits(ticket, None) or not self.enter(ticket):
            return None
        try:
            ticket.lane.submit(ticket.group, ticket, not quick(ticket.plan))
        except Exception as error:
            ticket.set_exception(error)
        return ticket

    cdef bint direct(self, scope, protocol, str path) except -1:
        """Serves a request from another thread than the loop's; false when it has to come to the
        loop, with nothing done."""
        cdef Ticket ticket
        cdef str method = scope.method
        cdef bytes body
        if method == "GET":
            ticket = self.ticket(scope, protocol, method, path)
            return ticket is not None and self.fits(ticket, None) and self.send(ticket)
        if method not in ACTIONS:
            return False
        ticket = self.ticket(scope, protocol, method, path)
        if ticket is None or not ticket.lane.writes:
            return False
        if method == "DELETE":
            return "content-length" not in ticket.headers and self.fits(ticket, None) \
                and self.send(ticket)
        if ticket.headers.get("content-type") not in ("application/json",
                                                      "application/json; charset=utf-8"):
            return False
        if body_length(ticket.headers, MAX_BODY) < 0:
            return False
        if ticket.kept is not None:
            body = kept_body(ticket.kept)
            if body is not None:
                return len(body) == int(ticket.headers["content-length"]) and \
                    self.fits(ticket, body) and self.send(ticket)
        protocol().add_done_callback(ticket)  # comes back by Handover, in this thread
        return True

    cdef int arrived(self, Ticket ticket, given) except -1:
        """The body of a write is there, or broke off."""
        cdef bytes body
        try:
            body = given.result()
        except Exception:
            body = b""
        if len(body) != int(ticket.headers["content-length"]) or not self.fits(ticket, body) \
                or not self.send(ticket):
            self.resume(ticket.scope, ticket.protocol, body)
        return 0

    cdef bint send(self, Ticket ticket) except -1:
        """Hands a ticket's group to a connection. False when it cannot be now."""
        if not quick(ticket.plan) or not self.enter(ticket):
            return False
        ticket.group._waiter = ticket
        try:
            if ticket.lane.placing.put(ticket.group, ticket.started):
                return True
        except Exception as error:
            ticket.set_exception(error)
            return True
        self.in_flight.pop(-<long long> ticket.number, None)
        ticket.lane.tally.give_back()
        return False

    cdef bint enter(self, Ticket ticket) except -1:
        """Counts a request in; false when the project has had its share, which the general way
        says."""
        ticket.started = self.clock()
        if not ticket.lane.tally.take(ticket.started):
            return False
        self.count += 1
        ticket.number = self.count
        self.in_flight[-<long long> ticket.number] = (ticket.started, ticket, ticket.protocol)
        ticket.lane.rest.used = ticket.started
        return True

    cdef Ticket ticket(self, scope, protocol, str method, str path):
        """Who asks where, or None when the request is not for the short way."""
        cdef Lane lane
        cdef Ticket ticket
        cdef str query
        cdef dict headers
        cdef object known
        cdef str kept, origin, apikey = None
        cdef tuple extra
        cdef bint reads = method == "GET"
        if not path.startswith(self.mount):
            return None
        headers = plain_headers(scope.headers, MAX_HEADERS)
        if headers is None:
            return None
        kept = None if reads else headers.pop(BODY_HEADER, None)
        lane = self.lanes.get(headers.get("host"))
        if lane is None or lane.engine.generation is not lane.generation:
            return None
        if not self.peculiar.isdisjoint(headers) or (reads and "content-length" in headers):
            return None
        origin = headers.get("origin")
        if origin is None:
            extra = lane.extra
        elif lane.cors is None:
            return None
        else:
            extra = lane.cors(origin)
        authorization = headers.get("authorization")
        if lane.keyed:
            apikey = headers.get("apikey")
        if apikey is not None:
            known = verified(lane.known, lane.denied, (authorization, apikey), self.now())
        elif authorization is not None:
            known = verified(lane.known, lane.denied, authorization, self.now())
        else:
            known = lane.nobody
        if known is None:
            return None
        query = scope.query_string
        path = path[len(self.mount) - 1:]
        if len(query) + len(path) > MAX_URL:
            return None
        ticket = Ticket.__new__(Ticket)
        ticket.protocol = protocol
        ticket.scope = scope
        ticket.method = method
        ticket.headers = headers
        ticket.identity = known.identity
        ticket.query = query
        ticket.path = path
        ticket.kept = kept
        ticket.extra = extra
        ticket.express = self
        ticket.lane = lane
        return ticket

    cdef bint fits(self, Ticket ticket, bytes body) except -1:
        """Gives a ticket what it takes to read or write. False when it has to take the general
        way, also for what is wrong with it, which that way says."""
        try:
            return self.read(ticket) if ticket.method == "GET" else self.write(ticket, body)
        except Exception:
            return False

    cdef bint read(self, Ticket ticket) except -1:
        """Gives a ticket what it takes to read; false when it has to take the general way."""
        cdef str name = ticket.path[1:]
        cdef dict headers = ticket.headers
        cdef bint calls = name.startswith(CALL)
        if calls and not ticket.lane.writes:
            return False  # the general way says why one that writes may not
        scanned = scan(ticket.query.encode(), rpc=calls)
        if scanned is None:
            return False
        if calls:
            key = (
                "GET", "rpc", name[4:], headers.get("accept-profile"), headers.get("accept"),
                headers.get("prefer"), headers.get("content-type"), False, (), True, scanned[0],
            )
        else:
            key = (
                False, name, headers.get("accept-profile"), headers.get("accept"),
                headers.get("prefer"), False, scanned[0],
            )
        plan = ticket.lane.plans.get(key)
        return plan is not None and plan.express and self.group(ticket, plan, scanned[1], None)

    cdef bint write(self, Ticket ticket, bytes body) except -1:
        """The same for a write. body: None for a DELETE."""
        cdef tuple names = ()
        cdef bint is_object = True
        cdef bytes query = ticket.query.encode()
        cdef dict headers = ticket.headers
        cdef str name = ticket.path[1:]
        cdef bint calls = name.startswith(CALL)
        if calls and ticket.method != "POST":
            return False
        scanned = scan(query, mutation=not calls)
        if scanned is None or b"columns=" in query:
            return False
        if body is not None:
            found = look_into(body)
            if found is None or found[0] == "scalar" or not found[2]:
                return False
            names = tuple(sorted(found[1]))
            is_object = found[0] == "object"
        if calls:
            key = (
                "POST", "rpc", name[4:], headers.get("content-profile"), headers.get("accept"),
                headers.get("prefer"), headers.get("content-type"), False, names, is_object,
                scanned[0],
            )
        else:
            key = (
                ACTIONS[ticket.method], name, headers.get("content-profile"),
                headers.get("accept"), headers.get("prefer"), names, is_object, scanned[0],
            )
        plan = ticket.lane.plans.get(key)
        return plan is not None and plan.express and self.group(ticket, plan, scanned[1], body)

    cdef bint group(self, Ticket ticket, plan, list values, bytes body) except -1:
        """Makes a ticket's statements."""
        cdef object made, limit = None, offset = 0
        cdef str role = ticket.identity.role
        cdef Group group
        made = (<dict> plan.openings).get(role, False)
        if made is False:
            made = ticket.lane.preface(plan, role)
            (<dict> plan.openings)[role] = made
        if made is None:
            return False
        if plan.ranged:
            limit, offset = self.page(plan, values)
            ticket.offset = offset
        group = Group(role)
        group.add(<Statement> made[0], (
            *made[1], role.encode(), ticket.identity.claims_json, ticket.method.encode(),
            ticket.path.encode(), self.dumps(ticket.headers), b"{}", *made[2],
        ))
        group.add(plan.main, bind(plan.layout, values, body, limit, offset))
        if not plan.plain:
            for more in (plan.count, plan.estimate):
                if more is not None:
                    group.add(<Statement> more[0], bind(more[1], values, body, limit, offset))
            for more in plan.tail:
                group.add(<Statement> more, ())
        group.main = 1
        ticket.group = group
        ticket.plan = plan
        return True


@cython.final
cdef class Handover:
    """Stands in for the call_soon_threadsafe of a loop, by which the HTTP server tells it of each
    request from a thread of its own: what the short way can serve is served there and then, without
    waking the loop.

    soon: the loop's own. way: None until the application serves. other: another short way, called
    with scope and protocol of what the first does not take; None when it does not take it either.
    documents: the one of requests below DOCUMENTS, called with their path as well; whether it
    takes one.
    here: types of callbacks for what the HTTP server gives, which are called in the thread that
    tells the loop of it, without waking the loop; they must not raise. kind: name of the type of
    the HTTP server's object with a request's scope and proto.
    """

    cdef object soon
    cdef public Express way
    cdef public object other
    cdef public object documents
    cdef public set here
    cdef str kind
    cdef type watcher               # the type, once seen

    def __init__(self, soon, str kind):
        self.soon = soon
        self.kind = kind
        self.here = set()

    def __call__(self, callback, *args, context=None):
        cdef object told
        if type(callback) is Ticket:
            (<Ticket> callback).express.arrived(<Ticket> callback, args[0])
            return None
        if type(callback) in self.here:
            callback(args[0])
            return None
        if self.way is not None and len(args) == 2:
            told = args[1]
            if self.watcher is None and type(told).__name__ == self.kind:
                self.watcher = type(told)
            if type(told) is self.watcher and self.taken(told.scope, told.proto):
                args[0].close()  # the coroutine that would have served it
                return None
        return self.soon(callback, *args, context=context)

    cdef bint taken(self, scope, protocol) except -1:
        cdef str path = scope.path
        if self.documents is not None and path.startswith(DOCUMENTS):
            return self.documents(scope, protocol, path)
        if self.way.direct(scope, protocol, path):
            return True
        return self.other is not None and self.other(scope, protocol) is not None
