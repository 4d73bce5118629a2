"""Collects the text of one SQL statement and where its parameters' values come from.

A layout entry is the index of a query-string value (int >= 0), one of `Source`, bytes that are the
same for every request of the shape, or a pair (index, cap) for a row limit that has a cap.
"""
from ichicore.errors import ApiError

cdef tuple PLACES = tuple([f"${n}" for n in range(1, 100)])


cdef class Writer:
    def __cinit__(self):
        self.parts = []
        self.layout = []

    cdef void param(self, object source):
        """Write the next parameter; its value will be taken from `source`."""
        cdef Py_ssize_t n = len(self.layout)
        self.layout.append(source)
        self.parts.append(PLACES[n] if n < 99 else f"${n + 1}")

    cdef void constant(self, str text):
        """Write the next parameter with a value that belongs to the shape."""
        self.param(text.encode())

    cpdef str text(self):
        return "".join(self.parts)


cdef object _capped(bytes digits, object cap):
    return digits if int(digits) <= cap else b"%d" % cap


cpdef tuple bind(list layout, list values, bytes body, object limit, object offset):
    """Parameter values of one request: a tuple of bytes and None.

    values: as shape.scan gives them. limit, offset: the top-level range as ints, or None. Raises
    ApiError 400 22021 for a value with a NUL, as Postgres itself refuses it.
    """
    cdef list out = []
    cdef object source
    cdef object value
    cdef long n
    for source in layout:
        if type(source) is int:
            n = source
            if n >= 0:
                value = values[n]
            elif n == BODY or n == RAW:
                value = body
            elif n == LIMIT:
                value = None if limit is None else b"%d" % limit
            else:
                value = b"%d" % (offset or 0)
            if value is not None and b"\0" in <bytes>value:
                raise ApiError(400, "22021", 'invalid byte sequence for encoding "UTF8": 0x00')
        elif type(source) is tuple:
            value = _capped(values[source[0]], source[1])
        else:
            value = source
        out.append(value)
    return tuple(out)


Layout = list  # the type of Writer.layout, spelled out in sql.pyi
