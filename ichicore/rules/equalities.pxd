cdef list equalities(object node, list slots)
cdef object cover(object node, list slots)
