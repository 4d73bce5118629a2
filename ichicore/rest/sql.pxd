cdef enum Source:
    # Where a parameter's value comes from when it is not the index of a query-string value.
    BODY = -1
    LIMIT = -2
    OFFSET = -3
    RAW = -4

cdef class Writer:
    cdef list parts
    cdef readonly list layout
    cdef inline void add(self, str text):
        self.parts.append(text)
    cdef void param(self, object source)
    cdef void constant(self, str text)
    cpdef str text(self)

cpdef tuple bind(list layout, list values, bytes body, object limit, object offset)
