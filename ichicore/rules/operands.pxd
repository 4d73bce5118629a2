from ichicore.rules.context cimport Context


cdef class Slot:
    cdef object spec
    cdef bint pattern
    cdef bint wants_list
    cdef bint loose
    cdef readonly Py_ssize_t index

    cdef object value(self, Context identity)


cdef class Variable:
    cdef str name


cdef class Text:
    cdef tuple parts


cdef class Either:
    cdef object spec


cdef class EitherOfAll:
    cdef object spec


cdef bint is_text(str text) except -1
cdef list either(object value)
cdef object either_of_all(object values)
