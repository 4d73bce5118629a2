from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef extern from "jsontape.h" nogil:
    enum:
        TJ_NULL
        TJ_FALSE
        TJ_TRUE
        TJ_INT
        TJ_DOUBLE
        TJ_STRING
        TJ_ARRAY
        TJ_OBJECT
    enum:
        TJ_OK
        TJ_NO_MEMORY
        TJ_SYNTAX
        TJ_DEEP
        TJ_TWICE
        TJ_NUMBER
        TJ_MANY
    ctypedef union tj_value:
        int64_t i
        double d
        const char *text
    ctypedef struct tj_node:
        const char *key
        tj_value v
        uint32_t key_len
        uint32_t len
        uint32_t next
        uint32_t start
        uint32_t end
        uint8_t type
    ctypedef struct tj_tape:
        tj_node *nodes
        uint32_t used
        uint32_t at
    void tj_free(tj_tape *t)

cdef extern from "jsontape.h":
    int tj_parse(tj_tape *t, const char *source, size_t len)
