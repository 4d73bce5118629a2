/* A growable byte buffer for output. Every function that may grow it returns 0, or -1 when memory
 * is exhausted; the caller then gives the whole output up. */
#ifndef ICHIBASE_JSONBUF_H
#define ICHIBASE_JSONBUF_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *data;
    size_t len;
    size_t cap;
} jb_buf;

static inline void jb_init(jb_buf *b)
{
    b->data = NULL;
    b->len = 0;
    b->cap = 0;
}

static inline void jb_free(jb_buf *b)
{
    free(b->data);
    jb_init(b);
}

static inline int jb_grow(jb_buf *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 1024;
    char *data;
    if (more > SIZE_MAX / 4 - b->len)
        return -1;
    while (cap < b->len + more)
        cap *= 2;
    data = realloc(b->data, cap);
    if (data == NULL)
        return -1;
    b->data = data;
    b->cap = cap;
    return 0;
}

/* Makes sure that `more` bytes can be written at data + len. */
static inline int jb_room(jb_buf *b, size_t more)
{
    return b->cap - b->len >= more ? 0 : jb_grow(b, more);
}

static inline int jb_put(jb_buf *b, const void *p, size_t n)
{
    if (jb_room(b, n))
        return -1;
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    return 0;
}

static inline int jb_byte(jb_buf *b, char c)
{
    if (jb_room(b, 1))
        return -1;
    b->data[b->len++] = c;
    return 0;
}

#endif
