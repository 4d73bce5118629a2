# distutils: sources = csrc/pgjson.c csrc/jsontext.c csrc/pgjson_number.c csrc/pgjson_time.c csrc/pgjson_net.c
# distutils: libraries = pq
"""Rows of a binary result as JSON, equal to what Postgres' to_json writes.

Types the C encoder does not know are left to Postgres: `TypeTable.knows` says which they are, and
the executor wraps the statement accordingly.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp

from ichicore.buffer cimport jb_buf, jb_free, jb_init
from ichicore.pg.libpq cimport (
    PJ_BYTEA, PJ_DOCUMENT, PJ_FLOAT, PJ_INTERVAL, PJ_KEY_PAD, PJ_MALFORMED, PJ_NO_MEMORY,
    PJ_POW10_MAX, PJ_POW10_MIN, PJ_ZONE, PQfname, PQftype, PQnfields, pj_array_of, pj_builtin,
    pj_read_in_place, pj_row, pj_set_pow10, pj_string, pj_text,
)

from ichicore import powers

ZONE = PJ_ZONE
INTERVAL = PJ_INTERVAL
BYTEA = PJ_BYTEA
FLOAT = PJ_FLOAT
DOCUMENT = PJ_DOCUMENT


for _power in powers.table(PJ_POW10_MIN, PJ_POW10_MAX):
    pj_set_pow10(_power[0], _power[1], _power[2])

pj_read_in_place(True)


def read_in_place(bint wanted) -> bool:
    """Whether values are read where libpq keeps them, instead of asking it for each: as wanted, where
    this libpq is known. They are from the start."""
    return pj_read_in_place(wanted) != 0


def json_string(bytes text not None) -> bytes:
    """UTF-8 text as a JSON string with its quotes."""
    cdef jb_buf out
    jb_init(&out)
    try:
        if pj_string(&out, <const unsigned char *> PyBytes_AS_STRING(text),
                     PyBytes_GET_SIZE(text)):
            raise MemoryError
        return PyBytes_FromStringAndSize(out.data, out.len)
    finally:
        jb_free(&out)


@cython.final
cdef class _Codec:
    """Owner of a codec made at run time (`owned`), or a borrowed static one."""

    cdef const pj_codec *codec
    cdef bint owned
    cdef _Codec element

    def __dealloc__(self):
        if self.owned:
            free(<void *> self.codec)


@cython.final
cdef class TypeTable:
    """What is known of one database's types beyond the built-in ones. Not for threads."""

    def __cinit__(self):
        self._known = {}

    cdef const pj_codec *find(self, unsigned int oid) except? NULL:
        cdef const pj_codec *codec = pj_builtin(oid)
        cdef _Codec own
        if codec is not NULL:
            return codec
        own = self._known.get(oid)
        if own is None:
            return NULL
        return own.codec

    cpdef bint knows(self, unsigned int oid):
        """Whether the type has been looked up (or is built in); it may still be left to
        Postgres."""
        return pj_builtin(oid) is not NULL or oid in self._known

    def add_text(self, unsigned int oid):
        """A type whose binary form is its text: an enum."""
        cdef _Codec own = _Codec()
        own.codec = pj_text()
        self._known[oid] = own

    def add_array(self, unsigned int oid, unsigned int element):
        """A true array type; left to Postgres when its element type is."""
        cdef const pj_codec *found = self.find(element)
        cdef _Codec own = None
        if found is not NULL:
            own = _Codec()
            own.element = self._known.get(element)
            own.codec = pj_array_of(found)
            if own.codec is NULL:
                raise MemoryError
            own.owned = True
        self._known[oid] = own

    def add_foreign(self, unsigned int oid):
        """A type that Postgres has to write."""
        self._known[oid] = None

    def needs(self, unsigned int oid):
        """Settings (ZONE, ...) the encoding depends on, or -1 when Postgres has to write it."""
        cdef const pj_codec *codec = self.find(oid)
        return -1 if codec is NULL else <long> codec.needs

    def encode(self, unsigned int oid, bytes data not None) -> bytes:
        """One value in binary format as JSON. ValueError when the bytes are not of that type,
        LookupError for a type that is left to Postgres."""
        cdef const pj_codec *codec = self.find(oid)
        cdef jb_buf out
        cdef int rc
        if codec is NULL:
            raise LookupError(f"no encoder for type {oid}")
        jb_init(&out)
        try:
            rc = codec.fn(&out, codec, <const unsigned char *> PyBytes_AS_STRING(data),
                          <int> PyBytes_GET_SIZE(data))
            if rc == PJ_NO_MEMORY:
                raise MemoryError
            if rc:
                raise ValueError(f"malformed binary value of type {oid}")
            return PyBytes_FromStringAndSize(out.data, out.len) if out.len else b""
        finally:
            jb_free(&out)


@cython.final
cdef class RowFormat:
    """How the rows of one result become JSON objects: a key and an encoder per column.

    columns: names. oids: their types; LookupError for one that is left to Postgres. strip_nulls
    leaves NULL columns out.
    """

    def __cinit__(self, tuple columns not None, tuple oids not None, TypeTable types not None,
                  bint strip_nulls=False):
        cdef int i
        cdef bytes key
        cdef const pj_codec *codec
        self.columns = columns
        self.oids = oids
        self._count = <int> len(columns)
        self._strip = strip_nulls
        self._keep = [types]
        self._columns = <pj_column *> calloc(max(self._count, 1), sizeof(pj_column))
        self._oids = <unsigned int *> calloc(max(self._count, 1), sizeof(unsigned int))
        if self._columns is NULL or self._oids is NULL:
            raise MemoryError
        for i in range(self._count):
            codec = types.find(oids[i])
            if codec is NULL:
                raise LookupError(f"no encoder for type {oids[i]}")
            self._keep.append(types._known.get(oids[i]))
            key = json_string((<str> columns[i]).encode()) + b":" + bytes(PJ_KEY_PAD)
            self._keep.append(key)
            self._columns[i].key = PyBytes_AS_STRING(key)
            self._columns[i].key_len = <int> PyBytes_GET_SIZE(key) - PJ_KEY_PAD
            self._columns[i].codec = codec
            self._oids[i] = oids[i]
            name = (<str> columns[i]).encode()
            self._keep.append(name)

    def __dealloc__(self):
        free(self._columns)
        free(self._oids)

    cdef bint matches(self, const PGresult *res) noexcept:
        """Whether a result still has these columns: a table may have been altered since."""
        cdef int i
        if PQnfields(res) != self._count:
            return False
        for i in range(self._count):
            if PQftype(res, i) != self._oids[i]:
                return False
            if strcmp(PQfname(res, i), PyBytes_AS_STRING(self._keep[3 * i + 3])):
                return False
        return True

    cdef int append(self, jb_buf *out, const PGresult *res, int row) noexcept nogil:
        """Writes one row; gives 0, PJ_NO_MEMORY or PJ_MALFORMED."""
        return pj_row(out, res, row, self._columns, self._count, self._strip)
