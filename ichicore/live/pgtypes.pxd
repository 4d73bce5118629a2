from libc.stdint cimport uint32_t


cdef extern from "pgtext.h" nogil:
    int PT_TEXT, PT_NUMBER, PT_BOOL, PT_JSON, PT_STAMP, PT_STAMPTZ, PT_ARRAY, PT_VECTOR
    int PT_RECORD, PT_HSTORE, PT_OK, PT_NO_MEMORY, PT_MALFORMED
    ctypedef struct pt_type:
        int kind
        char delimiter
        const pt_type *element
        int nfields
        const pt_field *fields
    ctypedef struct pt_field:
        const char *key
        int key_len
        const pt_type *type


cdef class Shape:
    cdef pt_type type
    cdef Shape element
    cdef tuple keep                       # owners of the fields' keys and types
    cdef pt_field *fields


cdef class Types:
    cdef dict _known

    cdef Shape find(self, uint32_t oid)
    cdef Shape need(self, uint32_t oid)


cdef dict BUILT_IN                        # oid > Shape
cdef bytes json_key(str name)
