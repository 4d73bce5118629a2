#include "bsonjson.h"

#include "jsontext.h"
#include "pgjson.h"

static const char DIGITS[] = "0123456789abcdef";
static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static inline uint32_t le32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t le64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* --- walking -------------------------------------------------------------------------------- */

int bj_open(bj_iter *it, const unsigned char *p, size_t len)
{
    if (len < 5 || le32(p) != len || p[len - 1] != 0)
        return BJ_MALFORMED;
    it->at = p + 4;
    it->end = p + len - 1;
    return BJ_OK;
}

/* Bytes of a value of a type at p, or -1. */
static long value_size(int type, const unsigned char *p, size_t left)
{
    size_t n;
    const unsigned char *z;
    switch (type) {
    case 0x01: case 0x09: case 0x11: case 0x12:
        n = 8;
        break;
    case 0x02: case 0x0D: case 0x0E:
        if (left < 5)
            return -1;
        n = le32(p);
        if (n < 1 || n > left - 4 || p[4 + n - 1] != 0)
            return -1;
        n += 4;
        break;
    case 0x03: case 0x04:
        if (left < 5)
            return -1;
        n = le32(p);
        if (n < 5)
            return -1;
        break;
    case 0x05:
        if (left < 5)
            return -1;
        n = (size_t)le32(p) + 5;
        break;
    case 0x06: case 0x0A: case 0x7F: case 0xFF:
        n = 0;
        break;
    case 0x07:
        n = 12;
        break;
    case 0x08:
        n = 1;
        break;
    case 0x0B:
        z = memchr(p, 0, left);
        if (z == NULL)
            return -1;
        z = memchr(z + 1, 0, left - (size_t)(z + 1 - p));
        if (z == NULL)
            return -1;
        n = (size_t)(z + 1 - p);
        break;
    case 0x0C:
        if (left < 5)
            return -1;
        n = (size_t)le32(p) + 16;
        break;
    case 0x0F:
        if (left < 4)
            return -1;
        n = le32(p);
        if (n < 14)
            return -1;
        break;
    case 0x10:
        n = 4;
        break;
    case 0x13:
        n = 16;
        break;
    default:
        return -1;
    }
    return n <= left ? (long)n : -1;
}

int bj_next(bj_iter *it)
{
    const unsigned char *z;
    long size;
    if (it->at == it->end)
        return 0;
    it->type = *it->at++;
    z = memchr(it->at, 0, (size_t)(it->end - it->at));
    if (z == NULL)
        return BJ_MALFORMED;
    it->name = (const char *)it->at;
    it->name_len = (size_t)(z - it->at);
    it->value = z + 1;
    size = value_size(it->type, it->value, (size_t)(it->end - it->value));
    if (size < 0)
        return BJ_MALFORMED;
    it->value_len = (size_t)size;
    it->at = it->value + size;
    return 1;
}

/* --- values --------------------------------------------------------------------------------- */

static int put_int(jb_buf *out, int64_t v)
{
    char *o;
    if (jb_room(out, 24))
        return BJ_NO_MEMORY;
    o = out->data + out->len;
    if (v < 0)
        *o++ = '-';
    o = pj_digits(o, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
    out->len = (size_t)(o - out->data);
    return BJ_OK;
}

/* Whole numbers keep ".0": clients that tell integers from doubles get back what they stored. */
static int put_double(jb_buf *out, const unsigned char *p)
{
    uint64_t bits = le64(p);
    unsigned char swapped[8];
    size_t before = out->len, i;
    if ((bits >> 52 & 0x7ff) == 0x7ff)
        return jb_put(out, "null", 4);
    bits = __builtin_bswap64(bits);
    memcpy(swapped, &bits, 8);
    if (pj_float8(out, NULL, swapped, 8))
        return BJ_NO_MEMORY;
    for (i = before; i < out->len; i++)
        if (out->data[i] == '.' || out->data[i] == 'e')
            return BJ_OK;
    return jb_put(out, ".0", 2);
}

static char *put_number(char *o, unsigned v, int width)
{
    int i;
    for (i = width - 1; i >= 0; i--) {
        o[i] = (char)('0' + v % 10);
        v /= 10;
    }
    return o + width;
}

/* Milliseconds since the epoch as ISO 8601, of any year. */
static int put_date(jb_buf *out, int64_t millis)
{
    int64_t days = millis / 86400000, rest = millis % 86400000, z, era, year;
    unsigned doe, yoe, doy, mp, day, month, ms;
    char *o;
    if (rest < 0) {
        rest += 86400000;
        days--;
    }
    z = days + 719468;
    era = (z >= 0 ? z : z - 146096) / 146097;
    doe = (unsigned)(z - era * 146097);
    yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    mp = (5 * doy + 2) / 153;
    day = doy - (153 * mp + 2) / 5 + 1;
    month = mp < 10 ? mp + 3 : mp - 9;
    year = (int64_t)yoe + era * 400 + (month <= 2);
    ms = (unsigned)rest;
    if (jb_room(out, 48))
        return BJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    if (year >= 0 && year <= 9999) {
        o = put_number(o, (unsigned)year, 4);
    } else {
        uint64_t absolute = year < 0 ? 0 - (uint64_t)year : (uint64_t)year;
        *o++ = year < 0 ? '-' : '+';
        if (absolute < 1000000)
            o = put_number(o, (unsigned)absolute, 6);
        else
            o = pj_digits(o, absolute);
    }
    *o++ = '-';
    o = put_number(o, month, 2);
    *o++ = '-';
    o = put_number(o, day, 2);
    *o++ = 'T';
    o = put_number(o, ms / 3600000, 2);
    *o++ = ':';
    o = put_number(o, ms / 60000 % 60, 2);
    *o++ = ':';
    o = put_number(o, ms / 1000 % 60, 2);
    *o++ = '.';
    o = put_number(o, ms % 1000, 3);
    *o++ = 'Z';
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return BJ_OK;
}

static int put_hex(jb_buf *out, const unsigned char *p, size_t n)
{
    char *o;
    size_t i;
    if (jb_room(out, 2 * n + 2))
        return BJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    for (i = 0; i < n; i++) {
        *o++ = DIGITS[p[i] >> 4];
        *o++ = DIGITS[p[i] & 15];
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return BJ_OK;
}

static int put_base64(jb_buf *out, const unsigned char *p, size_t n)
{
    char *o;
    size_t i;
    if (jb_room(out, (n + 2) / 3 * 4 + 2))
        return BJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    for (i = 0; i + 2 < n; i += 3) {
        unsigned v = (unsigned)p[i] << 16 | (unsigned)p[i + 1] << 8 | p[i + 2];
        *o++ = BASE64[v >> 18];
        *o++ = BASE64[v >> 12 & 63];
        *o++ = BASE64[v >> 6 & 63];
        *o++ = BASE64[v & 63];
    }
    if (i < n) {
        unsigned v = (unsigned)p[i] << 16 | (i + 1 < n ? (unsigned)p[i + 1] << 8 : 0);
        *o++ = BASE64[v >> 18];
        *o++ = BASE64[v >> 12 & 63];
        *o++ = i + 1 < n ? BASE64[v >> 6 & 63] : '=';
        *o++ = '=';
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return BJ_OK;
}

/* IEEE 754 decimal128 in the binary integer encoding, as its text. */
static int put_decimal(jb_buf *out, const unsigned char *p)
{
    uint64_t low = le64(p), high = le64(p + 8);
    int negative = (int)(high >> 63), exponent, n = 0, scientific, i;
    unsigned __int128 c;
    unsigned __int128 limit = 1;
    char digits[40], *o;
    for (i = 0; i < 34; i++)
        limit *= 10;
    if (jb_room(out, 64))
        return BJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    if ((high >> 58 & 0x1f) == 0x1f) {
        memcpy(o, "NaN\"", 4);
        out->len = (size_t)(o + 4 - out->data);
        return BJ_OK;
    }
    if (negative)
        *o++ = '-';
    if ((high >> 58 & 0x1f) == 0x1e) {
        memcpy(o, "Infinity\"", 9);
        out->len = (size_t)(o + 9 - out->data);
        return BJ_OK;
    }
    if ((high >> 61 & 3) == 3) { /* a coefficient that is too large counts as zero */
        exponent = (int)(high >> 47 & 0x3fff) - 6176;
        c = 0;
    } else {
        exponent = (int)(high >> 49 & 0x3fff) - 6176;
        c = (unsigned __int128)(high & 0x1ffffffffffffULL) << 64 | low;
        if (c >= limit)
            c = 0;
    }
    do {
        digits[n++] = (char)('0' + (int)(c % 10));
        c /= 10;
    } while (c);
    scientific = exponent > 0 || n + exponent - 1 < -6;
    if (scientific) {
        int shown = n + exponent - 1;
        *o++ = digits[n - 1];
        if (n > 1) {
            *o++ = '.';
            for (i = n - 2; i >= 0; i--)
                *o++ = digits[i];
        }
        *o++ = 'E';
        *o++ = shown < 0 ? '-' : '+';
        o = pj_digits(o, (uint64_t)(shown < 0 ? -shown : shown));
    } else {
        int point = n + exponent; /* digits before the point */
        if (point <= 0) {
            *o++ = '0';
            *o++ = '.';
            for (i = point; i < 0; i++)
                *o++ = '0';
        }
        for (i = n - 1; i >= 0; i--) {
            if (point > 0 && n - 1 - i == point)
                *o++ = '.';
            *o++ = digits[i];
        }
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return BJ_OK;
}

static int put_regex(jb_buf *out, const unsigned char *p)
{
    size_t n = strlen((const char *)p), start = out->len, at;
    if (jt_string(out, p, n) || jb_room(out, 2))
        return BJ_NO_MEMORY;
    at = start + 1;
    memmove(out->data + at + 1, out->data + at, out->len - at - 1);
    out->data[at] = '/';
    out->data[out->len] = '/';
    out->data[out->len + 1] = '"';
    out->len += 2;
    return BJ_OK;
}

#define SAFE_INTEGER (1LL << 53)

int bj_value(jb_buf *out, int type, const unsigned char *p, size_t len)
{
    switch (type) {
    case 0x01:
        return put_double(out, p);
    case 0x02:
        return jt_string(out, p + 4, le32(p) - 1);
    case 0x05:
        if (p[4] == 2 && le32(p) >= 4) /* the old form of generic data has a length of its own */
            return put_base64(out, p + 9, le32(p) - 4);
        return put_base64(out, p + 5, le32(p));
    case 0x07:
        return put_hex(out, p, 12);
    case 0x08:
        return p[0] ? jb_put(out, "true", 4) : jb_put(out, "false", 5);
    case 0x09:
        return put_date(out, (int64_t)le64(p));
    case 0x0B:
        return put_regex(out, p);
    case 0x10:
        return put_int(out, (int32_t)le32(p));
    case 0x11:
        return put_date(out, (int64_t)(le64(p) >> 32) * 1000);
    case 0x12: {
        int64_t v = (int64_t)le64(p);
        if (v >= -SAFE_INTEGER && v <= SAFE_INTEGER)
            return put_int(out, v);
        if (jb_byte(out, '"') || put_int(out, v))
            return BJ_NO_MEMORY;
        return jb_byte(out, '"');
    }
    case 0x13:
        return put_decimal(out, p);
    default:
        return jb_put(out, "null", 4);
    }
}

/* --- documents ------------------------------------------------------------------------------ */

static inline const bj_field *find(const bj_field *f, const char *name, size_t len)
{
    for (; f != NULL; f = f->next)
        if (f->len == len && memcmp(f->name, name, len) == 0)
            return f;
    return NULL;
}

static int document(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields, int depth);
static int elements(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields, size_t most, int first, size_t *count, int depth);

/* The value that an iterator is at, within a document of this depth. */
static int value(jb_buf *out, const bj_iter *it, bj_mode mode, const bj_field *fields, int depth)
{
    int found;
    if (it->type == 0x03)
        return document(out, it->value, it->value_len, mode, fields, depth + 1);
    if (it->type != 0x04)
        return bj_value(out, it->type, it->value, it->value_len);
    if (depth + 1 > BJ_MOST_DEPTH)
        return BJ_DEEP;
    if (jb_byte(out, '['))
        return BJ_NO_MEMORY;
    found = elements(out, it->value, it->value_len, mode, fields, SIZE_MAX, 1, NULL, depth + 1);
    if (found == BJ_OK && jb_byte(out, ']'))
        return BJ_NO_MEMORY;
    return found;
}

static int elements(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields, size_t most, int first, size_t *count, int depth)
{
    bj_iter it;
    int step, found;
    size_t n = 0;
    if (bj_open(&it, p, len))
        return BJ_MALFORMED;
    while ((step = bj_next(&it)) > 0) {
        if (n++ >= most)
            continue;
        if (mode == BJ_KEEP && it.type != 0x03 && it.type != 0x04)
            continue;
        if (!first && jb_byte(out, ','))
            return BJ_NO_MEMORY;
        first = 0;
        if ((found = value(out, &it, mode, fields, depth)))
            return found;
    }
    if (count != NULL)
        *count = n;
    return step;
}

static int document(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                    const bj_field *fields, int depth)
{
    bj_iter it;
    int step, found, first = 1;
    if (depth > BJ_MOST_DEPTH)
        return BJ_DEEP;
    if (bj_open(&it, p, len))
        return BJ_MALFORMED;
    if (jb_byte(out, '{'))
        return BJ_NO_MEMORY;
    while ((step = bj_next(&it)) > 0) {
        bj_mode inner = mode;
        const bj_field *below = NULL;
        if (mode != BJ_ALL) {
            const bj_field *listed = find(fields, it.name, it.name_len);
            if (listed == NULL) {
                if (mode == BJ_KEEP)
                    continue;
                inner = BJ_ALL;
            } else if (listed->whole) {
                if (mode == BJ_DROP)
                    continue;
                inner = BJ_ALL;
            } else {
                below = listed->below;
                if (mode == BJ_KEEP && it.type != 0x03 && it.type != 0x04)
                    continue;
            }
        }
        if (!first && jb_byte(out, ','))
            return BJ_NO_MEMORY;
        first = 0;
        if (jt_string(out, (const unsigned char *)it.name, it.name_len) || jb_byte(out, ':'))
            return BJ_NO_MEMORY;
        if ((found = value(out, &it, inner, below, depth)))
            return found;
    }
    if (step < 0)
        return step;
    return jb_byte(out, '}');
}

int bj_document(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                const bj_field *fields)
{
    return document(out, p, len, mode, fields, 0);
}

int bj_elements(jb_buf *out, const unsigned char *p, size_t len, bj_mode mode,
                const bj_field *fields, size_t most, int first, size_t *count)
{
    return elements(out, p, len, mode, fields, most, first, count, 0);
}
