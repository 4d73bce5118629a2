/* Texts as JSON. */
#ifndef ICHIBASE_JSONTEXT_H
#define ICHIBASE_JSONTEXT_H

#include "jsonbuf.h"

/* A JSON string of UTF-8 text, quotes included. 0, or -1 when memory is exhausted. */
int jt_string(jb_buf *out, const unsigned char *p, size_t len);

#endif
