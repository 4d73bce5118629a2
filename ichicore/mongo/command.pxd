cpdef bytes plain_filter(bytes body, object caps)
