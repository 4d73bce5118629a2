"""Statements, the groups they run in, and what comes of them."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.string cimport strlen

from ichicore.rest.rows cimport RowFormat, TypeTable

from ichicore.pg.errors import PgError

cdef enum:
    MAX_PARAMS = 65535

NONE = 0
JSON = 1
VALUES = 2

cdef double MEMORY = 32.0       # groups over which the mean of their times runs

# Settings that encoders depend on; a group that may change one is encoded by Postgres instead.
cdef dict FORMAT_SETTINGS = {
    b"timezone": True, b"intervalstyle": True, b"bytea_output": True, b"extra_float_digits": True,
}
cdef tuple FORMAT_WORDS = (
    "timezone", "time zone", "intervalstyle", "bytea_output", "extra_float_digits",
)


@cython.final
cdef class Statement:
    """SQL with $1, $2, ... and what is wanted of its result.

    result: NONE (only the tag), JSON (rows as a JSON array) or VALUES (tuples of text). per_role:
    its plan may depend on row security, so each role has its own prepared form. strip_nulls: leave
    null members out, as json_strip_nulls does (JSON only).
    """

    def __init__(self, str sql not None, *, int result, bint per_role=True,
                 bint strip_nulls=False):
        if not 0 <= result <= 2:
            raise ValueError("result must be NONE, JSON or VALUES")
        self.sql = sql
        self._text = sql.encode()
        if b"\0" in self._text:
            raise ValueError("SQL cannot contain a NUL character")
        self.result = result
        self.per_role = per_role
        self.strip_nulls = strip_nulls and result == MODE_JSON
        low = sql.lower()
        self._sets_format = False
        if "set" in low:
            for word in FORMAT_WORDS:
                if word in low:
                    self._sets_format = True

    def __repr__(self):
        return f"Statement({self.sql!r})"


@cython.final
@cython.freelist(64)
cdef class Group:
    """Statements that run as one implicit transaction, in the name of `role` (a key of the
    prepared statements; switching to it is one of the statements' work). main: which of them tells
    how long such groups take, the last one unless it is set."""

    def __cinit__(self, str role=""):
        self.role = role
        self.statements = []
        self._params = []
        self._results = []
        self._prepared = []
        self._plain = True
        self.main = -1

    cdef Statement measured(self):
        """The main statement, None in an empty group."""
        cdef Py_ssize_t count = len(self.statements)
        if count == 0:
            return None
        return <Statement> self.statements[self.main if 0 <= self.main < count else count - 1]

    cdef bint writes(self) except -1:
        """Whether its main statement returns nothing: it changes something, and its end is a commit
        that waits for the disk."""
        cdef Statement main = self.measured()
        return main is not None and main.result == MODE_NONE

    cpdef add(self, Statement statement, tuple params=()):
        """Appends a statement; its parameters are text (bytes, UTF-8) or None."""
        cdef bytes value
        cdef Py_ssize_t n
        if statement is None or params is None:
            raise TypeError("a statement and a tuple are needed")
        if statement._sets_format:
            self._plain = False
        if statement.result == MODE_NONE and self._plain:
            for param in params:
                if PyBytes_CheckExact(param):
                    n = PyBytes_GET_SIZE(param)
                    # lengths of the names in FORMAT_SETTINGS
                    if (n == 8 or n == 13 or n == 12 or n == 18) and \
                            (<bytes> param).lower() in FORMAT_SETTINGS:
                        self._plain = False
                        break
        self.statements.append(statement)
        self._params.append(params)

    cdef int check(self) except -1:
        """Raises PgError or TypeError for parameters that cannot be sent."""
        cdef Py_ssize_t i
        cdef tuple params
        for i in range(len(self._params)):
            params = <tuple> self._params[i]
            if len(params) > MAX_PARAMS:
                raise PgError("54000", "ERROR", "a statement has more than 65535 parameters",
                              statement=i)
            for param in params:
                if param is None:
                    continue
                if not PyBytes_CheckExact(param):
                    raise TypeError("parameters must be bytes or None")
                if strlen(PyBytes_AS_STRING(param)) != <size_t> PyBytes_GET_SIZE(param):
                    raise PgError(
                        "22021", "ERROR", 'invalid byte sequence for encoding "UTF8": 0x00',
                        statement=i,
                    )
        return 0

    def __len__(self):
        return len(self.statements)

    def abandon(self):
        """Nobody waits any more: what comes back is dropped without being encoded."""
        self.abandoned = True
        self._waiter = None

    @property
    def waiter(self):
        return self._waiter

    @waiter.setter
    def waiter(self, waiter):
        """Anything with done(), set_result(list) and set_exception(error)."""
        self._waiter = waiter

    cdef _reset(self):
        self._results = []
        self._prepared = []
        self._error = None
        self._mismatch = False
        self._next = 0

    def restart(self):
        """Makes the group ready to be sent once more."""
        self._reset()
        self.retries += 1


@cython.final
@cython.freelist(64)
cdef class Result:
    """What one statement gave.

    rows: tuples returned. affected: number in the command tag, -1 without one. tag: the command
    tag. body: JSON array of row objects (bytes, or a spool when it is large) in JSON mode, else
    b"". values: tuples of bytes (text format) or None in VALUES mode. columns: names.
    """

    def __repr__(self):
        return f"Result({self.tag!r}, rows={self.rows})"


@cython.final
cdef class Described:
    """What a pool knows of one SQL text with a JSON result. Immutable but for its statistics."""



@cython.final
cdef class Shared:
    """Knowledge that all connections of a pool share: types and described statements."""

    def __cinit__(self, int limit=4096):
        self.types = TypeTable()
        self.described = {}
        self.slow_sql = {}
        self.limit = limit

    def forget(self):
        """Drops everything learned: after the schema has changed."""
        self.types = TypeTable()
        self.described.clear()
        self.slow_sql.clear()

    cdef observe(self, Group group, double seconds):
        """Learns which statements are slow: two slow runs more than quick ones make one so."""
        cdef int score
        cdef Statement main = group.measured()
        if main is None:
            return
        main.service += (seconds - main.service) / MEMORY
        if seconds > 0.010:
            sql = main.sql
            score = self.slow_sql.get(sql, 0) + 1
            if len(self.slow_sql) > 1024:
                self.slow_sql.clear()
            self.slow_sql[sql] = min(score, 8)
        elif self.slow_sql and seconds < 0.003:
            sql = main.sql
            score = self.slow_sql.get(sql, 0)
            if score == 1:
                del self.slow_sql[sql]
            elif score:
                self.slow_sql[sql] = score - 1

    def is_slow(self, Group group):
        cdef Statement main = group.measured()
        return main is not None and <int> self.slow_sql.get(main.sql, 0) >= 2


