/* Small bodies that came in one piece with their request's head: a copy is kept aside, so that who
 * serves the request need not ask the HTTP server for it, which costs two changes of threads. The
 * request gets one more header with the number of its copy. */
#ifndef ICHI_REQBODY_H
#define ICHI_REQBODY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Has bodies of requests whose target starts with `prefix` kept, too. name: of the header, always the
 * same. 0 when one of them is too long, or there are too many. Called before any request. */
int ichi_body_begin(const char *name, const char *prefix);

/* n bytes in buf, which has room for `room`, are one whole request; its body begins at `head`.
 * Gives the number of bytes with the header. */
ssize_t ichi_body_keep(char *buf, ssize_t n, size_t room, size_t head);

/* The body with a number, to be given to `ichi_body_free`, and its size. NULL when it was taken
 * before, or has given way to others. */
void *ichi_body_take(uint64_t number, const char **bytes, size_t *size);
void ichi_body_free(void *taken);

#endif
