/* JSON text as a flat list of nodes: strict (RFC 8259, UTF-8), with strings unescaped, numbers read
 * and objects checked for members that are given twice. */
#ifndef ICHIBASE_JSONTAPE_H
#define ICHIBASE_JSONTAPE_H

#include <stddef.h>
#include <stdint.h>

enum { TJ_NULL, TJ_FALSE, TJ_TRUE, TJ_INT, TJ_DOUBLE, TJ_STRING, TJ_ARRAY, TJ_OBJECT };

enum {
    TJ_OK = 0,
    TJ_NO_MEMORY = -1,
    TJ_SYNTAX = -2,
    TJ_DEEP = -3,
    TJ_TWICE = -4,  /* `at` is the second member */
    TJ_NUMBER = -5, /* an integer beyond 64 bits or a number beyond a double */
    TJ_MANY = -6,   /* more than TJ_MOST_NODES values */
};

#define TJ_MOST_DEPTH 200
#define TJ_MOST_NODES 2000000

/* Children of a node follow it; `next` is the index behind the last of them. */
typedef struct {
    const char *key; /* of a member, not terminated; NULL for an element */
    union {
        int64_t i;
        double d;
        const char *text;
    } v;
    uint32_t key_len;
    uint32_t len;   /* bytes of a string, children of an array or object */
    uint32_t next;
    uint32_t start; /* where the value begins and ends in the source */
    uint32_t end;
    uint8_t type;
} tj_node;

typedef struct {
    tj_node *nodes;
    uint32_t used, cap;
    char *arena; /* unescaped strings */
    size_t arena_used;
    uint32_t at; /* of the node a mistake concerns */
} tj_tape;

/* Parses; the tape borrows the source's bytes and must be freed in any case. Needs the GIL. */
int tj_parse(tj_tape *t, const char *source, size_t len);
void tj_free(tj_tape *t);

#endif
