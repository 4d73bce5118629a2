/* Header values with bytes beyond ASCII, which the HTTP server gives to nobody. Of a request that
 * has one, such bytes and all percent signs in values are percent-encoded on their way in, and the
 * request gets a header with the names of those that were. It comes twice, so that nobody takes the
 * request for a plain one. */
#ifndef ICHI_REQVALUES_H
#define ICHI_REQVALUES_H

#include <stddef.h>
#include <sys/types.h>

/* Begins to encode values. name: of the header, of less than 64 bytes. */
void ichi_values_begin(const char *name);

/* n bytes in buf, which has room for `room`, begin with a request's head: its first line ends at
 * `line`, its headers before `after`. Gives the number of bytes that are there now; none is touched
 * where the buffer has no room. */
ssize_t ichi_values_encode(char *buf, ssize_t n, size_t room, size_t line, size_t after);

#endif
