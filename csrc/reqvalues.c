#include "reqvalues.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 64, NAMES = 512 };

static char mark[NAME];
static size_t mark_size;

void ichi_values_begin(const char *name)
{
    mark_size = strlen(name);
    if (mark_size >= NAME)
        mark_size = 0;
    memcpy(mark, name, mark_size);
}

static int beyond_ascii(const char *p, const char *end)
{
    uint64_t seen = 0, word;
    for (; end - p >= 8; p += 8) {
        memcpy(&word, p, 8);
        seen |= word;
    }
    for (; p < end; p++)
        seen |= (uint64_t)(unsigned char)*p;
    return (seen & 0x8080808080808080u) != 0;
}

typedef struct {
    char *at, *end;
    int full;
} Out;

static void put(Out *out, const char *bytes, size_t size)
{
    if (out->full || (size_t)(out->end - out->at) < size) {
        out->full = 1;
        return;
    }
    memcpy(out->at, bytes, size);
    out->at += size;
}

static void put_encoded(Out *out, const char *p, const char *end)
{
    static const char HEX[] = "0123456789ABCDEF";
    for (; p < end; p++) {
        unsigned char c = (unsigned char)*p;
        char three[3] = {'%', HEX[c >> 4], HEX[c & 15]};
        if (c >= 0x80 || c == '%')
            put(out, three, 3);
        else
            put(out, p, 1);
    }
}

ssize_t ichi_values_encode(char *buf, ssize_t n, size_t room, size_t line, size_t after)
{
    char names[NAMES];
    size_t used = 0;
    const char *p = buf + line, *end = buf + after - 2; /* the empty line */
    if (mark_size == 0 || !beyond_ascii(p, end))
        return n;
    char *made = malloc(room);
    if (made == NULL)
        return n;
    Out out = {made, made + room, 0};
    put(&out, buf, line);
    while (p < end) {
        const char *next = (const char *)memchr(p, '\n', (size_t)(end - p)) + 1;
        const char *colon = memchr(p, ':', (size_t)(next - p));
        if (colon == NULL || beyond_ascii(p, colon)
            || (!beyond_ascii(colon, next) && memchr(colon, '%', (size_t)(next - colon)) == NULL)) {
            put(&out, p, (size_t)(next - p));
        } else {
            size_t size = (size_t)(colon - p);
            put(&out, p, size);
            put_encoded(&out, colon, next);
            if (used + size + 1 > NAMES) {
                out.full = 1;
                break;
            }
            memcpy(names + used, p, size);
            names[used + size] = ',';
            used += size + 1;
        }
        p = next;
    }
    if (used != 0) {
        for (int i = 0; i < 2; i++) {
            put(&out, mark, mark_size);
            put(&out, ": ", 2);
            put(&out, names, used - 1);
            put(&out, "\r\n", 2);
        }
    }
    put(&out, end, (size_t)(buf + n - end));
    ssize_t size = n;
    if (!out.full) {
        size = out.at - made;
        memcpy(buf, made, (size_t)size);
    }
    free(made);
    return size;
}
