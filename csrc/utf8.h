/* UTF-8 checked as it arrives (RFC 3629: no surrogates, no overlong forms, nothing past U+10FFFF),
   and the XOR of WebSocket payloads. */
#ifndef ICHI_UTF8_H
#define ICHI_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A state packs what is awaited: low byte = continuation bytes still due, then the bounds of the
   next byte. 0 means between characters. */
#define UTF8_BAD UINT32_MAX
#define UTF8_STATE(due, low, high) ((uint32_t)(due) | (uint32_t)(low) << 8 | (uint32_t)(high) << 16)

static inline uint32_t utf8_first(unsigned char c) {
    if (c < 0x80) return 0;
    if (c < 0xC2) return UTF8_BAD;
    if (c < 0xE0) return UTF8_STATE(1, 0x80, 0xBF);
    if (c == 0xE0) return UTF8_STATE(2, 0xA0, 0xBF);
    if (c == 0xED) return UTF8_STATE(2, 0x80, 0x9F);
    if (c < 0xF0) return UTF8_STATE(2, 0x80, 0xBF);
    if (c == 0xF0) return UTF8_STATE(3, 0x90, 0xBF);
    if (c < 0xF4) return UTF8_STATE(3, 0x80, 0xBF);
    if (c == 0xF4) return UTF8_STATE(3, 0x80, 0x8F);
    return UTF8_BAD;
}

/* The state after these bytes, or UTF8_BAD as soon as no text can begin with them. */
static inline uint32_t utf8_check(uint32_t state, const unsigned char *text, size_t size) {
    size_t i = 0;
    while (i < size) {
        if (state == 0) {
            while (i + 8 <= size) {
                uint64_t eight;
                memcpy(&eight, text + i, 8);
                if (eight & 0x8080808080808080ULL) break;
                i += 8;
            }
            if (i == size) return 0;
            state = utf8_first(text[i++]);
        } else {
            unsigned char c = text[i++];
            if (c < ((state >> 8) & 0xFF) || c > ((state >> 16) & 0xFF)) return UTF8_BAD;
            uint32_t due = (state & 0xFF) - 1;
            state = due ? UTF8_STATE(due, 0x80, 0xBF) : 0;
        }
        if (state == UTF8_BAD) return UTF8_BAD;
    }
    return state;
}

/* to[i] = from[i] ^ key[(phase + i) % 4] */
static inline void unmask(unsigned char *to, const unsigned char *from, size_t size,
                          const unsigned char *key, size_t phase) {
    unsigned char turned[8];
    uint64_t wide;
    size_t i = 0;
    for (int k = 0; k < 8; k++) turned[k] = key[(phase + (size_t)k) & 3];
    memcpy(&wide, turned, 8);
    for (; i + 8 <= size; i += 8) {
        uint64_t eight;
        memcpy(&eight, from + i, 8);
        eight ^= wide;
        memcpy(to + i, &eight, 8);
    }
    for (; i < size; i++) to[i] = from[i] ^ turned[i & 7];
}

#endif
