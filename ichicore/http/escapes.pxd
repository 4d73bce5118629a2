"""Percent-decoding, shared at C level by the modules that read targets and forms."""

cdef inline int hex_digit(unsigned char c) noexcept nogil:
    """0 to 15, or -1."""
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return -1


cdef inline Py_ssize_t unescape(const char* p, Py_ssize_t size, char* out) noexcept nogil:
    """Percent-decode, + as a space, into `out` (`size` bytes are enough); gives the length.

    A percent sign that two hex digits do not follow stays as it is.
    """
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t n = 0
    cdef int high, low
    cdef char c
    while i < size:
        c = p[i]
        if c == c'%' and i + 2 < size:
            high = hex_digit(<unsigned char>p[i + 1])
            low = hex_digit(<unsigned char>p[i + 2])
            if high >= 0 and low >= 0:
                out[n] = <char>(high * 16 + low)
                n += 1
                i += 3
                continue
        elif c == c'+':
            c = c' '
        out[n] = c
        n += 1
        i += 1
    return n
