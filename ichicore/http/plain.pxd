"""What the short ways ask of a request's headers before they take it, and what they tell."""

from cpython.unicode cimport PyUnicode_DecodeASCII


cdef inline dict plain_headers(object raw, Py_ssize_t most):
    """The headers by name. None where there are more than `most`, one comes twice, or one has a
    value that is not ASCII, which the HTTP server leaves out of its pairs."""
    cdef list items = raw.items()
    cdef dict headers = dict(items)
    if len(headers) != len(items) or len(headers) != len(raw) or len(items) > most:
        return None
    return headers


cdef inline object verified(object known, object denied, object key, double now):
    """What was found good under a key (with identity and until) and still is at `now`, epoch
    seconds; else None."""
    cdef object found = known.get(key)
    if found is None or now >= found.until:
        return None
    if denied is not None and (denied.sessions or denied.users) and \
            denied.covers(found.identity.claims, now):
        return None
    return found


cdef inline Py_ssize_t body_length(dict headers, Py_ssize_t most) except -2:
    """The declared length of a body of 1 to `most` bytes, else -1."""
    cdef str text = headers.get("content-length", "")
    cdef Py_ssize_t length
    if not 0 < len(text) < 6 or not text.isdigit():
        return -1
    length = int(text)
    return length if 0 < length <= most else -1


cdef inline str numbered(str prefix, unsigned long long number):
    """The prefix and the number in hexadecimal, in eight digits at least."""
    cdef char digits[16]
    cdef int at = 16
    while number or at > 8:
        at -= 1
        digits[at] = b"0123456789abcdef"[number & 15]
        number >>= 4
    return prefix + PyUnicode_DecodeASCII(digits + at, 16 - at, NULL)
