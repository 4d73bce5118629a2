from ichicore.rules.nodes cimport Path

cdef enum:
    MOST_DEPTH = 32     # of an expression, and of a value in it
    MOST_LIST = 1000    # values or expressions of a list


cdef class Literals:
    cdef list errors
    cdef list slots
    cdef set variables
    cdef set paths
    cdef tuple roots
    cdef object default
    cdef bint interpolate
    cdef bint loose
    cdef bint uses_old
    cdef bint needs_identity

    cdef object wrong(self, str where, str message)
    cdef Path path(self, str text, str where)
    cdef object new_slot(self, object spec)
    cdef tuple value(self, object source, str where, int depth)


cdef object extended(object source)
