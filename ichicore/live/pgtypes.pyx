# distutils: sources = csrc/jsontext.c
"""What to_json makes of a database's types: how the text of a value becomes JSON."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from ichicore.buffer cimport jb_buf, jb_byte, jb_free, jb_init


cdef extern from "jsontext.h" nogil:
    int jt_string(jb_buf *out, const unsigned char *p, size_t len)


TEXT = PT_TEXT
HSTORE = PT_HSTORE

# Built-in types by what to_json makes of their text; their arrays in brackets.
NUMBERS = {21: 1005, 23: 1007, 20: 1016, 700: 1021, 701: 1022, 1700: 1231}
OTHERS = {
    PT_BOOL: {16: 1000},
    PT_JSON: {114: 199, 3802: 3807},
    PT_STAMP: {1114: 1115},
    PT_STAMPTZ: {1184: 1185},
    PT_TEXT: {
        17: 1001, 18: 1002, 19: 1003, 25: 1009, 26: 1028, 1042: 1014, 1043: 1015, 2950: 2951,
        1082: 1182, 1083: 1183, 1266: 1270, 1186: 1187, 869: 1041, 650: 651, 829: 1040, 774: 775,
        1560: 1561, 1562: 1563, 3614: 3643, 3615: 3645, 790: 791, 600: 1017, 4072: 4073,
        3904: 3905, 3906: 3907, 3908: 3909, 3910: 3911, 3912: 3913, 3926: 3927,
    },
}  # fmt: skip


@cython.final
@cython.no_gc
cdef class Shape:
    """One type. The C side is handed the address of `type`, so whoever keeps that keeps this."""

    def __dealloc__(self):
        free(self.fields)


cdef Shape simple(int kind):
    cdef Shape made = Shape()
    made.type.kind = kind
    return made


cdef Shape listed(int kind, Shape element, char delimiter):
    cdef Shape made = Shape()
    made.type.kind = kind
    made.type.delimiter = delimiter
    made.type.element = &element.type
    made.element = element
    return made


cdef bytes json_key(str name):
    """`"name":`, escaped."""
    cdef bytes raw = name.encode()
    cdef jb_buf out
    jb_init(&out)
    try:
        if jt_string(&out, <const unsigned char *> PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
            raise MemoryError
        if jb_byte(&out, b":"):
            raise MemoryError
        return PyBytes_FromStringAndSize(out.data, out.len)
    finally:
        jb_free(&out)


cdef dict built_in():
    found = {}
    kinds = {PT_NUMBER: NUMBERS, **OTHERS}
    for kind, types in kinds.items():
        scalar = simple(kind)
        array = listed(PT_ARRAY, scalar, b",")
        for oid, array_oid in types.items():
            found[oid] = scalar
            found[array_oid] = array
    found[22] = listed(PT_VECTOR, found[21], b" ")
    found[30] = listed(PT_VECTOR, found[26], b" ")
    return found


cdef dict BUILT_IN = built_in()


@cython.final
cdef class Types:
    """What to_json makes of one database's types. Not for threads.

    A type is added after those it consists of; LookupError otherwise.
    """

    def __cinit__(self):
        self._known = {}

    cdef Shape find(self, uint32_t oid):
        found = BUILT_IN.get(oid)
        return found if found is not None else self._known.get(oid)

    cdef Shape need(self, uint32_t oid):
        found = self.find(oid)
        if found is None:
            raise LookupError(f"type {oid} is not known")
        return found

    def knows(self, uint32_t oid) -> bool:
        return self.find(oid) is not None

    def add_simple(self, uint32_t oid, int kind=PT_TEXT):
        """A type that becomes a JSON string of its text, or an hstore."""
        self._known[oid] = simple(kind)

    def add_alias(self, uint32_t oid, uint32_t base):
        """A domain: shown as its base type."""
        self._known[oid] = self.need(base)

    def add_array(self, uint32_t oid, uint32_t element, str delimiter not None=","):
        self._known[oid] = listed(PT_ARRAY, self.need(element), ord(delimiter))

    def add_record(self, uint32_t oid, tuple names not None, tuple oids not None):
        """A composite type: its attributes' names and types, in order."""
        cdef Shape made = Shape()
        cdef Py_ssize_t i, n = len(names)
        cdef bytes key
        cdef Shape part
        keep = []
        made.type.kind = PT_RECORD
        made.fields = <pt_field *> calloc(max(n, 1), sizeof(pt_field))
        if made.fields is NULL:
            raise MemoryError
        for i in range(n):
            part = self.need(oids[i])
            key = json_key(names[i])
            keep += [part, key]
            made.fields[i].key = PyBytes_AS_STRING(key)
            made.fields[i].key_len = <int> PyBytes_GET_SIZE(key)
            made.fields[i].type = &part.type
        made.keep = tuple(keep)
        made.type.nfields = <int> n
        made.type.fields = made.fields
        self._known[oid] = made

    def forget(self):
        """After a change of the schema: all but the built-in types are asked for again."""
        self._known = {}
