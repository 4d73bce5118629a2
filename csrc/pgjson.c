#include "pgjson.h"

#include "pgvalues.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pgjson reads network order by swapping bytes and is written for little-endian machines"
#endif

#define ROW(h) h "0" h "1" h "2" h "3" h "4" h "5" h "6" h "7" \
               h "8" h "9" h "a" h "b" h "c" h "d" h "e" h "f"
static const char HEX_PAIRS[] = ROW("0") ROW("1") ROW("2") ROW("3") ROW("4") ROW("5") ROW("6")
    ROW("7") ROW("8") ROW("9") ROW("a") ROW("b") ROW("c") ROW("d") ROW("e") ROW("f");
#undef ROW

static int put_text(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return pj_string(out, p, (size_t)len);
}

static int put_raw(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return jb_put(out, p, (size_t)len);
}

static int put_jsonb(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    if (len < 1 || p[0] != 1)
        return PJ_MALFORMED;
    return jb_put(out, p + 1, (size_t)len - 1);
}

static int put_jsonpath(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    if (len < 1 || p[0] != 1)
        return PJ_MALFORMED;
    return pj_string(out, p + 1, (size_t)len - 1);
}

static int put_bool(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    if (len != 1)
        return PJ_MALFORMED;
    return p[0] ? jb_put(out, "true", 4) : jb_put(out, "false", 5);
}

static int put_int(jb_buf *out, int64_t v)
{
    char *o;
    if (jb_room(out, 24))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    if (v < 0)
        *o++ = '-';
    o = pj_digits(o, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

static int put_int2(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return len == 2 ? put_int(out, (int16_t)pj_u16(p)) : PJ_MALFORMED;
}

static int put_int4(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return len == 4 ? put_int(out, (int32_t)pj_u32(p)) : PJ_MALFORMED;
}

static int put_int8(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    return len == 8 ? put_int(out, (int64_t)pj_u64(p)) : PJ_MALFORMED;
}

/* oid, xid, cid: JSON strings, because to_json knows no such numbers. */
static int put_oid(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char tmp[24];
    char *end;
    if (len != 4)
        return PJ_MALFORMED;
    tmp[0] = '"';
    end = pj_digits(tmp + 1, pj_u32(p));
    *end++ = '"';
    return jb_put(out, tmp, (size_t)(end - tmp));
}

static int put_xid8(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char tmp[24];
    char *end;
    if (len != 8)
        return PJ_MALFORMED;
    tmp[0] = '"';
    end = pj_digits(tmp + 1, pj_u64(p));
    *end++ = '"';
    return jb_put(out, tmp, (size_t)(end - tmp));
}

/* "char": one byte; zero is the empty text, bytes above 127 are shown as \ooo. */
static int put_char(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    unsigned char text[4];
    if (len != 1)
        return PJ_MALFORMED;
    if (p[0] == 0)
        return pj_string(out, p, 0);
    if (p[0] < 128)
        return pj_string(out, p, 1);
    text[0] = '\\';
    text[1] = (unsigned char)('0' + (p[0] >> 6));
    text[2] = (unsigned char)('0' + ((p[0] >> 3) & 7));
    text[3] = (unsigned char)('0' + (p[0] & 7));
    return pj_string(out, text, 4);
}

static int put_bytea(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char *o;
    int i;
    if (jb_room(out, 2 * (size_t)len + 5))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    memcpy(o, "\"\\\\x", 4);
    o += 4;
    for (i = 0; i < len; i++, o += 2)
        memcpy(o, &HEX_PAIRS[2 * p[i]], 2);
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

static int put_uuid(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char tmp[38];
    char *o = tmp;
    int i;
    if (len != 16)
        return PJ_MALFORMED;
    *o++ = '"';
    for (i = 0; i < 16; i++, o += 2) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *o++ = '-';
        memcpy(o, &HEX_PAIRS[2 * p[i]], 2);
    }
    *o++ = '"';
    return jb_put(out, tmp, sizeof tmp);
}

static int put_bits(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    int32_t bits, i;
    char *o;
    if (len < 4)
        return PJ_MALFORMED;
    bits = (int32_t)pj_u32(p);
    if (bits < 0 || ((int64_t)bits + 7) / 8 != len - 4)
        return PJ_MALFORMED;
    if (jb_room(out, (size_t)bits + 2))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    for (i = 0; i < bits; i++)
        *o++ = (p[4 + i / 8] >> (7 - i % 8)) & 1 ? '1' : '0';
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

/* --- arrays ------------------------------------------------------------------------------- */

#define MAX_DIMS 6

static int put_dimension(jb_buf *out, const pj_codec *element, const unsigned char **p,
                         const unsigned char *end, const int32_t *dims, int ndim)
{
    int32_t i;
    int rc;
    if (jb_byte(out, '['))
        return PJ_NO_MEMORY;
    for (i = 0; i < dims[0]; i++) {
        if (i && jb_byte(out, ','))
            return PJ_NO_MEMORY;
        if (ndim > 1) {
            if ((rc = put_dimension(out, element, p, end, dims + 1, ndim - 1)))
                return rc;
            continue;
        }
        if (end - *p < 4)
            return PJ_MALFORMED;
        int32_t len = (int32_t)pj_u32(*p);
        *p += 4;
        if (len == -1) {
            if (jb_put(out, "null", 4))
                return PJ_NO_MEMORY;
            continue;
        }
        if (len < 0 || len > end - *p)
            return PJ_MALFORMED;
        if ((rc = element->fn(out, element, *p, len)))
            return rc;
        *p += len;
    }
    return jb_byte(out, ']');
}

static int put_array(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    const unsigned char *end = p + len;
    int32_t dims[MAX_DIMS];
    int32_t ndim, i;
    if (len < 12)
        return PJ_MALFORMED;
    ndim = (int32_t)pj_u32(p);
    p += 12; /* dimensions, null flag, element type */
    if (ndim == 0)
        return jb_put(out, "[]", 2);
    if (ndim < 0 || ndim > MAX_DIMS || end - p < 8 * ndim)
        return PJ_MALFORMED;
    for (i = 0; i < ndim; i++, p += 8) { /* size, lower bound: JSON has no lower bounds */
        dims[i] = (int32_t)pj_u32(p);
        if (dims[i] < 0)
            return PJ_MALFORMED;
    }
    return put_dimension(out, codec->element, &p, end, dims, ndim);
}

/* --- which type is written how -------------------------------------------------------------- */

/* X(name, oid, array oid, function, needs); array oid 0: the array is left to Postgres */
#define TYPES(X) \
    X(boolean, 16, 1000, put_bool, 0) \
    X(bytea, 17, 1001, put_bytea, PJ_BYTEA) \
    X(quoted_char, 18, 1002, put_char, 0) \
    X(name, 19, 1003, put_text, 0) \
    X(int8, 20, 1016, put_int8, 0) \
    X(int2, 21, 1005, put_int2, 0) \
    X(int4, 23, 1007, put_int4, 0) \
    X(text, 25, 1009, put_text, 0) \
    X(oid, 26, 1028, put_oid, 0) \
    X(xid, 28, 1011, put_oid, 0) \
    X(cid, 29, 1012, put_oid, 0) \
    X(xid8, 5069, 271, put_xid8, 0) \
    X(json, 114, 199, put_raw, PJ_DOCUMENT) \
    X(jsonb, 3802, 3807, put_jsonb, PJ_DOCUMENT) \
    X(jsonpath, 4072, 4073, put_jsonpath, 0) \
    X(float4, 700, 1021, pj_float4, PJ_FLOAT) \
    X(float8, 701, 1022, pj_float8, PJ_FLOAT) \
    X(unknown, 705, 0, put_text, 0) \
    X(cstring, 2275, 1263, put_text, 0) \
    X(macaddr8, 774, 775, pj_macaddr, 0) \
    X(macaddr, 829, 1040, pj_macaddr, 0) \
    X(cidr, 650, 651, pj_inet, 0) \
    X(inet, 869, 1041, pj_inet, 0) \
    X(bpchar, 1042, 1014, put_text, 0) \
    X(varchar, 1043, 1015, put_text, 0) \
    X(date, 1082, 1182, pj_date, 0) \
    X(time, 1083, 1183, pj_time, 0) \
    X(timetz, 1266, 1270, pj_timetz, 0) \
    X(timestamp, 1114, 1115, pj_timestamp, 0) \
    X(timestamptz, 1184, 1185, pj_timestamptz, PJ_ZONE) \
    X(interval, 1186, 1187, pj_interval, PJ_INTERVAL) \
    X(bit, 1560, 1561, put_bits, 0) \
    X(varbit, 1562, 1563, put_bits, 0) \
    X(numeric, 1700, 1231, pj_numeric, 0) \
    X(uuid, 2950, 2951, put_uuid, 0) \
    X(none, 2278, 0, put_text, 0)

#define CODEC(name, oid, array, fn, needs) \
    static const pj_codec codec_##name = {fn, NULL, needs}; \
    static const pj_codec codec_##name##_array = {put_array, &codec_##name, needs};
TYPES(CODEC)

#define CASE(name, oid, array, fn, needs) \
    if (wanted == oid) \
        return &codec_##name; \
    if (wanted == array && array != 0) \
        return &codec_##name##_array;

const pj_codec *pj_builtin(uint32_t wanted)
{
    TYPES(CASE)
    return NULL;
}

const pj_codec *pj_text(void)
{
    return &codec_text;
}

pj_codec *pj_array_of(const pj_codec *element)
{
    pj_codec *made = malloc(sizeof *made);
    if (made != NULL) {
        made->fn = put_array;
        made->element = element;
        made->needs = element->needs;
    }
    return made;
}

static int in_place; /* whether values are read where libpq keeps them */

int pj_read_in_place(int wanted)
{
    return in_place = wanted && pg_rows_known();
}

int pj_row(jb_buf *out, const PGresult *res, int row, const pj_column *columns, int ncolumns,
           int strip)
{
    const pg_value *values = in_place ? pg_values(res, row) : NULL;
    int i, rc, at;
    char sep = '{';
    for (i = 0; i < ncolumns; i++) {
        const pj_column *column = &columns[i];
        pg_value value;
        char *o;
        if (values != NULL) {
            value = values[i];
        } else {
            value.len = PQgetisnull(res, row, i) ? -1 : PQgetlength(res, row, i);
            value.p = (const unsigned char *)PQgetvalue(res, row, i);
        }
        if (value.len < 0 && strip)
            continue;
        if (jb_room(out, (size_t)column->key_len + PJ_KEY_PAD + 5))
            return PJ_NO_MEMORY;
        o = out->data + out->len;
        *o++ = sep;
        sep = ',';
        for (at = 0; at < column->key_len; at += PJ_KEY_PAD)
            memcpy(o + at, column->key + at, PJ_KEY_PAD);
        o += column->key_len;
        out->len = (size_t)(o - out->data);
        if (value.len < 0) {
            memcpy(o, "null", 4);
            out->len += 4;
            continue;
        }
        rc = column->codec->fn(out, column->codec, value.p, value.len);
        if (rc)
            return rc;
    }
    if (sep == '{' && jb_byte(out, '{'))
        return PJ_NO_MEMORY;
    return jb_byte(out, '}');
}
