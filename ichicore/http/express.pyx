"""The short way of a plain read: a request whose plan is known goes from the HTTP server to the
database and back without a task, a future or a layer in between.

Only requests without any peculiarity go this way; `Express.handle` gives None for all others, which
then take the general way. Both give the same answers.
"""
cimport cython

from ichicore.pg.group cimport Group, Statement
from ichicore.pg.placing cimport Placing
from ichicore.rest import shape as _shape
from ichicore.rest.sql cimport bind

cdef object scan = _shape.scan

# Headers with which a request takes the general way.
cdef frozenset PECULIAR = frozenset((
    "origin", "prefer", "range", "apikey", "cookie", "accept-profile", "x-request-id",
    "content-length", "transfer-encoding", "upgrade",
))
cdef enum:
    MAX_URL = 8192
    MAX_HEADERS = 24
    SLOW = 1  # seconds from which a request may be worth a line in the log


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

    cdef int give_back(self) except -1:
        """A request that was taken is to be asked for again."""
        self.count -= 1
        if self.rate:
            self.tokens += 1
        return 0

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

    known: verified credentials, by Authorization header, to objects with identity and until.
    denied: true when some tokens are refused before they expire. plans: by the engine's keys.
    """

    cdef public object known
    cdef public object denied
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


@cython.final
@cython.freelist(64)
cdef class Ticket:
    """A request on its way: the executor's waiter and what the HTTP server awaits."""

    cdef object protocol
    cdef object scope
    cdef object callback
    cdef Group group
    cdef object plan
    cdef object headers
    cdef str query
    cdef str path
    cdef Express express
    cdef Lane lane
    cdef double started
    cdef unsigned long long number
    cdef bint finished
    cdef public bint _asyncio_future_blocking

    # The executor's side.

    def done(self):
        return self.finished

    def set_result(self, list results):
        cdef object result = results[len(results) - 1]
        cdef object body = result.body
        cdef Py_ssize_t rows
        cdef list headers
        cdef str location
        cdef object query
        if self.finished:
            return
        if type(body) is not bytes:
            self.express.spooled(self.scope, self.protocol, self.headers, self.plan, result,
                                 self.query, self.lane.base_path, self.number)
            self.finish(200)
            return
        rows = result.rows
        location = self.lane.base_path + self.path
        query = self.express.canonical(self.query.encode())
        if query:
            location = f"{location}?{query}"
        headers = [
            ("content-range", f"0-{rows - 1}/*" if rows else "*/*"),
            ("content-location", location),
            ("content-type", self.plan.media.content_type),
            ("x-request-id", self.express.prefix + "%08x" % self.number),
            *self.lane.extra,
        ]
        self.protocol.response_bytes(200, headers, body)
        self.finish(200)

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


@cython.final
cdef class Express:
    """One worker's short way. lanes: by Host header. in_flight: minus number to (started, ticket,
    protocol), shared with the general way, whose numbers are positive and which watches for clients
    that leave."""

    cdef public dict lanes
    cdef public dict in_flight
    cdef public dict watchers       # who watches for a client that leaves, by number
    cdef public object unwatch
    cdef public object observe      # (status, seconds)
    cdef public object noted        # (scope, headers, number, status, seconds) of slow and failed
    cdef public object failed       # (scope, protocol, headers, error, number, role): its status
    cdef public object spooled      # answers with a large body
    cdef public object canonical    # query string -> the one of Content-Location
    cdef public object clock        # seconds, for durations
    cdef public object now          # epoch seconds
    cdef public object loop         # of the worker; a task that awaits a ticket asks for it
    cdef public object dumps        # JSON of a dict of headers
    cdef readonly str prefix
    cdef unsigned long long count

    def __init__(self, str prefix):
        self.prefix = prefix
        self.lanes = {}

    def handle(self, scope, protocol):
        """A ticket to await, or None when the request has to take the general way."""
        cdef Ticket ticket = self.ticket(scope, protocol)
        if ticket is None or not self.enter(ticket):
            return None
        try:
            ticket.lane.submit(ticket.group, ticket, not ticket.plan.quick)
        except Exception as error:
            ticket.set_exception(error)
        return ticket

    cdef bint direct(self, scope, protocol) except -1:
        """Serves a request from another thread than the loop's; false when it has to come to the
        loop, with nothing done."""
        cdef Ticket ticket = self.ticket(scope, protocol)
        if ticket is None or not ticket.plan.quick:
            return False
        if not self.enter(ticket):
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

    cdef Ticket ticket(self, scope, protocol):
        """What a request asks, or None when it is not for the short way."""
        cdef Lane lane
        cdef Ticket ticket
        cdef Group group
        cdef str path, query
        cdef dict headers
        cdef list items
        cdef object known, plan, made, role, identity
        if scope.method != "GET":
            return None
        path = scope.path
        if not path.startswith("/postgres/"):
            return None
        raw = scope.headers
        items = raw.items()
        headers = dict(items)
        # as many names as pairs: none comes twice, and none has a value that is not ASCII, which
        # the server leaves out
        if len(headers) != len(items) or len(headers) != len(raw) or len(items) > MAX_HEADERS:
            return None
        lane = self.lanes.get(headers.get("host"))
        if lane is None or lane.denied or lane.engine.generation is not lane.generation:
            return None
        for name in headers:
            if name in PECULIAR:
                return None
        authorization = headers.get("authorization")
        if authorization is None:
            return None
        known = lane.known.get(authorization)
        if known is None or self.now() >= known.until:
            return None
        query = scope.query_string
        path = path[9:]
        if len(query) + len(path) > MAX_URL:
            return None
        scanned = scan(query.encode())
        if scanned is None:
            return None
        plan = lane.plans.get(
            (False, path[1:], None, headers.get("accept"), None, False, scanned[0])
        )
        if plan is None or not plan.express:
            return None
        identity = known.identity
        role = identity.role
        made = (<dict> plan.openings).get(role, False)
        if made is False:
            made = lane.preface(plan, role)
            (<dict> plan.openings)[role] = made
        if made is None:
            return None
        group = Group(role)
        group.add(<Statement> made[0], (
            *made[1], role.encode(), identity.claims_json, b"GET", path.encode(),
            self.dumps(headers), b"{}", *made[2],
        ))
        group.add(plan.main, bind(plan.layout, scanned[1], None, None, 0))
        ticket = Ticket.__new__(Ticket)
        ticket.protocol = protocol
        ticket.scope = scope
        ticket.group = group
        ticket.plan = plan
        ticket.headers = headers
        ticket.query = query
        ticket.path = path
        ticket.express = self
        ticket.lane = lane
        return ticket


@cython.final
cdef class Handover:
    """Stands in for the call_soon_threadsafe of a loop, by which the HTTP server tells it of each
    request from a thread of its own: what the short way can serve is served there and then, without
    waking the loop.

    soon: the loop's own. way: None until the application serves. kind: name of the type of the
    HTTP server's object with a request's scope and proto.
    """

    cdef object soon
    cdef public Express way
    cdef str kind
    cdef type watcher               # the type, once seen

    def __init__(self, soon, str kind):
        self.soon = soon
        self.kind = kind

    def __call__(self, callback, *args, context=None):
        cdef object told
        if self.way is not None and len(args) == 2:
            told = args[1]
            if self.watcher is None and type(told).__name__ == self.kind:
                self.watcher = type(told)
            if type(told) is self.watcher and self.way.direct(told.scope, told.proto):
                args[0].close()  # the coroutine that would have served it
                return None
        return self.soon(callback, *args, context=context)
