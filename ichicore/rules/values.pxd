cdef object MISSING

cdef enum:
    K_MISSING = 0
    K_MIN = 1
    K_NULL = 5
    K_NUMBER = 10
    K_STRING = 15
    K_OBJECT = 20
    K_ARRAY = 25
    K_BINARY = 30
    K_ID = 35
    K_BOOL = 40
    K_DATE = 45
    K_TIMESTAMP = 47
    K_REGEX = 50
    K_MAX = 127
    K_OTHER = 200

cdef int kind(object value) except -1
cdef bint equal(object a, object b) except -1
cdef int order(object a, object b) except -2
cdef int compare_any(object a, object b) except -2
cdef object number_of(str text)
