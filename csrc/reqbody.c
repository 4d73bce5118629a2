#define _GNU_SOURCE
#include "reqbody.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 256,  /* a power of two: bodies that nobody has taken yet */
    MOST = 16384, /* bytes of a body */
    NAME = 64
};

typedef struct {
    uint64_t number;
    size_t size;
    char bytes[];
} Kept;

/* Written by the threads that receive, emptied by the one that serves. */
static _Atomic(Kept *) slots[SLOTS];
static _Atomic uint64_t last;
static char name[NAME], prefix[NAME];
static size_t prefix_size;

int ichi_body_begin(const char *header, const char *start)
{
    if (strlen(header) >= NAME || strlen(start) >= NAME)
        return 0;
    strcpy(name, header);
    strcpy(prefix, start);
    prefix_size = strlen(start);
    return 1;
}

ssize_t ichi_body_keep(char *buf, ssize_t n, size_t room, size_t head)
{
    char line[NAME + 32];
    size_t size = (size_t)n - head;
    if (prefix_size == 0 || buf[0] != 'P' || size == 0 || size > MOST)
        return n;
    const char *target = memchr(buf, ' ', head);
    if (target == NULL || (size_t)(buf + head - ++target) < prefix_size
        || memcmp(target, prefix, prefix_size) != 0)
        return n;
    uint64_t number = atomic_fetch_add(&last, 1) + 1;
    size_t more = (size_t)snprintf(line, sizeof line, "%s: %llu\r\n", name,
                                   (unsigned long long)number);
    if ((size_t)n + more > room)
        return n;
    Kept *kept = malloc(sizeof(Kept) + size);
    if (kept == NULL)
        return n;
    kept->number = number;
    kept->size = size;
    memcpy(kept->bytes, buf + head, size);
    free(atomic_exchange(&slots[number & (SLOTS - 1)], kept));
    /* before the empty line that ends the head */
    memmove(buf + head - 2 + more, buf + head - 2, size + 2);
    memcpy(buf + head - 2, line, more);
    return n + (ssize_t)more;
}

void *ichi_body_take(uint64_t number, const char **bytes, size_t *size)
{
    _Atomic(Kept *) *slot = &slots[number & (SLOTS - 1)];
    Kept *none = NULL, *kept = atomic_exchange(slot, NULL);
    if (kept == NULL)
        return NULL;
    if (kept->number != number) {
        if (!atomic_compare_exchange_strong(slot, &none, kept))
            free(kept); /* a newer one has come meanwhile */
        return NULL;
    }
    *bytes = kept->bytes;
    *size = kept->size;
    return kept;
}

void ichi_body_free(void *taken)
{
    free(taken);
}
