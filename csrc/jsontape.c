#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "jsontape.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    tj_tape *t;
    const char *source, *p, *end;
} reader;

static uint32_t add(reader *r)
{
    tj_tape *t = r->t;
    if (t->used == t->cap) {
        uint32_t cap = t->cap ? t->cap * 2 : 64;
        tj_node *nodes = realloc(t->nodes, cap * sizeof(tj_node));
        if (nodes == NULL)
            return UINT32_MAX;
        t->nodes = nodes;
        t->cap = cap;
    }
    return t->used++;
}

static inline void blanks(reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t'))
        r->p++;
}

static int hex4(const char *p, unsigned *value)
{
    unsigned v = 0;
    int i;
    for (i = 0; i < 4; i++) {
        char c = p[i];
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned)(c - 'A' + 10);
        else
            return 0;
        v = v << 4 | digit;
    }
    *value = v;
    return 1;
}

/* Length of the UTF-8 sequence of two to four bytes at p, 0 when it is none. */
static int sequence(const unsigned char *p, const unsigned char *end)
{
    int size, i;
    if (p[0] < 0xC2 || p[0] > 0xF4)
        return 0;
    size = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (end - p < size)
        return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)
        || (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    for (i = 1; i < size; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    return size;
}

static char *put_code(char *o, unsigned c)
{
    if (c < 0x80) {
        *o++ = (char)c;
    } else if (c < 0x800) {
        *o++ = (char)(0xC0 | c >> 6);
        *o++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *o++ = (char)(0xE0 | c >> 12);
        *o++ = (char)(0x80 | (c >> 6 & 63));
        *o++ = (char)(0x80 | (c & 63));
    } else {
        *o++ = (char)(0xF0 | c >> 18);
        *o++ = (char)(0x80 | (c >> 12 & 63));
        *o++ = (char)(0x80 | (c >> 6 & 63));
        *o++ = (char)(0x80 | (c & 63));
    }
    return o;
}

/* The rest of a string with escapes; p is at the first backslash, `begin` behind the quote. */
static int escaped(reader *r, const char *begin, const char *p, const char **text, uint32_t *len)
{
    tj_tape *t = r->t;
    char *o, *start;
    unsigned code, low;
    if (t->arena == NULL) { /* an unescaped string is never longer than its source */
        t->arena = malloc((size_t)(r->end - r->source) + 1);
        if (t->arena == NULL)
            return TJ_NO_MEMORY;
    }
    start = o = t->arena + t->arena_used;
    memcpy(o, begin, (size_t)(p - begin));
    o += p - begin;
    for (;;) {
        unsigned char c;
        if (p >= r->end)
            return TJ_SYNTAX;
        c = (unsigned char)*p;
        if (c == '"')
            break;
        if (c < 0x20)
            return TJ_SYNTAX;
        if (c >= 0x80) {
            int size = sequence((const unsigned char *)p, (const unsigned char *)r->end);
            if (size == 0)
                return TJ_SYNTAX;
            memcpy(o, p, (size_t)size);
            o += size;
            p += size;
            continue;
        }
        if (c != '\\') {
            *o++ = (char)c;
            p++;
            continue;
        }
        if (r->end - p < 2)
            return TJ_SYNTAX;
        p += 2;
        switch (p[-1]) {
        case '"': case '\\': case '/':
            *o++ = p[-1];
            break;
        case 'b':
            *o++ = '\b';
            break;
        case 'f':
            *o++ = '\f';
            break;
        case 'n':
            *o++ = '\n';
            break;
        case 'r':
            *o++ = '\r';
            break;
        case 't':
            *o++ = '\t';
            break;
        case 'u':
            if (r->end - p < 4 || !hex4(p, &code))
                return TJ_SYNTAX;
            p += 4;
            if (code >= 0xDC00 && code < 0xE000)
                return TJ_SYNTAX;
            if (code >= 0xD800 && code < 0xDC00) {
                if (r->end - p < 6 || p[0] != '\\' || p[1] != 'u' || !hex4(p + 2, &low)
                    || low < 0xDC00 || low >= 0xE000)
                    return TJ_SYNTAX;
                p += 6;
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
            o = put_code(o, code);
            break;
        default:
            return TJ_SYNTAX;
        }
    }
    r->p = p + 1;
    t->arena_used = (size_t)(o - t->arena);
    *text = start;
    *len = (uint32_t)(o - start);
    return TJ_OK;
}

#define ONES 0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL

static int string(reader *r, const char **text, uint32_t *len)
{
    const char *begin = r->p + 1, *p = begin;
    for (;;) {
        unsigned char c;
        while (r->end - p >= 8) { /* eight plain ASCII bytes at a time */
            uint64_t w, quote, slash;
            memcpy(&w, p, 8);
            quote = w ^ (ONES * '"');
            slash = w ^ (ONES * '\\');
            if ((w | (w - ONES * 0x20) | ((quote - ONES) & ~quote) | ((slash - ONES) & ~slash))
                & HIGHS)
                break;
            p += 8;
        }
        if (p >= r->end)
            return TJ_SYNTAX;
        c = (unsigned char)*p;
        if (c == '"')
            break;
        if (c == '\\')
            return escaped(r, begin, p, text, len);
        if (c < 0x20)
            return TJ_SYNTAX;
        if (c < 0x80) {
            p++;
        } else {
            int size = sequence((const unsigned char *)p, (const unsigned char *)r->end);
            if (size == 0)
                return TJ_SYNTAX;
            p += size;
        }
    }
    *text = begin;
    *len = (uint32_t)(p - begin);
    r->p = p + 1;
    return TJ_OK;
}

static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static int slow_double(const char *begin, const char *end, double *value)
{
    char text[128], *copy = text;
    size_t n = (size_t)(end - begin);
    int bad;
    if (n >= sizeof text && (copy = malloc(n + 1)) == NULL)
        return TJ_NO_MEMORY;
    memcpy(copy, begin, n);
    copy[n] = 0;
    *value = PyOS_string_to_double(copy, NULL, NULL);
    bad = PyErr_Occurred() != NULL;
    if (bad)
        PyErr_Clear();
    if (copy != text)
        free(copy);
    return bad || *value - *value != 0 ? TJ_NUMBER : TJ_OK;
}

static int number(reader *r, tj_node *node)
{
    const char *begin = r->p, *p = begin, *end = r->end, *digits;
    int negative = 0, exponent = 0, whole = 1, count;
    uint64_t v = 0;
    int exact = 1;
    if (*p == '-') {
        negative = 1;
        p++;
    }
    digits = p;
    while (p < end && *p >= '0' && *p <= '9') {
        if (v > (UINT64_MAX - 9) / 10)
            exact = 0;
        else
            v = v * 10 + (uint64_t)(*p - '0');
        p++;
    }
    if (p == digits || (*digits == '0' && p - digits > 1))
        return TJ_SYNTAX;
    if (p < end && *p == '.') {
        const char *fraction = ++p;
        whole = 0;
        while (p < end && *p >= '0' && *p <= '9') {
            if (v > (UINT64_MAX - 9) / 10)
                exact = 0;
            else
                v = v * 10 + (uint64_t)(*p - '0');
            p++;
        }
        if (p == fraction)
            return TJ_SYNTAX;
        exponent = -(int)(p - fraction > 1000 ? 1000 : p - fraction);
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        int sign = 1, shown = 0;
        whole = 0;
        p++;
        if (p < end && (*p == '+' || *p == '-')) {
            sign = *p == '-' ? -1 : 1;
            p++;
        }
        digits = p;
        for (count = 0; p < end && *p >= '0' && *p <= '9'; p++, count++)
            if (shown < 10000)
                shown = shown * 10 + (*p - '0');
        if (p == digits)
            return TJ_SYNTAX;
        exponent += sign * shown;
    }
    r->p = p;
    if (whole) {
        node->type = TJ_INT;
        if (!exact || v > (uint64_t)INT64_MAX + (uint64_t)negative)
            return TJ_NUMBER;
        node->v.i = negative ? (int64_t)(0 - v) : (int64_t)v;
        return TJ_OK;
    }
    node->type = TJ_DOUBLE;
    if (exact && v <= 1ULL << 53 && exponent >= -22 && exponent <= 22) {
        double d = (double)v;
        d = exponent < 0 ? d / POWERS[-exponent] : d * POWERS[exponent];
        node->v.d = negative ? -d : d;
        return TJ_OK;
    }
    return slow_double(begin, p, &node->v.d);
}

static int by_key(const void *a, const void *b)
{
    const tj_node *x = *(const tj_node *const *)a, *y = *(const tj_node *const *)b;
    int found;
    if (x->key_len != y->key_len)
        return x->key_len < y->key_len ? -1 : 1;
    found = memcmp(x->key, y->key, x->key_len);
    if (found)
        return found;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Whether no two members of an object have the same name. */
static int check_twice(tj_tape *t, uint32_t object)
{
    tj_node *nodes = t->nodes;
    uint32_t count = nodes[object].len, end = nodes[object].next, i, j, n;
    const tj_node **sorted;
    int found = TJ_OK;
    if (count < 2)
        return TJ_OK;
    if (count <= 16) {
        for (i = object + 1; i < end; i = nodes[i].next)
            for (j = object + 1; j < i; j = nodes[j].next)
                if (nodes[i].key_len == nodes[j].key_len
                    && memcmp(nodes[i].key, nodes[j].key, nodes[i].key_len) == 0) {
                    t->at = i;
                    return TJ_TWICE;
                }
        return TJ_OK;
    }
    sorted = malloc(count * sizeof *sorted);
    if (sorted == NULL)
        return TJ_NO_MEMORY;
    for (i = object + 1, n = 0; i < end; i = nodes[i].next)
        sorted[n++] = &nodes[i];
    qsort(sorted, n, sizeof *sorted, by_key);
    for (i = 1; i < n && found == TJ_OK; i++)
        if (sorted[i]->key_len == sorted[i - 1]->key_len
            && memcmp(sorted[i]->key, sorted[i - 1]->key, sorted[i]->key_len) == 0) {
            t->at = (uint32_t)(sorted[i] - nodes);
            found = TJ_TWICE;
        }
    free(sorted);
    return found;
}

static int word(reader *r, const char *text, size_t n)
{
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, text, n) != 0)
        return TJ_SYNTAX;
    r->p += n;
    return TJ_OK;
}

static int value(reader *r, const char *key, uint32_t key_len, int depth)
{
    tj_tape *t = r->t;
    uint32_t index, count = 0;
    int found = TJ_OK;
    char open;
    if (t->used >= TJ_MOST_NODES)
        return TJ_MANY;
    index = add(r);
    if (index == UINT32_MAX)
        return TJ_NO_MEMORY;
    t->at = index;
    t->nodes[index].key = key;
    t->nodes[index].key_len = key_len;
    t->nodes[index].start = (uint32_t)(r->p - r->source);
    t->nodes[index].len = 0;
    if (r->p >= r->end)
        return TJ_SYNTAX;
    open = *r->p;
    switch (open) {
    case '"': {
        const char *text;
        uint32_t len;
        t->nodes[index].type = TJ_STRING;
        found = string(r, &text, &len);
        if (found)
            return found;
        t->nodes[index].v.text = text;
        t->nodes[index].len = len;
        break;
    }
    case '{': case '[':
        if (depth >= TJ_MOST_DEPTH)
            return TJ_DEEP;
        t->nodes[index].type = open == '{' ? TJ_OBJECT : TJ_ARRAY;
        r->p++;
        blanks(r);
        if (r->p < r->end && *r->p == (open == '{' ? '}' : ']')) {
            r->p++;
            break;
        }
        for (;;) {
            const char *name = NULL;
            uint32_t name_len = 0;
            if (open == '{') {
                if (r->p >= r->end || *r->p != '"')
                    return TJ_SYNTAX;
                found = string(r, &name, &name_len);
                if (found)
                    return found;
                blanks(r);
                if (r->p >= r->end || *r->p++ != ':')
                    return TJ_SYNTAX;
                blanks(r);
            }
            found = value(r, name, name_len, depth + 1);
            if (found)
                return found;
            count++;
            blanks(r);
            if (r->p >= r->end)
                return TJ_SYNTAX;
            if (*r->p == ',') {
                r->p++;
                blanks(r);
                continue;
            }
            if (*r->p++ != (open == '{' ? '}' : ']'))
                return TJ_SYNTAX;
            break;
        }
        t->nodes[index].len = count;
        break;
    case 't':
        t->nodes[index].type = TJ_TRUE;
        found = word(r, "true", 4);
        break;
    case 'f':
        t->nodes[index].type = TJ_FALSE;
        found = word(r, "false", 5);
        break;
    case 'n':
        t->nodes[index].type = TJ_NULL;
        found = word(r, "null", 4);
        break;
    default:
        if (open != '-' && (open < '0' || open > '9'))
            return TJ_SYNTAX;
        found = number(r, &t->nodes[index]);
    }
    if (found)
        return found;
    t->nodes[index].next = t->used;
    t->nodes[index].end = (uint32_t)(r->p - r->source);
    return t->nodes[index].type == TJ_OBJECT ? check_twice(t, index) : TJ_OK;
}

int tj_parse(tj_tape *t, const char *source, size_t len)
{
    reader r = {t, source, source, source + len};
    int found;
    memset(t, 0, sizeof *t);
    if (len > UINT32_MAX / 2)
        return TJ_MANY;
    blanks(&r);
    found = value(&r, NULL, 0, 0);
    if (found)
        return found;
    blanks(&r);
    return r.p == r.end ? TJ_OK : TJ_SYNTAX;
}

void tj_free(tj_tape *t)
{
    free(t->nodes);
    free(t->arena);
    memset(t, 0, sizeof *t);
}
