/* Values in Postgres' binary format to JSON, as the server's own to_json() writes them. */
#ifndef ICHIBASE_PGJSON_H
#define ICHIBASE_PGJSON_H

#include <libpq-fe.h>

#include "jsonbuf.h"
#include "jsontext.h"

enum {
    PJ_OK = 0,
    PJ_NO_MEMORY = -1,
    PJ_MALFORMED = -2, /* the bytes are not what the type's send function writes */
};

/* Session settings that change the text of a type; a codec that names one is exact only while the
 * setting has its default (TimeZone UTC, IntervalStyle postgres, bytea_output hex,
 * extra_float_digits above 0). */
enum {
    PJ_ZONE = 1,
    PJ_INTERVAL = 2,
    PJ_BYTEA = 4,
    PJ_FLOAT = 8,
    PJ_DOCUMENT = 16, /* not a setting: holds JSON, into which nulls=stripped reaches */
};

typedef struct pj_codec pj_codec;
typedef int (*pj_fn)(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);

struct pj_codec {
    pj_fn fn;
    const pj_codec *element; /* arrays: the codec of one element */
    unsigned needs;          /* settings as above */
};

enum { PJ_KEY_PAD = 16 };

typedef struct {
    const char *key; /* `"name":`, escaped; PJ_KEY_PAD bytes more can be read */
    int key_len;
    const pj_codec *codec;
} pj_column;

/* The codec of a built-in type, or NULL when Postgres has to write it. */
const pj_codec *pj_builtin(uint32_t oid);
/* For enums and other types whose binary form is their text. */
const pj_codec *pj_text(void);
/* An array of elements of `element`; owned by the caller, free() it. */
pj_codec *pj_array_of(const pj_codec *element);

/* Lets pj_row read values without asking libpq for each, if `wanted` and this library is known well
 * enough. Whether it does. */
int pj_read_in_place(int wanted);

/* One row of a binary result as a JSON object; `strip` leaves NULL columns out. */
int pj_row(jb_buf *out, const PGresult *res, int row, const pj_column *columns, int ncolumns,
           int strip);

/* A JSON string, quotes included. */
static inline int pj_string(jb_buf *out, const unsigned char *p, size_t len)
{
    return jt_string(out, p, len);
}

/* Parts that live in files of their own. */
int pj_float4(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_float8(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_numeric(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_date(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_time(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_timetz(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_timestamp(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_timestamptz(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_interval(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_inet(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);
int pj_macaddr(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len);

/* The table of powers of ten for floats: index 0 is 10^PJ_POW10_MIN, each scaled to exactly 128
 * significant bits and rounded up. Must be filled once before the first row. */
#define PJ_POW10_MIN (-292)
#define PJ_POW10_MAX 324
void pj_set_pow10(int exponent, uint64_t high, uint64_t low);

static inline uint16_t pj_u16(const unsigned char *p)
{
    return (uint16_t)((p[0] << 8) | p[1]);
}

static inline uint32_t pj_u32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline uint64_t pj_u64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

/* v (under 100) as two digits. */
static inline char *pj_two(char *p, unsigned v)
{
    static const char PAIRS[] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
        "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";
    memcpy(p, PAIRS + 2 * v, 2);
    return p + 2;
}

/* How many decimal digits v has; 1 for zero. */
static inline int pj_count(uint64_t v)
{
    static const uint64_t POWERS[] = {
        1ULL, 10ULL, 100ULL, 1000ULL, 10000ULL, 100000ULL, 1000000ULL, 10000000ULL, 100000000ULL,
        1000000000ULL, 10000000000ULL, 100000000000ULL, 1000000000000ULL, 10000000000000ULL,
        100000000000000ULL, 1000000000000000ULL, 10000000000000000ULL, 100000000000000000ULL,
        1000000000000000000ULL, 10000000000000000000ULL,
    };
    int about = (64 - __builtin_clzll(v | 1)) * 1233 >> 12; /* of bits, times log10(2) */
    return about + (v >= POWERS[about]) + (v == 0);
}

/* Decimal digits of v at p, without leading zeros; returns the end. 20 bytes at most. */
static inline char *pj_digits(char *p, uint64_t v)
{
    char *end = p + pj_count(v), *o = end;
    while (v >= 100) {
        pj_two(o -= 2, (unsigned)(v % 100));
        v /= 100;
    }
    if (v >= 10)
        pj_two(o - 2, (unsigned)v);
    else
        o[-1] = (char)('0' + v);
    return end;
}

#endif
