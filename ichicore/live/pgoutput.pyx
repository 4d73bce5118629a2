# distutils: sources = csrc/pgtext.c csrc/jsontext.c
# distutils: libraries = pq
"""Postgres' logical replication stream (plugin pgoutput, protocol 1, text values) to changes.

The decoder is handed the messages of a COPY BOTH, or the connection to take them from; it never
waits. Rows become JSON objects as to_json writes them, in C.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

import orjson

from ichicore.buffer cimport jb_buf, jb_byte, jb_free, jb_init, jb_put
from ichicore.live.change cimport new_change, new_publish
from ichicore.live.pgtypes cimport BUILT_IN, Shape, Types, json_key, pt_field, pt_type
from ichicore.live.reader cimport Reader, name_of, need, u8, u16, u32, u64
from ichicore.pg.libpq cimport PGconn, PQerrorMessage


cdef extern from "libpq-fe.h" nogil:
    int PQgetCopyData(PGconn *conn, char **buffer, int asynchronous)
    void PQfreemem(void *p)


cdef extern from "jsontext.h" nogil:
    int jt_string(jb_buf *out, const unsigned char *p, size_t len)


cdef extern from "pgtext.h" nogil:
    int PT_MALFORMED
    int pt_value(jb_buf *out, const pt_type *type, const unsigned char *p, size_t len, int depth)


PUBLISHED = "ichibase"                    # prefix of the messages of realtime.publish
ALTERED = "ichibase_ddl"                  # and of those that tell of DDL

cdef enum:
    MOST_COLUMNS = 1664


class DecodeError(ValueError):
    """The stream is not what the protocol says."""


cdef object broken(object error):
    return error if isinstance(error, DecodeError) else DecodeError(str(error))


ctypedef struct Slot:
    char kind                             # n null, t text, u unchanged
    const unsigned char *data
    int32_t len


cdef bint readable(bytes text):
    """Whether it is JSON: frames are put together from it as it is."""
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


@cython.final
@cython.no_gc
cdef class _Relation:
    cdef str source                       # schema.table
    cdef bint wanted
    cdef int count
    cdef pt_field *columns
    cdef char *in_key                     # 1 for columns of the replica identity
    cdef bint has_key
    cdef char identity                    # d default, n nothing, f full, i index
    cdef list keep                        # owners of the columns' keys and types
    cdef bytes described                  # the message, where it names types of the database's own
    cdef bint stale                       # those types may have changed

    def __dealloc__(self):
        free(self.columns)
        free(self.in_key)


@cython.final
cdef class Decoder:
    """One stream. types: shared by the streams of one database.

    `wanted` names the tables (schema.table) whose changes are given; None for all. Changes are
    numbered within their transaction whether they are wanted or not, so that a number does not
    depend on it. `missing` names types to be added before decoding goes on.
    """

    cdef readonly Types types
    cdef readonly object wanted           # set of names, or None
    cdef readonly tuple missing
    cdef readonly bint in_transaction
    cdef readonly uint64_t end_lsn        # all transactions that end before it were given whole
    cdef readonly uint64_t server_lsn     # how far the server has read its log
    cdef public bint reply_wanted         # the server asks for a status
    cdef public bint schema_changed       # since the caller last set it to False
    cdef readonly uint64_t rows           # changes decoded, of wanted tables
    cdef readonly uint64_t received       # bytes
    cdef readonly str error               # why drain() gave -1
    cdef dict _relations
    cdef list _items
    cdef uint64_t _lsn                    # of the open transaction's commit
    cdef uint32_t _sequence
    cdef bint _skip
    cdef uint64_t _floor_lsn
    cdef uint32_t _floor_sequence
    cdef bytes _kept                      # the message that waits for missing types
    cdef jb_buf _out
    cdef Slot *_new
    cdef Slot *_old

    def __cinit__(self, Types types not None, wanted=None):
        self.types = types
        self.wanted = wanted
        self._items = []
        self._new = <Slot *> calloc(2 * MOST_COLUMNS, sizeof(Slot))
        if self._new is NULL:
            raise MemoryError
        self._old = self._new + MOST_COLUMNS
        jb_init(&self._out)
        self.reset()

    def __dealloc__(self):
        jb_free(&self._out)
        free(self._new)

    def reset(self):
        """For a new connection: the server sends relations and an open transaction again. What was
        given before is not given a second time."""
        self._relations = {}
        self.missing = ()
        self._kept = None
        self.in_transaction = False
        self.reply_wanted = False
        self._lsn = 0
        self._sequence = 0
        self._skip = False
        self.error = None

    def begin_at(self, uint64_t lsn):
        """Gives nothing of transactions whose commit lies before this position."""
        self._floor_lsn = lsn
        self._floor_sequence = 0
        self.end_lsn = lsn

    def take(self) -> list:
        """The changes and messages decoded since the last call."""
        cdef list taken = self._items
        self._items = []
        return taken

    def want(self, tables):
        """Changes which tables' changes are given: names, or None for all."""
        self.wanted = tables
        for relation in self._relations.values():
            (<_Relation> relation).wanted = tables is None or (<_Relation> relation).source in tables

    cdef _altered(self):
        """After DDL: types are asked for again before the next row that holds one."""
        self.schema_changed = True
        self.types.forget()
        for relation in self._relations.values():
            (<_Relation> relation).stale = (<_Relation> relation).described is not None

    def feed(self, bytes message not None):
        """One message of the stream. DecodeError when it is broken. When `missing` is set the
        message was not taken: add the types and call resume()."""
        try:
            self._take(<const unsigned char *> PyBytes_AS_STRING(message),
                       PyBytes_GET_SIZE(message))
        except ValueError as error:
            raise broken(error) from None

    def resume(self):
        """Takes the message that waited for types."""
        cdef bytes kept = self._kept
        self._kept = None
        self.missing = ()
        if kept is not None:
            self.feed(kept)

    def drain(self, uintptr_t connection, int most) -> int:
        """Takes up to `most` messages that the connection holds already. Gives how many it took;
        fewer means that more must be read first (or that types are missing), -1 that the stream
        has ended: `error` says why."""
        cdef PGconn *conn = <PGconn *> connection
        cdef char *buffer
        cdef int n, taken = 0
        while taken < most and not self.missing:
            n = PQgetCopyData(conn, &buffer, 1)
            if n == 0:
                break
            if n < 0:
                self.error = PQerrorMessage(conn).decode("utf-8", "replace").strip()
                return -1
            try:
                self._take(<const unsigned char *> buffer, n)
            except ValueError as error:
                raise broken(error) from None
            finally:
                PQfreemem(buffer)
            taken += 1
        return taken

    cdef int _take(self, const unsigned char *data, Py_ssize_t size) except -1:
        cdef Reader r
        cdef int kind
        r.p = data
        r.end = data + size
        self.received += size
        kind = u8(&r)
        if kind == b"k":
            self.server_lsn = u64(&r)
            # What other databases write is passed over: only this tells that it may be forgotten.
            if not self.in_transaction:
                self.end_lsn = max(self.end_lsn, self.server_lsn)
            u64(&r)
            if u8(&r):
                self.reply_wanted = True
            return 0
        if kind != b"w":
            raise DecodeError(f"a message of kind {kind} is not known")
        u64(&r)
        self.server_lsn = max(self.server_lsn, u64(&r))
        u64(&r)
        kind = u8(&r)
        if kind == b"I":
            self._insert(&r, data, size)
        elif kind == b"U":
            self._update(&r, data, size)
        elif kind == b"D":
            self._delete(&r, data, size)
        elif kind == b"B":
            self._begin(&r)
        elif kind == b"C":
            self._commit(&r)
        elif kind == b"R":
            self._relation(&r, data, size)
        elif kind == b"T":
            self._truncate(&r)
        elif kind == b"M":
            self._message(&r)
        elif kind != b"Y" and kind != b"O":
            raise DecodeError(f"a message of kind {kind} is not known")
        return 0

    cdef int _begin(self, Reader *r) except -1:
        if self.in_transaction:
            raise DecodeError("a transaction begins inside another")
        self._lsn = u64(r)
        self._sequence = 0
        self._skip = self._lsn < self._floor_lsn
        self.in_transaction = True
        return 0

    cdef int _commit(self, Reader *r) except -1:
        if not self.in_transaction:
            raise DecodeError("a commit without its beginning")
        u8(r)
        u64(r)
        self.end_lsn = max(self.end_lsn, u64(r))
        self.in_transaction = False
        if not self._skip:
            self._floor_lsn = self._lsn + 1
            self._floor_sequence = 0
        return 0

    cdef bint _next(self) except -1:
        """Numbers a change; whether it is a new one."""
        if not self.in_transaction:
            raise DecodeError("a change outside of a transaction")
        self._sequence += 1
        if self._skip:
            return False
        if self._lsn == self._floor_lsn and self._sequence <= self._floor_sequence:
            return False
        self._floor_lsn = self._lsn
        self._floor_sequence = self._sequence
        return True

    cdef int _relation(self, Reader *r, const unsigned char *data, Py_ssize_t size) except -1:
        if not self._describe(r):
            self._kept = PyBytes_FromStringAndSize(<const char *> data, size)
        return 0

    cdef bint _describe(self, Reader *r) except -1:
        """Notes a relation; False when types are missing."""
        cdef const unsigned char *start = r.p
        cdef uint32_t oid = u32(r)
        cdef uint32_t column_type
        cdef str schema = name_of(r)
        cdef str table = name_of(r)
        cdef _Relation made = _Relation()
        cdef int i
        cdef bint own = False
        cdef bytes key
        cdef Shape found
        made.source = f"{schema or 'pg_catalog'}.{table}"
        made.identity = <char> u8(r)
        made.count = u16(r)
        if made.count > MOST_COLUMNS:
            raise DecodeError("a relation has too many columns")
        made.columns = <pt_field *> calloc(max(made.count, 1), sizeof(pt_field))
        made.in_key = <char *> calloc(max(made.count, 1), 1)
        if made.columns is NULL or made.in_key is NULL:
            raise MemoryError
        made.keep = []
        missing = []
        for i in range(made.count):
            made.in_key[i] = u8(r) & 1
            if made.in_key[i]:
                made.has_key = True
            name = name_of(r)
            column_type = u32(r)
            u32(r)
            found = self.types.find(column_type)
            if found is None:
                missing.append(column_type)
                continue
            own = own or column_type not in BUILT_IN
            key = json_key(name)
            made.keep += [found, key]
            made.columns[i].key = PyBytes_AS_STRING(key)
            made.columns[i].key_len = <int> PyBytes_GET_SIZE(key)
            made.columns[i].type = &found.type
        if missing:
            self.missing = tuple(missing)
            return False
        made.wanted = self.wanted is None or made.source in self.wanted
        if own:
            made.described = PyBytes_FromStringAndSize(<const char *> start, r.p - start)
        self._relations[oid] = made
        return True

    cdef _Relation _of(self, Reader *r, const unsigned char *data, Py_ssize_t size):
        """The relation that a row belongs to; None when the row has to wait for types."""
        cdef uint32_t oid = u32(r)
        cdef Reader again
        cdef bytes described
        found = self._relations.get(oid)
        if found is None:
            raise DecodeError(f"relation {oid} was not described")
        if not (<_Relation> found).stale:
            return <_Relation> found
        described = (<_Relation> found).described
        again.p = <const unsigned char *> PyBytes_AS_STRING(described)
        again.end = again.p + PyBytes_GET_SIZE(described)
        if self._describe(&again):
            return <_Relation> self._relations[oid]
        self._kept = PyBytes_FromStringAndSize(<const char *> data, size)
        return None

    cdef int _tuple(self, Reader *r, _Relation relation, Slot *slots) except -1:
        cdef int i
        cdef int32_t length
        if u16(r) != relation.count:
            raise DecodeError(f"a row of {relation.source} has another number of columns")
        for i in range(relation.count):
            slots[i].kind = <char> u8(r)
            if slots[i].kind == b"t":
                length = <int32_t> u32(r)
                if length < 0:
                    raise DecodeError("a value has a negative length")
                need(r, length)
                slots[i].data = r.p
                slots[i].len = length
                r.p += length
            elif slots[i].kind != b"n" and slots[i].kind != b"u":
                raise DecodeError(f"a value of kind {slots[i].kind} is not known")
        return 0

    cdef bytes _write(self, _Relation relation, Slot *slots, bint only_key):
        """The row as a JSON object. Values that did not change and are not known are left out."""
        cdef jb_buf *out = &self._out
        cdef int i, rc
        cdef size_t mark
        cdef char separator = b"{"
        cdef const pt_field *column
        out.len = 0
        for i in range(relation.count):
            if slots[i].kind == b"u" or (only_key and not relation.in_key[i]):
                continue
            column = &relation.columns[i]
            if jb_byte(out, separator) or jb_put(out, column.key, column.key_len):
                raise MemoryError
            separator = b","
            if slots[i].kind == b"n":
                if jb_put(out, b"null", 4):
                    raise MemoryError
                continue
            mark = out.len
            rc = pt_value(out, column.type, slots[i].data, slots[i].len, 0)
            if rc == PT_MALFORMED:
                # A composite type has other attributes than we know: its text is still the truth.
                relation.stale = relation.described is not None
                self.types.forget()
                out.len = mark
                rc = jt_string(out, slots[i].data, slots[i].len)
            if rc:
                raise MemoryError
        if separator == b"{" and jb_byte(out, b"{"):
            raise MemoryError
        if jb_byte(out, b"}"):
            raise MemoryError
        return PyBytes_FromStringAndSize(out.data, out.len)

    cdef int _insert(self, Reader *r, const unsigned char *data, Py_ssize_t size) except -1:
        cdef _Relation relation = self._of(r, data, size)
        if relation is None or not self._next() or not relation.wanted:
            return 0
        if u8(r) != b"N":
            raise DecodeError("an insert without its row")
        self._tuple(r, relation, self._new)
        self._items.append(new_change(relation.source, "INSERT",
                                      self._write(relation, self._new, False), None,
                                      self._lsn, self._sequence))
        self.rows += 1
        return 0

    cdef int _update(self, Reader *r, const unsigned char *data, Py_ssize_t size) except -1:
        cdef _Relation relation = self._of(r, data, size)
        cdef int kind, i
        cdef bytes old = None
        if relation is None or not self._next() or not relation.wanted:
            return 0
        kind = u8(r)
        if kind == b"K" or kind == b"O":
            self._tuple(r, relation, self._old)
            old = self._write(relation, self._old, kind == b"K")
            i = u8(r)
        else:
            i = kind
        if i != b"N":
            raise DecodeError("an update without its new row")
        self._tuple(r, relation, self._new)
        if kind == b"O":
            for i in range(relation.count):
                if self._new[i].kind == b"u":
                    self._new[i] = self._old[i]
        elif kind == b"N" and relation.has_key and relation.identity != b"f":
            old = self._write(relation, self._new, True)  # the key did not change
        self._items.append(new_change(relation.source, "UPDATE",
                                      self._write(relation, self._new, False), old,
                                      self._lsn, self._sequence))
        self.rows += 1
        return 0

    cdef int _delete(self, Reader *r, const unsigned char *data, Py_ssize_t size) except -1:
        cdef _Relation relation = self._of(r, data, size)
        cdef int kind
        if relation is None or not self._next() or not relation.wanted:
            return 0
        kind = u8(r)
        if kind != b"K" and kind != b"O":
            raise DecodeError("a delete without its old row")
        self._tuple(r, relation, self._old)
        self._items.append(new_change(relation.source, "DELETE", None,
                                      self._write(relation, self._old, kind == b"K"),
                                      self._lsn, self._sequence))
        self.rows += 1
        return 0

    cdef int _truncate(self, Reader *r) except -1:
        cdef uint32_t i, count = u32(r)
        cdef bint fresh = self._next()
        u8(r)
        for i in range(count):
            relation = self._relations.get(u32(r))
            if relation is None:
                raise DecodeError("a truncated relation was not described")
            if fresh and (<_Relation> relation).wanted:
                self._items.append(new_change((<_Relation> relation).source, "TRUNCATE", None,
                                              None, self._lsn, self._sequence))
                self.rows += 1
        return 0

    cdef int _message(self, Reader *r) except -1:
        """Ours hold the channel, the event and the payload as JSON, on a line each."""
        cdef bint transactional = u8(r) & 1
        cdef str prefix
        cdef Py_ssize_t length
        cdef bytes content
        u64(r)
        prefix = name_of(r)
        length = <int32_t> u32(r)
        if length < 0:
            raise DecodeError("a message has a negative length")
        need(r, length)
        # What is not part of a transaction may tell of something that is rolled back.
        if not transactional or not self._next():
            return 0
        if prefix == ALTERED:
            self._altered()
        elif prefix == PUBLISHED:
            content = PyBytes_FromStringAndSize(<const char *> r.p, length)
            parts = content.split(b"\n", 2)
            if len(parts) == 3 and readable(parts[2]):
                self._items.append(new_publish(
                    parts[0].decode("utf-8", "replace"), parts[1].decode("utf-8", "replace"),
                    parts[2], self._lsn, self._sequence))
        return 0
