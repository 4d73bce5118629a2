#include "pgtext.h"

#include "jsontext.h"

typedef const unsigned char *text;

static int put_number(jb_buf *out, text p, size_t len)
{
    size_t at = len > 0 && p[0] == '-', i;
    if (at < len && p[at] >= '0' && p[at] <= '9') {
        for (i = at; i < len; i++)
            if (!((p[i] >= '0' && p[i] <= '9') || p[i] == '.' || p[i] == 'e' || p[i] == '+' ||
                  p[i] == '-'))
                return PT_MALFORMED;
        return jb_put(out, p, len);
    }
    return jt_string(out, p, len); /* NaN, Infinity */
}

/* "2024-07-01 12:00:00.5+00 BC", "infinity" */
static int put_stamp(jb_buf *out, text p, size_t len, int zoned)
{
    text end = p + len;
    text space = memchr(p, ' ', len);
    char *o;
    size_t i;
    if (jb_room(out, len + 5))
        return PT_NO_MEMORY;
    for (i = 0; i < len; i++)
        if (p[i] < ' ' || p[i] == '"' || p[i] == '\\')
            return PT_MALFORMED;
    o = out->data + out->len;
    *o++ = '"';
    if (space == NULL) {
        memcpy(o, p, len);
        o += len;
    } else {
        text zone = end;
        memcpy(o, p, (size_t)(space - p));
        o += space - p;
        *o++ = 'T';
        p = space + 1;
        if (zoned) {
            for (zone = p; zone < end && *zone != '+' && *zone != '-'; zone++)
                ;
            if (end - zone >= 3 && (end - zone == 3 || zone[3] == ' ')) {
                zone += 3;
                memcpy(o, p, (size_t)(zone - p));
                o += zone - p;
                memcpy(o, ":00", 3);
                o += 3;
                p = zone;
            }
        }
        memcpy(o, p, (size_t)(end - p));
        o += end - p;
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PT_OK;
}

/* The quoted text that begins after the quote at p[-1], up to its closing quote: a pointer to what
 * it says and its length, in `scratch` when there are escapes. In records a quote is doubled.
 * Gives where the text goes on, or NULL when it does not end or there is no memory. */
static text unquote(text p, text end, int doubled, jb_buf *scratch, text *value, size_t *len)
{
    text start = p;
    while (p < end && *p != '"' && *p != '\\')
        p++;
    if (p == end)
        return NULL;
    if (*p == '"' && !(doubled && p + 1 < end && p[1] == '"')) {
        *value = start;
        *len = (size_t)(p - start);
        return p + 1;
    }
    scratch->len = 0;
    if (jb_room(scratch, (size_t)(end - start) + 1))
        return NULL;
    memcpy(scratch->data, start, (size_t)(p - start));
    scratch->len = (size_t)(p - start);
    while (p < end) {
        if (*p == '"') {
            if (!(doubled && p + 1 < end && p[1] == '"')) {
                *value = (text)scratch->data;
                *len = scratch->len;
                return p + 1;
            }
            p++;
        } else if (*p == '\\') {
            if (++p == end)
                return NULL;
        }
        scratch->data[scratch->len++] = (char)*p++;
    }
    return NULL;
}

static int put_items(jb_buf *out, const pt_type *type, text *at, text end, int depth,
                     jb_buf *scratch)
{
    text p = *at;
    int rc, first = 1;
    if (depth > PT_MAX_DEPTH || p == end || *p != '{')
        return PT_MALFORMED;
    p++;
    if (jb_byte(out, '['))
        return PT_NO_MEMORY;
    for (;; first = 0) {
        if (p == end)
            return PT_MALFORMED;
        if (*p == '}' && first)
            break;
        if (!first) {
            if (*p == '}')
                break;
            if (*p != (unsigned char)type->delimiter)
                return PT_MALFORMED;
            p++;
            if (jb_byte(out, ','))
                return PT_NO_MEMORY;
            if (p == end)
                return PT_MALFORMED;
        }
        if (*p == '{') {
            if ((rc = put_items(out, type, &p, end, depth + 1, scratch)))
                return rc;
        } else if (*p == '"') {
            text value;
            size_t len;
            if ((p = unquote(p + 1, end, 0, scratch, &value, &len)) == NULL)
                return PT_MALFORMED;
            if ((rc = pt_value(out, type->element, value, len, depth + 1)))
                return rc;
        } else {
            text start = p;
            while (p < end && *p != (unsigned char)type->delimiter && *p != '}')
                p++;
            if (p - start == 4 && memcmp(start, "NULL", 4) == 0)
                rc = jb_put(out, "null", 4);
            else
                rc = pt_value(out, type->element, start, (size_t)(p - start), depth + 1);
            if (rc)
                return rc;
        }
    }
    *at = p + 1;
    return jb_byte(out, ']');
}

static int put_array(jb_buf *out, const pt_type *type, text p, size_t len, int depth)
{
    text end = p + len;
    jb_buf scratch;
    int rc;
    if (len && *p == '[') { /* bounds, which JSON has not */
        p = memchr(p, '=', len);
        if (p++ == NULL)
            return PT_MALFORMED;
    }
    jb_init(&scratch);
    rc = put_items(out, type, &p, end, depth, &scratch);
    jb_free(&scratch);
    return rc == PT_OK && p != end ? PT_MALFORMED : rc;
}

static int put_vector(jb_buf *out, const pt_type *type, text p, size_t len, int depth)
{
    text end = p + len;
    int rc, first = 1;
    if (jb_byte(out, '['))
        return PT_NO_MEMORY;
    for (; p < end; first = 0) {
        text start = p;
        while (p < end && *p != ' ')
            p++;
        if (!first && jb_byte(out, ','))
            return PT_NO_MEMORY;
        if ((rc = pt_value(out, type->element, start, (size_t)(p - start), depth + 1)))
            return rc;
        p += p < end;
    }
    return jb_byte(out, ']');
}

static int put_record(jb_buf *out, const pt_type *type, text p, size_t len, int depth)
{
    text end = p + len;
    jb_buf scratch;
    int i, rc = PT_MALFORMED;
    if (len < 2 || *p++ != '(' || end[-1] != ')' || depth > PT_MAX_DEPTH)
        return PT_MALFORMED;
    end--;
    jb_init(&scratch);
    if (jb_byte(out, '{'))
        goto no_memory;
    for (i = 0; i < type->nfields; i++) {
        const pt_field *field = &type->fields[i];
        if (i) {
            if (p == end || *p++ != ',')
                goto done;
            if (jb_byte(out, ','))
                goto no_memory;
        }
        if (jb_put(out, field->key, (size_t)field->key_len))
            goto no_memory;
        if (p < end && *p == '"') {
            text value;
            size_t size;
            if ((p = unquote(p + 1, end, 1, &scratch, &value, &size)) == NULL)
                goto done;
            if ((rc = pt_value(out, field->type, value, size, depth + 1)))
                goto done;
        } else {
            text start = p;
            while (p < end && *p != ',')
                p++;
            rc = p == start ? jb_put(out, "null", 4)
                            : pt_value(out, field->type, start, (size_t)(p - start), depth + 1);
            if (rc)
                goto done;
        }
        rc = PT_MALFORMED;
    }
    if (p == end)
        rc = jb_byte(out, '}');
done:
    jb_free(&scratch);
    return rc;
no_memory:
    jb_free(&scratch);
    return PT_NO_MEMORY;
}

/* "a"=>"1", "b"=>NULL as hstore's cast to json writes it: {"a": "1", "b": null} */
static int put_hstore(jb_buf *out, text p, size_t len)
{
    text end = p + len;
    jb_buf scratch;
    int rc = PT_MALFORMED, first = 1;
    jb_init(&scratch);
    if (jb_byte(out, '{'))
        goto no_memory;
    for (; p < end; first = 0) {
        text value;
        size_t size;
        if (!first) {
            if (end - p < 2 || *p++ != ',' || *p++ != ' ')
                goto done;
            if (jb_put(out, ", ", 2))
                goto no_memory;
        }
        if (p == end || *p++ != '"' ||
            (p = unquote(p, end, 0, &scratch, &value, &size)) == NULL)
            goto done;
        if (jt_string(out, value, size) || jb_put(out, ": ", 2))
            goto no_memory;
        if (end - p < 2 || *p++ != '=' || *p++ != '>')
            goto done;
        if (end - p >= 4 && memcmp(p, "NULL", 4) == 0) {
            p += 4;
            if (jb_put(out, "null", 4))
                goto no_memory;
            continue;
        }
        if (p == end || *p++ != '"' ||
            (p = unquote(p, end, 0, &scratch, &value, &size)) == NULL)
            goto done;
        if (jt_string(out, value, size))
            goto no_memory;
    }
    rc = jb_byte(out, '}');
done:
    jb_free(&scratch);
    return rc;
no_memory:
    jb_free(&scratch);
    return PT_NO_MEMORY;
}

int pt_value(jb_buf *out, const pt_type *type, text p, size_t len, int depth)
{
    switch (type->kind) {
    case PT_NUMBER:
        return put_number(out, p, len);
    case PT_BOOL:
        if (len != 1 || (*p != 't' && *p != 'f'))
            return PT_MALFORMED;
        return *p == 't' ? jb_put(out, "true", 4) : jb_put(out, "false", 5);
    case PT_JSON:
        return len ? jb_put(out, p, len) : PT_MALFORMED;
    case PT_STAMP:
    case PT_STAMPTZ:
        return put_stamp(out, p, len, type->kind == PT_STAMPTZ);
    case PT_ARRAY:
        return put_array(out, type, p, len, depth);
    case PT_VECTOR:
        return put_vector(out, type, p, len, depth);
    case PT_RECORD:
        return put_record(out, type, p, len, depth);
    case PT_HSTORE:
        return put_hstore(out, p, len);
    default:
        return jt_string(out, p, len);
    }
}
