#define _GNU_SOURCE
#include "reqbody.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 256,  /* a power of two: bodies that nobody has taken yet */
    MOST = 16384, /* bytes of a body */
    NAME = 64,
    PREFIXES = 4
};

typedef struct {
    uint64_t number;
    size_t size;
    char bytes[];
} Kept;

/* Written by the threads that receive, emptied by the one that serves. */
static _Atomic(Kept *) slots[SLOTS];
static _Atomic uint64_t last;
static char name[NAME], prefixes[PREFIXES][NAME];
static int count; /* of the prefixes */

int ichi_body_begin(const char *header, const char *start)
{
    if (strlen(header) >= NAME || strlen(start) >= NAME || count == PREFIXES)
        return 0;
    strcpy(name, header);
    strcpy(prefixes[count++], start);
    return 1;
}

static int wanted(const char *target, size_t size)
{
    for (int i = 0; i < count; i++) {
        size_t n = strlen(prefixes[i]);
        if (size >= n && memcmp(target, prefixes[i], n) == 0)
            return 1;
    }
    return 0;
}

ssize_t ichi_body_keep(char *buf, ssize_t n, size_t room, size_t head)
{
    char line[NAME + 32];
    size_t size = (size_t)n - head;
    if (count == 0 || buf[0] != 'P' || size == 0 || size > MOST)
        return n;
    const char *target = memchr(buf, ' ', head);
    if (target == NULL || !wanted(target + 1, (size_t)(buf + head - target) - 1))
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
