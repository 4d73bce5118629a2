cimport cython

from ichicore.rules.context cimport Frame

cdef enum:
    ROOT_DOCUMENT = 0
    ROOT_AUTH = 1
    ROOT_OLD = 2
    ROOT_REQUEST = 3
    ROOT_SELF = 4  # the value itself, of the elements of an array


cdef class Path:
    cdef str text
    cdef tuple parts
    cdef Py_ssize_t last
    cdef list positions
    cdef int root
    cdef bint is_id


cdef class Test:
    cdef bint whole
    cdef object constant
    cdef Py_ssize_t slot
    cdef bint loose

    @cython.final
    cdef object operand(self, Frame f)
    cdef bint holds(self, object v, Frame f) except -1


cdef class Equal(Test):
    pass


cdef class Ordered(Test):
    cdef bint less
    cdef bint same
    cdef bint more


cdef class In(Test):
    pass


cdef class Exists(Test):
    pass


cdef class Size(Test):
    pass


cdef class Regular(Test):
    cdef object search
    cdef str options


cdef class Node:
    cdef bint test(self, object document, Frame f) except -1


cdef class Element(Test):
    cdef Node node
    cdef bint plain


cdef class Constant(Node):
    cdef bint value


cdef class All(Node):
    cdef tuple nodes


cdef class Some(Node):
    cdef tuple nodes


cdef class Not(Node):
    cdef Node node


cdef class AllOf(Node):
    cdef Path path
    cdef Py_ssize_t slot
    cdef bint loose


cdef class Field(Node):
    cdef Path path
    cdef Test check
    cdef bint negated
