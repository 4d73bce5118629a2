#include "pgjson.h"

/* Floats are printed with the fewest digits that read back as the same value, by Giulietti's
 * Schubfach method. Like the server, digits that fall exactly on the border between two values
 * are not taken, whichever way the reader would round them. */

static struct {
    uint64_t high, low;
} pow10_table[PJ_POW10_MAX - PJ_POW10_MIN + 1];

void pj_set_pow10(int exponent, uint64_t high, uint64_t low)
{
    pow10_table[exponent - PJ_POW10_MIN].high = high;
    pow10_table[exponent - PJ_POW10_MIN].low = low;
}

/* Upper 64 bits of pow10 * cp, the lowest of them set when anything below was not zero. */
static inline uint64_t round_to_odd(uint64_t high, uint64_t low, uint64_t cp)
{
    unsigned __int128 x = (unsigned __int128)low * cp;
    unsigned __int128 y = (unsigned __int128)high * cp + (uint64_t)(x >> 64);
    return (uint64_t)(y >> 64) | ((uint64_t)y > 1);
}

static inline int floor_log2_pow10(int e)
{
    return (e * 1741647) >> 19;
}

/* Shortest decimal of c * 2^q: *digits * 10^*exponent. `closer`: c is the smallest of its binary
 * exponent, so that the value below is only half as far away. */
static void shortest(uint64_t c, int q, int closer, uint64_t *digits, int *exponent)
{
    int k = (q * 1262611 - (closer ? 524031 : 0)) >> 22;
    int h = q + floor_log2_pow10(-k) + 1;
    uint64_t high = pow10_table[-k - PJ_POW10_MIN].high;
    uint64_t low = pow10_table[-k - PJ_POW10_MIN].low;
    uint64_t lower = round_to_odd(high, low, (4 * c - 2 + (uint64_t)closer) << h) + 1;
    uint64_t value = round_to_odd(high, low, (4 * c) << h);
    uint64_t upper = round_to_odd(high, low, (4 * c + 2) << h) - 1;
    uint64_t s = value / 4;
    int down, up;
    if (s >= 10) {
        uint64_t t = s / 10;
        down = lower <= 40 * t;
        up = 40 * t + 40 <= upper;
        if (down != up) {
            *digits = t + (uint64_t)up;
            *exponent = k + 1;
            return;
        }
    }
    down = lower <= 4 * s;
    up = 4 * s + 4 <= upper;
    if (down != up) {
        *digits = s + (uint64_t)up;
    } else {
        uint64_t middle = 4 * s + 2;
        *digits = s + (value > middle || (value == middle && (s & 1)));
    }
    *exponent = k;
}

/* `fixed` is the number of digits up to which a number is written without an exponent. */
static int put_decimal(jb_buf *out, int negative, uint64_t digits, int exponent, int fixed)
{
    char text[24];
    char *o;
    int n, point, i;
    while (digits % 100000000 == 0) { /* most have many zeros or none */
        digits /= 100000000;
        exponent += 8;
    }
    if (digits % 10000 == 0) {
        digits /= 10000;
        exponent += 4;
    }
    while (digits % 10 == 0) {
        digits /= 10;
        exponent++;
    }
    n = (int)(pj_digits(text, digits) - text);
    point = n + exponent - 1; /* decimal exponent of the first digit */
    if (jb_room(out, 48))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    if (negative)
        *o++ = '-';
    if (point >= -4 && point < fixed) {
        if (point < 0) {
            *o++ = '0';
            *o++ = '.';
            for (i = -1; i > point; i--)
                *o++ = '0';
            memcpy(o, text, (size_t)n);
            o += n;
        } else if (n <= point + 1) {
            memcpy(o, text, (size_t)n);
            o += n;
            for (i = n; i <= point; i++)
                *o++ = '0';
        } else {
            memcpy(o, text, (size_t)point + 1);
            o += point + 1;
            *o++ = '.';
            memcpy(o, text + point + 1, (size_t)(n - point - 1));
            o += n - point - 1;
        }
    } else {
        *o++ = text[0];
        if (n > 1) {
            *o++ = '.';
            memcpy(o, text + 1, (size_t)n - 1);
            o += n - 1;
        }
        *o++ = 'e';
        *o++ = point < 0 ? '-' : '+';
        if (point < 0)
            point = -point;
        if (point >= 100)
            *o++ = (char)('0' + point / 100);
        o = pj_two(o, (unsigned)(point % 100));
    }
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

static int put_special(jb_buf *out, int negative, int nan)
{
    if (nan)
        return jb_put(out, "\"NaN\"", 5);
    return negative ? jb_put(out, "\"-Infinity\"", 11) : jb_put(out, "\"Infinity\"", 10);
}

int pj_float8(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    uint64_t bits, fraction, digits;
    int negative, biased, exponent;
    if (len != 8)
        return PJ_MALFORMED;
    bits = pj_u64(p);
    negative = (int)(bits >> 63);
    biased = (int)(bits >> 52) & 0x7ff;
    fraction = bits & ((1ULL << 52) - 1);
    if (biased == 0x7ff)
        return put_special(out, negative, fraction != 0);
    if (biased == 0 && fraction == 0)
        return negative ? jb_put(out, "-0", 2) : jb_put(out, "0", 1);
    if (biased == 0)
        shortest(fraction, -1074, 0, &digits, &exponent);
    else
        shortest(fraction | (1ULL << 52), biased - 1075, fraction == 0 && biased > 1, &digits,
                 &exponent);
    return put_decimal(out, negative, digits, exponent, 15);
}

int pj_float4(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    uint32_t bits, fraction;
    uint64_t digits;
    int negative, biased, exponent;
    if (len != 4)
        return PJ_MALFORMED;
    bits = pj_u32(p);
    negative = (int)(bits >> 31);
    biased = (int)(bits >> 23) & 0xff;
    fraction = bits & ((1U << 23) - 1);
    if (biased == 0xff)
        return put_special(out, negative, fraction != 0);
    if (biased == 0 && fraction == 0)
        return negative ? jb_put(out, "-0", 2) : jb_put(out, "0", 1);
    if (biased == 0)
        shortest(fraction, -149, 0, &digits, &exponent);
    else
        shortest(fraction | (1U << 23), biased - 150, fraction == 0 && biased > 1, &digits,
                 &exponent);
    return put_decimal(out, negative, digits, exponent, 6);
}

/* --- numeric: groups of four decimal digits ---------------------------------------------------- */

enum { NUMERIC_POSITIVE = 0, NUMERIC_NEGATIVE = 0x4000, NUMERIC_NAN = 0xC000 };
enum { NUMERIC_INFINITY = 0xD000, NUMERIC_MINUS_INFINITY = 0xF000 };

static inline unsigned group(const unsigned char *p, int count, int i)
{
    return i >= 0 && i < count ? pj_u16(p + 8 + 2 * i) : 0;
}

int pj_numeric(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int count, weight, sign, scale, i, left;
    char *o;
    if (len < 8)
        return PJ_MALFORMED;
    count = pj_u16(p);
    weight = (int16_t)pj_u16(p + 2);
    sign = pj_u16(p + 4);
    scale = pj_u16(p + 6);
    if (sign == NUMERIC_NAN)
        return put_special(out, 0, 1);
    if (sign == NUMERIC_INFINITY || sign == NUMERIC_MINUS_INFINITY)
        return put_special(out, sign == NUMERIC_MINUS_INFINITY, 0);
    if (len != 8 + 2 * count || (sign != NUMERIC_POSITIVE && sign != NUMERIC_NEGATIVE))
        return PJ_MALFORMED;
    for (i = 0; i < count; i++)
        if (group(p, count, i) > 9999)
            return PJ_MALFORMED;
    if (jb_room(out, (size_t)(weight > 0 ? weight : 0) * 4 + (size_t)scale + 16))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    if (sign == NUMERIC_NEGATIVE)
        *o++ = '-';
    if (weight < 0) {
        *o++ = '0';
    } else {
        o = pj_digits(o, group(p, count, 0));
        for (i = 1; i <= weight; i++) {
            unsigned g = group(p, count, i);
            o = pj_two(o, g / 100);
            o = pj_two(o, g % 100);
        }
    }
    if (scale > 0) {
        *o++ = '.';
        for (i = weight + 1, left = scale; left > 0; i++, left -= 4) {
            char four[4];
            unsigned g = 0;
            int take = left < 4 ? left : 4;
            g = group(p, count, i);
            pj_two(four, g / 100);
            pj_two(four + 2, g % 100);
            memcpy(o, four, (size_t)take);
            o += take;
        }
    }
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}
