cdef bytes encode_document(dict document)
