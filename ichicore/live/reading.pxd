from ichicore.live.wire cimport Peer, Wire


cdef int read_frames(Wire wire, Peer peer, const unsigned char *data, Py_ssize_t size) except -1
