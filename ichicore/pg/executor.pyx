# distutils: libraries = pq
"""Groups of statements over one libpq connection in pipeline mode.

A group is its statements and one sync, which the server takes as one implicit transaction. The
order of the syncs pairs results with groups: commands are queued in a ring as they are sent and
leave it as libpq reports their ends, so a result can only reach the group at the ring's head. A
result that fits no command closes the connection.

No sockets, clocks or event loop in here: the owner watches the descriptor and calls `on_readable`
and `on_writable`, and gives times where they matter.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

from ichicore.pg.body cimport Body, unwritable
from ichicore.pg.describe cimport TYPE_QUERY, columns_of, describe, learn_types, unknown_types
from ichicore.pg.fields cimport error_of, is_stale, number, text_or_none
from ichicore.pg.libpq cimport (
    CONNECTION_BAD, CONNECTION_OK, ICHI_TUPLES_CHUNK, PGRES_COPY_BOTH, PGRES_COPY_IN,
    PGRES_COPY_OUT, PGRES_FATAL_ERROR, PGRES_PIPELINE_ABORTED, PGRES_PIPELINE_SYNC,
    PGRES_SINGLE_TUPLE, PJ_BYTEA, PJ_DOCUMENT, PJ_FLOAT, PJ_INTERVAL, PJ_ZONE, PQTRANS_IDLE,
    PGconn, PGresult, PQbackendPID, PQcancel, PQclear, PQcmdStatus, PQcmdTuples, PQconsumeInput,
    PQenterPipelineMode, PQerrorMessage, PQflush, PQfname, PQfreeCancel, PQftype, PQgetCancel,
    PQgetResult, PQgetisnull, PQgetlength, PQgetvalue, PQisBusy, PQlibVersion, PQnfields,
    PQntuples, PQparameterStatus, PQresultStatus, PQsendDescribePrepared, PQsendFlushRequest,
    PQsendPrepare, PQsendQueryParams, PQsendQueryPrepared, PQserverVersion, PQsetnonblocking,
    PQsocket, PQstatus, PQtransactionStatus, ichi_incremental, ichi_sync,
)
from ichicore.pg.group cimport (
    MODE_JSON, MODE_VALUES, Described, Group, Result, Shared, Statement,
)
from ichicore.pg.prepared cimport Prepared, PreparedCache
from ichicore.pg.ring cimport (
    CMD_DESCRIBE, CMD_EXECUTE, CMD_PREPARE, CMD_SYNC, CMD_TYPES, Command, Ring,
)
from ichicore.rest.rows cimport RowFormat, TypeTable

from collections import deque

from ichicore.pg.errors import PgError, PgUnavailable
from ichicore.pg import group as _group

# Users of the executor find what they hand to it here too.
for _name in ("NONE", "JSON", "VALUES", "Statement", "Group", "Result", "Shared"):
    globals()[_name] = getattr(_group, _name)

cdef enum:
    CHUNK_ROWS = 256
    INLINE_PARAMS = 32
    ROOM_TRIES = 20  # of a group that found the server's table of locks full

# A statement whose bodies have stayed below this is read as a whole result, which is cheaper.
cdef Py_ssize_t WHOLE_BELOW = 1 << 20

# Seconds of work after which a group that found it full may be the one that has filled it.
cdef double ROOM_BRIEF = 0.05

def check_library(int version):
    """RuntimeError when `version` (psycopg.pq.version()) is not the libpq linked here: two copies
    of the library in one process cannot share a connection."""
    if PQlibVersion() != version:
        raise RuntimeError(
            f"psycopg uses libpq {version}, the executor is linked with {PQlibVersion()}: "
            "install psycopg[c], which uses the system's library"
        )


@cython.final
cdef class Cancel:
    """A cancel request for whatever the connection's server process is running."""

    def __dealloc__(self):
        if self._cancel is not NULL:
            PQfreeCancel(self._cancel)

    def send(self) -> bool:
        """Asks the server over a connection of its own and waits until it has heard: blocking,
        for a thread. False when it could not be reached."""
        cdef char error[256]
        cdef int ok
        if self._cancel is NULL:
            return False
        with nogil:
            ok = PQcancel(self._cancel, error, sizeof(error))
        return ok != 0


@cython.final
cdef class Executor:
    """Drives the open libpq connection at `address` (psycopg's PGconn.pgconn_ptr), which stays
    open for as long as this object may be used; `detach` it before closing.

    shared: the pool's knowledge. spool: called without arguments for a file-like object with
    write(bytes) when a body grows large. limit: prepared statements kept on the connection.
    plain_settings: bytea_output and extra_float_digits have their defaults.
    """


    def __cinit__(self, uintptr_t address, Shared shared not None, object spool, *,
                  int limit=500, bint plain_settings=True):
        self._conn = <PGconn *> address
        self.shared = shared
        self._body = Body(spool)
        self._statements = PreparedCache(limit)
        self._groups = deque()
        self.retry = []
        self._ring = Ring()
        if PQstatus(self._conn) != CONNECTION_OK:
            raise ValueError("the connection is not open")
        if PQsetnonblocking(self._conn, 1) or not PQenterPipelineMode(self._conn):
            raise ValueError(self._message())
        self._defaults = PJ_DOCUMENT
        if plain_settings:
            self._defaults |= PJ_BYTEA | PJ_FLOAT
        if self._parameter(b"TimeZone").upper() in (b"UTC", b"ETC/UTC", b"GMT", b"ETC/GMT"):
            self._defaults |= PJ_ZONE
        if self._parameter(b"IntervalStyle") == b"postgres":
            self._defaults |= PJ_INTERVAL

    cdef bytes _parameter(self, bytes name):
        cdef const char *value = PQparameterStatus(self._conn, PyBytes_AS_STRING(name))
        return b"" if value is NULL else <bytes> value

    cdef str _message(self):
        cdef str text = text_or_none(PQerrorMessage(self._conn))
        return " ".join((text or "connection lost").split())

    @property
    def server_version(self):
        return PQserverVersion(self._conn) if self._conn is not NULL else 0

    @property
    def backend_pid(self):
        return PQbackendPID(self._conn) if self._conn is not NULL else 0

    @property
    def fileno(self):
        return PQsocket(self._conn) if self._conn is not NULL else -1

    @property
    def prepared_count(self):
        return len(self._statements.known)

    @property
    def in_transaction(self):
        """Whether an explicit transaction is open (meaningful while nothing is in flight)."""
        return self._conn is not NULL and PQtransactionStatus(self._conn) != PQTRANS_IDLE

    @property
    def paused(self):
        """Half of a group has been sent and its description is awaited: send nothing else."""
        return self._paused is not None

    @property
    def free(self):
        """Whether a group of anyone may be submitted now."""
        return self._takes()

    cdef bint _takes(self):
        return not (self.lost or self.exclusive or self.cancelling or self.closing
                    or self._paused is not None)

    @property
    def head(self):
        """The group the server is working on, None when idle."""
        return self._groups[0] if self._groups else None

    @property
    def groups(self):
        return list(self._groups)

    # --- sending ---------------------------------------------------------------------------------

    cpdef submit(self, Group group, double now):
        """Sends a group. `group.waiter` gets the list of results or the error, later and from
        within on_readable; PgError is raised here for parameters that cannot be sent."""
        if self.lost or self._paused is not None:
            raise PgUnavailable("the connection cannot take a group")
        group.check()
        group.sent_at = now
        group.cancels_seen = self.cancels
        self._inside = True
        try:
            if self._statements.garbage:
                self._drop_garbage()
            self._groups.append(group)
            self.depth += 1
            if group.slow:
                self.slow_depth += 1
            if group.writes():
                self.writes += 1
            if not self._send(group):
                self._fail(self._message())
        finally:
            self._inside = False

    cdef bint _send(self, Group group) except -1:
        """Sends what can be sent of a group; false when libpq refuses. Pauses the connection when
        a statement has to be described first."""
        cdef int count = <int> len(group.statements)
        cdef Statement statement
        cdef Described described
        cdef Prepared prepared
        cdef unsigned int defaults = self._defaults if group._plain else PJ_DOCUMENT
        cdef bytes text
        cdef tuple key
        while group._next < count:
            statement = <Statement> group.statements[group._next]
            described = None
            text = statement._text
            if statement.result == MODE_JSON:
                described = self.shared.described.get(
                    (statement.sql, (defaults << 1) | statement.strip_nulls))
                if described is None:
                    return self._probe(group, statement)
                text = described.text
            key = (statement.sql, group.role if statement.per_role else None,
                   0 if described is None else (1 + defaults) * 2 + statement.strip_nulls)
            prepared = self._statements.find(key, group._prepared)
            if prepared is None:
                prepared = self._prepare(key, text, group, group._next)
                if prepared is None:
                    return False
            self._statements.touch(prepared)
            prepared.described = described
            group._prepared.append(prepared)
            if not self._execute(group, group._next, prepared.name,
                                 statement.result == MODE_JSON):
                return False
            self._ring.push(CMD_EXECUTE, group._next, group, prepared)
            group._next += 1
        if not ichi_sync(self._conn):
            return False
        self._ring.push(CMD_SYNC, 0, group, None)
        return self._flush()

    cdef Prepared _prepare(self, tuple key, bytes text, Group group, int index):
        """Sends a Parse; None when libpq refuses."""
        cdef Prepared prepared = self._statements.make(key)
        if not PQsendPrepare(self._conn, PyBytes_AS_STRING(prepared.name), PyBytes_AS_STRING(text),
                             0, NULL):
            return None
        self._statements.keep(prepared)
        group._prepared.append(prepared)
        self._ring.push(CMD_PREPARE, index, group, prepared)
        return prepared

    cdef _drop_garbage(self):
        """A group of our own: within another's it would be skipped after an error."""
        cdef bytes text
        for name in self._statements.garbage:
            text = b"deallocate " + <bytes> name
            if not PQsendQueryParams(self._conn, PyBytes_AS_STRING(text), 0, NULL, NULL, NULL,
                                     NULL, 0):
                return
            self._ring.push(CMD_EXECUTE, 0, None, None)
            # each with its own sync: one that is gone already must not keep the others
            if not ichi_sync(self._conn):
                return
            self._ring.push(CMD_SYNC, 0, None, None)
        self._statements.garbage = []

    cdef bint _execute(self, Group group, int index, bytes name, bint binary) except -1:
        cdef tuple params = <tuple> group._params[index]
        cdef int n = <int> len(params)
        cdef const char *few[INLINE_PARAMS]
        cdef const char **values = few
        cdef int i, ok
        if n > INLINE_PARAMS:
            values = <const char **> malloc(n * sizeof(char *))
            if values is NULL:
                raise MemoryError
        for i in range(n):
            param = params[i]
            values[i] = NULL if param is None else PyBytes_AS_STRING(param)
        ok = PQsendQueryPrepared(self._conn, PyBytes_AS_STRING(name), n, values, NULL, NULL,
                                 binary)
        if n > INLINE_PARAMS:
            free(values)
        return ok != 0

    cdef bint _probe(self, Group group, Statement statement) except -1:
        """Prepares and describes a statement and has the server answer before the sync, so that
        the group stays one transaction and its earlier statements run only once."""
        cdef tuple key = (statement.sql, group.role if statement.per_role else None, -1)
        cdef Prepared prepared = self._prepare(key, statement._text, group, group._next)
        if prepared is None:
            return False
        if not PQsendDescribePrepared(self._conn, PyBytes_AS_STRING(prepared.name)):
            return False
        self._ring.push(CMD_DESCRIBE, group._next, group, prepared)
        self._paused = group
        return PQsendFlushRequest(self._conn) and self._flush()

    cdef bint _flush(self) except -1:
        cdef int rc = PQflush(self._conn)
        self.wants_write = rc == 1
        return rc >= 0

    # --- receiving -------------------------------------------------------------------------------

    def on_writable(self):
        """Sends what the socket would not take before."""
        self._inside = True
        try:
            if not self.lost and not self._flush():
                self._fail(self._message())
        finally:
            self._inside = False

    cpdef int on_readable(self, double now) except -1:
        """Reads what has arrived and delivers what is complete. Returns the number of groups that
        ended. Groups in `retry` afterwards are the owner's to run again."""
        cdef int before = self.depth
        cdef bint alive
        if self.lost:
            return 0
        self._inside = True
        try:
            alive = PQconsumeInput(self._conn) != 0
            self._pump(now)
        except BaseException:
            self._fail("a result could not be read")
            raise
        finally:
            self._inside = False
        if self.lost:
            return before
        if not alive:
            self._fail(self._message())
            return before
        if PQstatus(self._conn) == CONNECTION_BAD:
            self._fail(self._message())
            return before
        return before - self.depth

    cdef int _pump(self, double now) except -1:
        cdef Command *command
        cdef PGresult *res
        while not self._ring.empty():
            command = self._ring.head()
            if command.kind == CMD_EXECUTE and not self._armed:
                self._arm(command)
            if PQisBusy(self._conn):
                if self.wants_write:
                    self.wants_write = PQflush(self._conn) == 1
                return 0
            res = PQgetResult(self._conn)
            try:
                if not self._take(command, res, now):
                    return 0
            finally:
                PQclear(res)
            if self.lost:
                return 0
        # Nothing is expected: have libpq read notices and parameter changes.
        PQisBusy(self._conn)
        return 0

    cdef int _arm(self, Command *command) except -1:
        """Chooses, before the first row of a result, how its rows are to be handed out."""
        cdef Statement statement
        cdef Described described
        self._armed = True
        if command.group is NULL:
            return 0
        statement = <Statement> (<Group> command.group).statements[command.index]
        if statement.result != MODE_JSON:
            return 0
        described = (<Prepared> command.prepared).described
        if described.largest >= WHOLE_BELOW or described.runs == 0:
            # refused when the command was skipped after an error, which is of no consequence
            ichi_incremental(self._conn, CHUNK_ROWS)
        return 0

    cdef bint _take(self, Command *command, PGresult *res, double now) except -1:
        """One result of the command at the head; NULL is its end. False stops the pump."""
        cdef int status
        cdef Group group = <Group> command.group if command.group is not NULL else None
        cdef bint resume
        if res is NULL:
            if command.kind == CMD_SYNC:
                if self._commit_failed:
                    self._commit_failed = False  # the end of the error; the sync itself follows
                    return True
                if PQstatus(self._conn) == CONNECTION_BAD:
                    self._fail(self._message())
                else:
                    self._fail("results and groups do not pair up")
                return False
            resume = self._paused is not None and group is self._paused and (
                command.kind == CMD_DESCRIBE or command.kind == CMD_TYPES)
            self._pop()
            if resume:
                self._resume(group)
            return True
        status = PQresultStatus(res)
        if status == PGRES_PIPELINE_SYNC:
            if command.kind != CMD_SYNC:
                self._fail("results and groups do not pair up")
                return False
            self._pop()
            if group is not None:
                self._finish(group, now)
            return True
        if command.kind == CMD_SYNC:
            if status == PGRES_FATAL_ERROR and PQstatus(self._conn) != CONNECTION_BAD:
                # The commit itself failed: a deferred constraint, or a serialization failure.
                self._commit_failed = True
                self._failed(command, group, res, True)
                return True
            self._fail("results and groups do not pair up")
            return False
        if status == PGRES_FATAL_ERROR or status == PGRES_PIPELINE_ABORTED:
            self._failed(command, group, res, status == PGRES_FATAL_ERROR)
            return True
        if status == PGRES_COPY_IN or status == PGRES_COPY_OUT or status == PGRES_COPY_BOTH:
            self._fail("COPY cannot run in a group")
            return False
        if command.kind == CMD_EXECUTE:
            if group is not None:
                self._rows_of(command, group, res, status)
        elif command.kind == CMD_PREPARE:
            self._statements.confirm(<Prepared> command.prepared)
        elif command.kind == CMD_DESCRIBE:
            self._probe_columns = columns_of(res)
        elif command.kind == CMD_TYPES:
            learn_types(self.shared.types, self._probe_columns, res)
        return True

    cdef void _pop(self) noexcept:
        self._ring.pop()
        self._armed = False

    cdef int _failed(self, Command *command, Group group, PGresult *res, bint first) except -1:
        """An error, or a command skipped because of an earlier one."""
        cdef object error
        if command.kind == CMD_PREPARE:
            self._statements.refused(<Prepared> command.prepared)
        self._body.drop()
        if group is None or not first or group._error is not None:
            return 0
        error = error_of(res, command.index)
        if error is None:
            group._error = PgUnavailable(self._message())  # the caller sees that too
            return 0
        group._error = error
        if is_stale(error, res):
            self._forget((<Statement> group.statements[command.index]).sql)
            group._mismatch = True
        return 0

    cdef int _forget(self, str sql) except -1:
        """The tables under a statement have changed: prepare and describe it anew."""
        cdef tuple key
        self._statements.forget(sql)
        for key in [key for key in self.shared.described if key[0] == sql]:
            del self.shared.described[key]
        return 0

    # --- describing ------------------------------------------------------------------------------

    cdef int _resume(self, Group group) except -1:
        """Goes on with a group after an answer to its probe."""
        cdef Statement statement
        cdef bytes oids
        cdef const char *values[1]
        cdef bint ok
        if group._error is not None:
            self._paused = None
            ok = ichi_sync(self._conn)
            if ok:
                self._ring.push(CMD_SYNC, 0, group, None)
                ok = self._flush()
            if not ok:
                self._fail(self._message())
            return 0
        oids = unknown_types(self.shared.types, self._probe_columns)
        if oids is not None:
            values[0] = PyBytes_AS_STRING(oids)
            ok = PQsendQueryParams(self._conn, PyBytes_AS_STRING(TYPE_QUERY), 1, NULL, values,
                                   NULL, NULL, 0)
            if ok:
                self._ring.push(CMD_TYPES, group._next, group, None)
                ok = PQsendFlushRequest(self._conn) and self._flush()
        else:
            self._paused = None
            statement = <Statement> group.statements[group._next]
            self._settle(group, statement)
            ok = self._send(group)
        if not ok:
            self._fail(self._message())
        return 0

    cdef int _settle(self, Group group, Statement statement) except -1:
        """Describes a statement. Its probe's own preparation serves unless the statement had to
        be wrapped."""
        cdef unsigned int defaults = self._defaults if group._plain else PJ_DOCUMENT
        cdef Described described = describe(self.shared, statement, self._probe_columns, defaults)
        role = group.role if statement.per_role else None
        cdef Prepared prepared = self._statements.take((statement.sql, role, -1))
        if prepared is None:
            return 0
        if described.wrapped:
            self._statements.discard(prepared)
        else:
            self._statements.rename(
                prepared, (statement.sql, role, (1 + defaults) * 2 + statement.strip_nulls))
        return 0

    # --- rows ------------------------------------------------------------------------------------

    cdef int _rows_of(self, Command *command, Group group, PGresult *res, int status) except -1:
        cdef Statement statement = <Statement> group.statements[command.index]
        cdef Prepared prepared = <Prepared> command.prepared
        cdef Result result
        cdef int row, column, count
        cdef bint last = status != PGRES_SINGLE_TUPLE and status != ICHI_TUPLES_CHUNK
        if group.abandoned:
            return 0
        if statement.result == MODE_JSON:
            self._encode(command, group, prepared.described, res)
            if not last:
                return 0
        result = Result.__new__(Result)
        result.tag = text_or_none(PQcmdStatus(res))
        result.affected = number(PQcmdTuples(res))
        result.body = b""
        result.columns = ()
        if statement.result == MODE_JSON:
            result.rows = self._body.rows
            result.columns = self._body.form.columns
            result.body = self._ended(group, prepared.described)
        elif statement.result == MODE_VALUES:
            count = PQnfields(res)
            result.rows = PQntuples(res)
            result.columns = tuple([text_or_none(PQfname(res, column))
                                    for column in range(count)])
            result.values = [
                tuple([
                    None if PQgetisnull(res, row, column) else PyBytes_FromStringAndSize(
                        PQgetvalue(res, row, column), PQgetlength(res, row, column))
                    for column in range(count)
                ])
                for row in range(result.rows)
            ]
        else:
            result.rows = PQntuples(res)
        group._results.append(result)
        return 0

    cdef int _encode(self, Command *command, Group group, Described described,
                     PGresult *res) except -1:
        """Adds rows to the body that is being built."""
        cdef RowFormat form
        if not self._body.begun():
            form = described.format
            if not form.matches(res):
                form = self._reformat(command, group, res)
            self._body.begin(form)
        if group._error is None:
            group._error = self._body.append(res, command.index)
        return 0

    cdef object _ended(self, Group group, Described described):
        """The body, all of whose rows are there."""
        cdef object body = None
        try:
            body = self._body.end()
        except OSError as error:
            group._error = unwritable(error)
            self._body.drop()
        if described.largest < self._body.size:
            described.largest = self._body.size
        described.runs += 1
        return body

    cdef RowFormat _reformat(self, Command *command, Group group, PGresult *res):
        """The columns are not those described: the statement was described on one connection and
        prepared on another, and a table was altered in between."""
        cdef Statement statement = <Statement> group.statements[command.index]
        cdef list columns = columns_of(res)
        names = tuple([name for name, _ in columns])
        oids = tuple([oid for _, oid in columns])
        self._forget(statement.sql)
        try:
            return RowFormat(names, oids, self.shared.types, statement.strip_nulls)
        except LookupError:
            group._error = PgError(
                "0A000", "ERROR", "the columns of the result changed while it was read",
                statement=command.index,
            )
            return RowFormat((), (), self.shared.types)

    # --- ending ----------------------------------------------------------------------------------

    cdef int _finish(self, Group group, double now) except -1:
        """The sync of a group has come: it is committed or rolled back."""
        cdef Group first = <Group> self._groups.popleft()
        cdef double since
        if first is not group:
            self._groups.appendleft(first)
            self._fail("results and groups do not pair up")
            return 0
        self.depth -= 1
        if group.slow:
            self.slow_depth -= 1
        if group.writes():
            self.writes -= 1
        since = group.sent_at if group.sent_at > self._last_done else self._last_done
        self._last_done = now
        self.shared.observe(group, now - since)
        if self._body.begun():
            self._body.drop()
        if group.abandoned:
            return 0
        if group._error is not None and not group.in_session and group.retries == group.crowded and (
                group._mismatch or self._hit_by_other(group)):
            self.retry.append(group)
            return 0
        if group._error is not None and self._had_no_room(group, now - since):
            group.crowded += 1
            self.retry.append(group)
            return 0
        self._deliver(group)
        return 0

    cdef bint _had_no_room(self, Group group, double took) except -1:
        """The table of locks, which all databases share, was full before the group had done much
        of its own: whoever fills it is about to be ended."""
        error = group._error
        return (not group.in_session and group.crowded < ROOM_TRIES and took < ROOM_BRIEF
                and isinstance(error, PgError) and error.sqlstate == "53200"
                and error.message.startswith("out of shared memory"))

    cdef bint _hit_by_other(self, Group group):
        """A cancel request meant for an earlier group may come late and hit the next one."""
        return (self.cancels != group.cancels_seen and not group.expired
                and isinstance(group._error, PgError) and group._error.sqlstate == "57014")

    cdef int _deliver(self, Group group) except -1:
        waiter = group._waiter
        group._waiter = None
        if waiter is None or waiter.done():
            return 0
        error = group._error
        if error is not None:
            waiter.set_exception(error)
        elif group.expired:
            return 0
        else:
            waiter.set_result(group._results)
        return 0

    cdef int _fail(self, str reason) except -1:
        """The connection is lost or its state in doubt: no group gets anything from it any more.
        One that had its error gets it; the rest cannot know how they ended."""
        cdef Group group
        if self.lost:
            return 0
        self.lost = True
        self.lost_reason = reason
        self._ring.clear()
        self._paused = None
        self._body.drop()
        groups = list(self._groups)
        self._groups.clear()
        self.depth = 0
        self.slow_depth = 0
        self.writes = 0
        fatal = None
        for group in groups:
            if group.abandoned:
                continue
            if isinstance(group._error, PgError) and group._error.severity != "ERROR":
                # The server said that it ends: what stood behind this group was never begun.
                fatal = group._error
                group._error = PgUnavailable(str(fatal))
            elif fatal is not None and group.retries - group.crowded < 3 and not group.in_session:
                self.retry.append(group)
                continue
            elif group._error is None or isinstance(group._error, PgUnavailable):
                group._error = PgUnavailable(f"the connection to the database was lost: {reason}")
            self._deliver(group)
        return 0

    def abort(self, str reason not None):
        """Gives the connection up: its groups fail with PgUnavailable."""
        self._fail(reason)

    def cancel(self):
        """A request that cancels what the server is running now; send it from a thread."""
        cdef Cancel request = Cancel()
        self.cancels += 1
        if self._conn is not NULL and not self.lost:
            request._cancel = PQgetCancel(self._conn)
        return request

    def forget_statements(self):
        """After DISCARD ALL: nothing is prepared on the server any more."""
        self._statements.clear()

    def detach(self):
        """The connection is about to be closed; it is not touched any more."""
        self._fail("the connection was closed")
        self._conn = NULL
