#include "jsontext.h"

static const char HEX[] = "0123456789abcdef";

/* 0: copy; 'u': \u00xx; anything else: backslash and that letter. */
static const char ESCAPE[256] = {
    [0] = 'u',  [1] = 'u',  [2] = 'u',  [3] = 'u',  [4] = 'u',  [5] = 'u',  [6] = 'u',
    [7] = 'u',  [8] = 'b',  [9] = 't',  [10] = 'n', [11] = 'u', [12] = 'f', [13] = 'r',
    [14] = 'u', [15] = 'u', [16] = 'u', [17] = 'u', [18] = 'u', [19] = 'u', [20] = 'u',
    [21] = 'u', [22] = 'u', [23] = 'u', [24] = 'u', [25] = 'u', [26] = 'u', [27] = 'u',
    [28] = 'u', [29] = 'u', [30] = 'u', [31] = 'u', ['"'] = '"', ['\\'] = '\\',
};

#define ONES 0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL

/* Non-zero when one of the eight bytes is below 0x20, a quote or a backslash. The test for "below"
 * may only err on bytes that follow a true hit, so zero is always right. */
static inline uint64_t needs_escape(uint64_t w)
{
    uint64_t low = (w - ONES * 0x20) & ~w;
    uint64_t quote = w ^ (ONES * '"');
    uint64_t slash = w ^ (ONES * '\\');
    quote = (quote - ONES) & ~quote;
    slash = (slash - ONES) & ~slash;
    return (low | quote | slash) & HIGHS;
}

int jt_string(jb_buf *out, const unsigned char *p, size_t len)
{
    const unsigned char *end = p + len;
    char *o;
    if (jb_room(out, len + 2))
        return -1;
    o = out->data + out->len;
    *o++ = '"';
    while (p < end) {
        char e;
        while (end - p >= 8) {
            uint64_t w;
            memcpy(&w, p, 8);
            if (needs_escape(w))
                break;
            memcpy(o, &w, 8);
            o += 8;
            p += 8;
        }
        while (p < end && !(e = ESCAPE[*p])) {
            *o++ = (char)*p++;
            if (end - p >= 8 && ((uintptr_t)p & 7) == 0)
                break;
        }
        if (p == end || !(e = ESCAPE[*p]))
            continue;
        /* This byte grows: keep room for it, for the rest as it is, and for the quote. */
        out->len = (size_t)(o - out->data);
        if (jb_room(out, 6 + (size_t)(end - p) + 1))
            return -1;
        o = out->data + out->len;
        *o++ = '\\';
        if (e == 'u') {
            memcpy(o, "u00", 3);
            o[3] = HEX[*p >> 4];
            o[4] = HEX[*p & 15];
            o += 5;
        } else {
            *o++ = e;
        }
        p++;
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return 0;
}
