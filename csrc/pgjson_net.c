#include "pgjson.h"

static const char HEX[] = "0123456789abcdef";
enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 3 }; /* as the server numbers them in its binary form */

static char *write_ipv4(char *o, const unsigned char *a)
{
    int i;
    for (i = 0; i < 4; i++) {
        if (i)
            *o++ = '.';
        o = pj_digits(o, a[i]);
    }
    return o;
}

/* The longest run of at least two zero words becomes "::"; an embedded IPv4 address is dotted. */
static char *write_ipv6(char *o, const unsigned char *a)
{
    unsigned words[8];
    int i, best = -1, best_len = 1, run = 0;
    for (i = 0; i < 8; i++) {
        words[i] = pj_u16(a + 2 * i);
        run = words[i] ? 0 : run + 1;
        if (run > best_len) {
            best_len = run;
            best = i - run + 1;
        }
    }
    for (i = 0; i < 8; i++) {
        int shift;
        if (best >= 0 && i >= best && i < best + best_len) {
            if (i == best)
                *o++ = ':';
            continue;
        }
        if (i)
            *o++ = ':';
        if (i == 6 && best == 0 &&
            (best_len == 6 || (best_len == 7 && words[7] != 1) ||
             (best_len == 5 && words[5] == 0xffff)))
            return write_ipv4(o, a + 12);
        for (shift = 12; shift > 0 && words[i] >> shift == 0; shift -= 4)
            ;
        for (; shift >= 0; shift -= 4)
            *o++ = HEX[words[i] >> shift & 15];
    }
    if (best >= 0 && best + best_len == 8)
        *o++ = ':';
    return o;
}

int pj_inet(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char *o;
    int family, bits, is_cidr, size;
    if (len < 4)
        return PJ_MALFORMED;
    family = p[0];
    bits = p[1];
    is_cidr = p[2];
    size = p[3];
    if (len != 4 + size || size != (family == FAMILY_IPV4 ? 4 : 16) ||
        (family != FAMILY_IPV4 && family != FAMILY_IPV6))
        return PJ_MALFORMED;
    if (jb_room(out, 64))
        return PJ_NO_MEMORY;
    o = out->data + out->len;
    *o++ = '"';
    o = family == FAMILY_IPV4 ? write_ipv4(o, p + 4) : write_ipv6(o, p + 4);
    if (is_cidr || bits != 8 * size) {
        *o++ = '/';
        o = pj_digits(o, (uint64_t)bits);
    }
    *o++ = '"';
    out->len = (size_t)(o - out->data);
    return PJ_OK;
}

int pj_macaddr(jb_buf *out, const pj_codec *codec, const unsigned char *p, int len)
{
    char tmp[32];
    char *o = tmp;
    int i;
    if (len != 6 && len != 8)
        return PJ_MALFORMED;
    *o++ = '"';
    for (i = 0; i < len; i++) {
        if (i)
            *o++ = ':';
        *o++ = HEX[p[i] >> 4];
        *o++ = HEX[p[i] & 15];
    }
    *o++ = '"';
    return jb_put(out, tmp, (size_t)(o - tmp));
}
