from ichicore.buffer cimport jb_buf


cdef extern from "bsonjson.h" nogil:
    enum:
        BJ_OK
        BJ_NO_MEMORY
        BJ_MALFORMED
        BJ_DEEP
    ctypedef enum bj_mode:
        BJ_ALL
        BJ_DROP
        BJ_KEEP
    ctypedef struct bj_field:
        const char *name
        size_t len
        int whole
        const bj_field *below
        const bj_field *next
    ctypedef struct bj_iter:
        int type
        const char *name
        size_t name_len
        const unsigned char *value
        size_t value_len
    int bj_document(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields)
    int bj_elements(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields, size_t most, int first, size_t *count)
    int bj_value(jb_buf *out, int type, const unsigned char *p, size_t len)
    int bj_open(bj_iter *it, const unsigned char *p, size_t len)
    int bj_next(bj_iter *it)

cdef extern from "pgjson.h" nogil:
    enum:
        PJ_POW10_MAX
        PJ_POW10_MIN
    void pj_set_pow10(int exponent, unsigned long long high, unsigned long long low)
