cpdef bytes both(bytes first, bytes second)
