/* BSON documents as JSON, with the fields left out that a reader may not see. */
#ifndef ICHIBASE_BSONJSON_H
#define ICHIBASE_BSONJSON_H

#include "jsonbuf.h"

enum {
    BJ_OK = 0,
    BJ_NO_MEMORY = -1,
    BJ_MALFORMED = -2, /* not BSON */
    BJ_DEEP = -3,      /* nested deeper than BJ_MOST_DEPTH */
};

#define BJ_MOST_DEPTH 256

/* Fields by name, as a tree: a node with `whole` set is listed itself, else something below it. */
typedef struct bj_field {
    const char *name; /* not terminated */
    size_t len;
    int whole;
    const struct bj_field *below; /* first child */
    const struct bj_field *next;  /* sibling */
} bj_field;

typedef enum {
    BJ_ALL = 0,
    BJ_DROP = 1, /* leave the listed fields out */
    BJ_KEEP = 2, /* leave the others out */
} bj_mode;

/* A document of exactly len bytes. */
int bj_document(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                const bj_field *fields);
/* A list of the documents or values of an array, at most `most` of them, without the brackets;
 * *count is how many the array has. */
int bj_elements(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                const bj_field *fields, size_t most, int first, size_t *count);
/* One value of a type, where `p` and `len` are its bytes. */
int bj_value(jb_buf *out, int type, const unsigned char *p, size_t len);

/* One step through a document or array. */
typedef struct {
    const unsigned char *at, *end; /* what is left, without the closing byte */
    int type;
    const char *name;
    size_t name_len;
    const unsigned char *value;
    size_t value_len;
} bj_iter;

/* 0, or BJ_MALFORMED. */
int bj_open(bj_iter *it, const unsigned char *p, size_t len);
/* 1 with an element, 0 at the end, or BJ_MALFORMED. */
int bj_next(bj_iter *it);

#endif
