cdef class Ready:
    cdef PlainRead read
    cdef public str collection
    cdef public bytes command
    cdef public object parsed
    cdef public object plan
    cdef public double seconds
    cdef public object session
    cdef public bint told
    cdef public bint writes


cdef class Place:
    cdef readonly str operation
    cdef readonly str collection
    cdef dict reads     # PlainRead by the address of the identity

    cdef Ready ready(self, object identity, bytes body)


cdef class PlainRead:
    cdef object identity
    cdef object caps
    cdef object plan
    cdef str collection
    cdef double seconds
    cdef bint one       # it is a findOne
    cdef bytes head
    cdef bytes rule
    cdef bytes foot

    cpdef bytes command(self, bytes body)
    cdef Ready ready(self, bytes body)
    cdef bytes answer(self, bytes found)
