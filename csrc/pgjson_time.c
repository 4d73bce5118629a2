#include "pgjson.h"

#define USECS_PER_SEC 1000000LL
#define USECS_PER_DAY 86400000000LL
#define DAYS_TO_2000 10957 /* from 1970-01-01 to 2000-01-01, Postgres' day zero */

static int put_infinity(jb_buf *out, int negative)
{
    return negative ? jb_put(out, "\"-infinity\"", 11) : jb_put(out, "\"infinity\"", 10);
}

/* Proleptic Gregorian date of a day number (0 is 2000-01-01): years of 400-year cycles that begin
 * in March, so that the leap day is the last of its year. Year 0 is 1 BC. */
static void civil(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
    int64_t z = days + DAYS_TO_2000 + 719468; /* days since 0000-03-01 */
    int64_t era = (z >= 0 ? z : z - 146096) / 146097;
    unsigned in_era = (unsigned)(z - era * 146097);
    unsigned y = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    unsigned in_year = in_era - (365 * y + y / 4 - y / 100);
    unsigned shifted = (5 * in_year + 2) / 153;
    *day = in_year - (153 * shifted + 2) / 5 + 1;
    *month = shifted < 10 ? shifted + 3 : shifted - 9;
    *year = (int64_t)y + era * 400 + (*month <= 2);
}

/* YYYY-MM-DD; sets *bc when " BC" has to follow at the end. */
static char *write_date(char *o, int64_t days, int *bc)
{
    int64_t year;
    unsigned month, day;
    civil(days, &year, &month, &day);
    *bc = year <= 0;
    if (*bc)
        year = 1 - year;
    if (year < 10000) {
        o = pj_two(o, (unsigned)year / 100);
        o = pj_two(o, (unsigned)year % 100);
    } else {
        o = pj_digits(o, (uint64_t)year);
    }
    *o++ = '-';
    o = pj_two(o, month);
    *o++ = '-';
    return pj_two(o, day);
}

/* .ffffff without trailing zeros, nothing for zero. */
static char *write_fraction(char *o, unsigned usecs)
{
    int i;
    if (usecs == 0)
        return o;
    *o = '.';
    for (i = 6; i > 0; i--) {
        o[i] = (char)('0' + usecs % 10);
        usecs /= 10;
    }
    for (i = 6; o[i] == '0'; i--)
        ;
    return o + i + 1;
}

/* HH:MM:SS[.ffffff]; 24:00:00 is a valid time. */
static char *write_time(char *o, int64_t usecs)
{
    unsigned seconds = (unsigned)(usecs / USECS_PER_SEC);
    o = pj_two(o, seconds / 3600);
    *o++ = ':';
    o = pj_two(o, seconds / 60 % 60);
    *o++ = ':';
    o = pj_two(o, seconds % 60);
    return write_fraction(o, (unsigned)(usecs % USECS_PER_SEC));
}

int pj_date(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int32_t days;
    int bc;
    char *o;
    if (len != 4)
        return PJ_MALFORMED;
    days = (int32_t)pj_u32(p);
    if (days == INT32_MAX || days == INT32_MIN)
        return put_infinity(out, days < 0);
    if (jb_room(out, 40))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = write_date(o, days, &bc);
    if (bc) {
        memcpy(o, " BC", 3);
        o += 3;
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

static int put_timestamp(jb_buf *out, const unsigned char *p, int len, int with_zone)
{
    int64_t usecs, days;
    int bc;
    char *o;
    if (len != 8)
        return PJ_MALFORMED;
    usecs = (int64_t)pj_u64(p);
    if (usecs == INT64_MAX || usecs == INT64_MIN)
        return put_infinity(out, usecs < 0);
    days = usecs / USECS_PER_DAY;
    usecs %= USECS_PER_DAY;
    if (usecs < 0) {
        usecs += USECS_PER_DAY;
        days--;
    }
    if (jb_room(out, 64))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = write_date(o, days, &bc);
    *o++ = 'T';
    o = write_time(o, usecs);
    if (with_zone) {
        memcpy(o, "+00:00", 6);
        o += 6;
    }
    if (bc) {
        memcpy(o, " BC", 3);
        o += 3;
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

int pj_timestamp(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return put_timestamp(out, p, len, 0);
}

int pj_timestamptz(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return put_timestamp(out, p, len, 1);
}

int pj_time(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int64_t usecs;
    char *o;
    if (len != 8)
        return PJ_MALFORMED;
    usecs = (int64_t)pj_u64(p);
    if (usecs < 0 || usecs > USECS_PER_DAY)
        return PJ_MALFORMED;
    if (jb_room(out, 24))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = write_time(o, usecs);
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

/* The offset is stored as seconds west of Greenwich; minutes and seconds show only when needed. */
int pj_timetz(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int64_t usecs;
    int32_t east;
    unsigned away;
    char *o;
    if (len != 12)
        return PJ_MALFORMED;
    usecs = (int64_t)pj_u64(p);
    east = (int32_t)pj_u32(p + 8);
    if (usecs < 0 || usecs > USECS_PER_DAY || east <= -86400 || east >= 86400)
        return PJ_MALFORMED;
    east = -east;
    away = (unsigned)(east < 0 ? -east : east);
    if (jb_room(out, 40))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = write_time(o, usecs);
    *o++ = east < 0 ? '-' : '+';
    o = pj_two(o, away / 3600);
    if (away % 3600) {
        *o++ = ':';
        o = pj_two(o, away / 60 % 60);
    }
    if (away % 60) {
        *o++ = ':';
        o = pj_two(o, away % 60);
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

/* --- interval, IntervalStyle postgres ------------------------------------------------------- */

/* One of years, months, days. A positive part after a negative one gets a plus sign. */
static char *write_part(char *o, int64_t value, const char *unit, int *first, int *after_minus)
{
    size_t n = strlen(unit);
    if (value == 0)
        return o;
    if (!*first)
        *o++ = ' ';
    if (*after_minus && value > 0)
        *o++ = '+';
    if (value < 0)
        *o++ = '-';
    o = pj_digits(o, (uint64_t)(value < 0 ? -value : value));
    *o++ = ' ';
    memcpy(o, unit, n);
    o += n;
    if (value != 1)
        *o++ = 's';
    *after_minus = value < 0;
    *first = 0;
    return o;
}

int pj_interval(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int64_t usecs;
    int32_t days, months;
    int first = 1, after_minus = 0;
    char *o;
    if (len != 16)
        return PJ_MALFORMED;
    usecs = (int64_t)pj_u64(p);
    days = (int32_t)pj_u32(p + 8);
    months = (int32_t)pj_u32(p + 12);
    if (usecs == INT64_MAX && days == INT32_MAX && months == INT32_MAX)
        return put_infinity(out, 0);
    if (usecs == INT64_MIN && days == INT32_MIN && months == INT32_MIN)
        return put_infinity(out, 1);
    if (jb_room(out, 128))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = write_part(o, months / 12, "year", &first, &after_minus);
    o = write_part(o, months % 12, "mon", &first, &after_minus);
    o = write_part(o, days, "day", &first, &after_minus);
    if (first || usecs != 0) {
        uint64_t away = usecs < 0 ? 0 - (uint64_t)usecs : (uint64_t)usecs;
        uint64_t seconds = away / USECS_PER_SEC;
        uint64_t hours = seconds / 3600;
        if (!first)
            *o++ = ' ';
        if (usecs < 0)
            *o++ = '-';
        else if (after_minus)
            *o++ = '+';
        if (hours < 100)
            o = pj_two(o, (unsigned)hours);
        else
            o = pj_digits(o, hours);
        *o++ = ':';
        o = pj_two(o, (unsigned)(seconds / 60 % 60));
        *o++ = ':';
        o = pj_two(o, (unsigned)(seconds % 60));
        o = write_fraction(o, (unsigned)(away % USECS_PER_SEC));
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}
