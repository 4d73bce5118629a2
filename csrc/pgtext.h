/* Values in Postgres' text form to JSON, as the server's own to_json() writes them. The text must
 * have been written with DateStyle ISO and TimeZone UTC. */
#ifndef ICHIBASE_PGTEXT_H
#define ICHIBASE_PGTEXT_H

#include "jsonbuf.h"

enum {
    PT_TEXT,    /* a JSON string of the text as it is */
    PT_NUMBER,  /* a JSON number, or a string for NaN and the infinities */
    PT_BOOL,
    PT_JSON,    /* the text is JSON */
    PT_STAMP,   /* timestamp: T between date and time */
    PT_STAMPTZ, /* the same, and minutes in the zone */
    PT_ARRAY,
    PT_VECTOR,  /* int2vector, oidvector: elements between blanks */
    PT_RECORD,
    PT_HSTORE,
};

enum {
    PT_OK = 0,
    PT_NO_MEMORY = -1,
    PT_MALFORMED = -2, /* the text is not what the type's output function writes */
};

#define PT_MAX_DEPTH 64

typedef struct pt_type pt_type;

typedef struct {
    const char *key; /* `"name":`, escaped */
    int key_len;
    const pt_type *type;
} pt_field;

struct pt_type {
    int kind;
    char delimiter;         /* arrays */
    const pt_type *element; /* arrays and vectors */
    int nfields;            /* records */
    const pt_field *fields;
};

/* One value; on failure `out` holds a part of it, which the caller takes back. */
int pt_value(jb_buf *out, const pt_type *type, const unsigned char *p, size_t len, int depth);

#endif
