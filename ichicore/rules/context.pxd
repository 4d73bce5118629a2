cdef class Context:
    cdef readonly str role
    cdef readonly str uid
    cdef readonly str email
    cdef readonly dict claims
    cdef readonly bint timed
    cdef object _now
    cdef dict _auth

    cdef object resolve(self, str name)
    cdef dict auth(self)


cdef class Frame:
    cdef tuple values
    cdef object old
    cdef Context identity
    cdef object request
    cdef int partial                      # 1: of the document, 2: of the old one, names may lack
    cdef bint inverted                    # below an odd number of negations
