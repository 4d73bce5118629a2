from ichicore.rules.context cimport Context, Frame


cdef class Match:
    cdef readonly object source
    cdef readonly tuple variables
    cdef readonly tuple paths
    cdef readonly bint uses_old
    cdef readonly object template
    cdef object root
    cdef list slots
    cdef list node_list
    cdef bint needs_identity
    cdef bint lenient
    cdef tuple _equalities
    cdef object _index
    cdef bytes _constant_bson

    cdef bytes constant_bson(self)
    cdef tuple values_for(self, Context identity)


cdef class Bound:
    cdef readonly Match match
    cdef Frame frame
    cdef object _filter
    cdef object _bson
