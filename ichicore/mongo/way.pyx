"""The short way of documents: an operation that is one command goes from the HTTP server to the
document server and back without a task, a future or a layer in between.

Only requests without any peculiarity go this way; Way.handle says False of all others, which then
take the general way. Both give the same answers.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE

from ichicore.http.plain cimport body_length, numbered, plain_headers, verified
from ichicore.mongo.link cimport Dock, Link, Waiter
from ichicore.mongo.plain cimport Place, Ready

from ichicore.http import lenient as _lenient

cdef object kept_body = _lenient.body
cdef str BODY_HEADER = _lenient.BODY_HEADER

# Headers with which a request takes the general way.
cdef frozenset PECULIAR = frozenset((
    "cookie", "x-request-id", "transfer-encoding", "upgrade", "content-encoding", "expect",
))
cdef enum:
    MAX_PATH = 160
    MAX_HEADERS = 24
    LONGEST = 65536     # bytes of a body
    MOST_PATHS = 1024   # of one lane that are remembered
    SLOW = 1            # seconds from which a request may be worth a line in the log
MAX_BODY = LONGEST
cdef double GRACE = 2.0     # seconds beyond the time that the server itself was given
cdef double TURN = 3.0      # seconds that a request waits for a connection on this way


@cython.final
cdef class Lane:
    """What the way needs to know of one host. Replaced when the project changes.

    known: verified credentials, by the pair of headers, to objects with identity and until. denied:
    true when some tokens are refused before they expire. cors: (origin) -> headers of the answer;
    silent: those without an origin.
    tally: take(now) admits a request. guide: see server.mongo.short. dock: of the project's store.
    """

    cdef public object known
    cdef public object denied
    cdef public object cors
    cdef public tuple silent
    cdef public object tally
    cdef public object guide
    cdef public Dock dock
    cdef dict paths     # to a Place

    def __init__(self):
        self.paths = {}


@cython.final
cdef class Letter(Waiter):
    """A request on its way, and what waits for its body, a connection and the answer."""

    cdef Way way
    cdef Lane lane
    cdef object protocol
    cdef object scope
    cdef dict headers
    cdef object identity
    cdef Place place
    cdef bytes body
    cdef Ready ready        # what became of the request
    cdef Link link
    cdef double started
    cdef unsigned long long number
    cdef bint finished

    def __call__(self, given):
        """The body is there, or broke off. In the HTTP server's thread."""
        try:
            self.body = given.result()
        except Exception:
            self.body = b""
        self.begin()

    cdef int begin(self) except -1:
        """Sets out with the body that there is."""
        try:
            if (PyBytes_GET_SIZE(self.body) == <Py_ssize_t> int(self.headers["content-length"])
                    and self.set_out()):
                return 0
        except Exception:
            self.leave()
        self.way.resume(self.scope, self.protocol, self.body)
        return 0

    cdef bint set_out(self) except -1:
        """Sends the command. False when the request has to take the general way."""
        cdef Lane lane = self.lane
        cdef object found
        self.started = self.way.clock()
        if not lane.tally.take(self.started):
            return False
        try:
            self.ready = self.place.ready(self.identity, self.body)
            if self.ready is None:
                self.ready = lane.guide.prepare(self.place, self.body, self.identity)
        except Exception:
            self.ready = None  # the general way says what is wrong with it
        if self.ready is None:
            lane.tally.give_back()
            return False
        lane.dock.used = self.started
        self.deadline = self.started + TURN
        self.way.count += 1
        self.number = self.way.count
        self.way.in_flight[self] = (self.started, self, self.protocol)
        found = lane.dock.pop_or_queue(self)
        if found is None:
            if self.queued:
                return True
        elif type(found) is Link and self.turn(<Link> found):
            return True
        else:  # it is closed, or not of a kind that is used here
            self.way.loop.call_soon_threadsafe(lane.guide.give_back, found)
        self.leave()
        lane.tally.give_back()
        self.forget()
        return False

    cdef int forget(self) except -1:
        cdef Ready ready = self.ready
        self.ready = None
        if ready is not None and ready.session is not None:
            self.lane.guide.kept(ready.session)
        return 0

    cdef int leave(self) except -1:
        """It is no longer in flight."""
        self.finished = True
        self.way.in_flight.pop(self, None)
        if self.way.watchers:
            self.way.unwatch(self)
        return 0

    cdef bint turn(self, Link link) except -1:
        if self.finished:
            return False
        if not link.start(self.ready.command, self,
                          self.way.clock() + self.ready.seconds + GRACE):
            if self.queued:
                self.resume()
            return False
        self.link = link
        return True

    # In the loop's thread.

    def resume(self):
        """Takes the general way after all: nothing has been sent, or what was sent changed
        nothing."""
        if not self.finished:
            self.leave()
            self.lane.tally.give_back()
            self.forget()
            self.way.resume(self.scope, self.protocol, self.body)

    cdef int answered(self, Link link, bytes answer) except -1:
        cdef object made
        self.link = None
        if not self.lane.dock.take_back(link):
            self.lane.guide.give_back(link)
        if self.finished:
            return 0
        try:
            made = None if self.ready.read is None else self.ready.read.answer(answer)
            if made is None:
                made = self.lane.guide.answer(self.ready, answer)
        except Exception as error:
            return self.fail(error)
        if made is not None:
            return self.send(made)
        return self.rest(answer)

    cdef int broken(self, Link link, str reason) except -1:
        self.link = None
        self.lane.guide.give_back(link)
        if self.finished:
            return 0
        if not reason:
            return self.fail(TimeoutError())
        return self.rest(b"")

    cdef int rest(self, bytes answer) except -1:
        """What one command does not do: a read that was not answered is done anew on the general
        way, anything else is brought to its end."""
        if answer or self.ready.writes:
            self.lane.guide.conclude(self.ready, answer, self.send_made, self.failed)
        else:
            self.resume()
        return 0

    def send_made(self, bytes made):
        if not self.finished:
            self.send(made)

    def failed(self, error):
        if not self.finished:
            self.fail(error)

    cdef int send(self, bytes body) except -1:
        cdef object origin = self.headers.get("origin")
        cdef list headers
        try:
            headers = [
                ("content-type", "application/json"),
                ("x-request-id", numbered(self.way.prefix, self.number)),
                *(self.lane.silent if origin is None else self.lane.cors(origin)),
            ]
            self.protocol.response_bytes(200, headers, body)
            self.lane.tally.charge(len(body))
        except Exception as error:
            return self.fail(error)
        return self.finish(200)

    cdef int fail(self, error) except -1:
        cdef int status = 500
        try:
            status = self.way.failed(
                self.scope, self.protocol, self.headers, error, self.number, self.lane.guide)
        finally:
            self.finish(status)
        return 0

    cdef int finish(self, int status) except -1:
        cdef double seconds = self.way.clock() - self.started
        self.leave()
        self.way.observe(status, seconds)
        if status >= 500 or seconds >= SLOW:
            self.way.noted(self.scope, self.headers, self.number, status, seconds)
        return 0

    def cancel(self):
        """The client has left."""
        cdef Link link = self.link
        if not self.finished:
            self.finish(499)
            if link is not None:
                link.close()  # ends the operation on the server


@cython.final
cdef class Way:
    """One worker's short way of documents. lanes: by Host header. in_flight: shared with the
    general way; here by letter."""

    cdef public dict lanes
    cdef public dict in_flight
    cdef public dict watchers
    cdef public object unwatch
    cdef public object observe      # (status, seconds)
    cdef public object noted        # (scope, headers, number, status, seconds) of slow and failed
    cdef public object failed       # (scope, protocol, headers, error, number, guide): its status
    cdef public object resume       # (scope, protocol, body): goes on the general way; any thread
    cdef public object clock        # seconds of the monotonic clock
    cdef public object now          # epoch seconds
    cdef public object loop         # of the worker
    cdef readonly str prefix
    cdef unsigned long long count

    def __init__(self, str prefix):
        self.prefix = prefix
        self.lanes = {}

    def handle(self, scope, protocol, str path not None) -> bool:
        """Whether a request below /mongo/v1/ goes this way; if not, nothing has been done."""
        cdef Letter letter
        cdef Lane lane
        cdef dict headers
        cdef object known
        cdef Place place
        cdef Py_ssize_t length
        cdef str kept
        cdef bytes body
        if scope.method != "POST" or len(path) > MAX_PATH:
            return False
        headers = plain_headers(scope.headers, MAX_HEADERS)
        if headers is None:
            return False
        kept = headers.pop(BODY_HEADER, None)
        lane = self.lanes.get(headers.get("host"))
        if lane is None or scope.query_string:
            return False
        if not PECULIAR.isdisjoint(headers):
            return False
        apikey = headers.get("apikey")
        length = body_length(headers, LONGEST)
        if apikey is None or length < 0:
            return False
        known = verified(
            lane.known, lane.denied, (headers.get("authorization"), apikey), self.now())
        if known is None:
            return False
        place = lane.paths.get(path)
        if place is None:
            place = lane.guide.place(path)
            if place is None:
                return False
            if len(lane.paths) >= MOST_PATHS:
                lane.paths.clear()
            lane.paths[path] = place
        letter = Letter.__new__(Letter)
        letter.way = self
        letter.lane = lane
        letter.protocol = protocol
        letter.scope = scope
        letter.headers = headers
        letter.identity = known.identity
        letter.place = place
        if kept is not None:
            body = kept_body(kept)
            if body is not None and PyBytes_GET_SIZE(body) == length:
                letter.body = body
                letter.begin()
                return True
        protocol().add_done_callback(letter)
        return True
