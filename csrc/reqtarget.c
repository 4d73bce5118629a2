#define _GNU_SOURCE
#include "reqtarget.h"

#include "reqbody.h"
#include "reqvalues.h"

#include <string.h>
#include <strings.h>

enum { MANY = 64 }; /* headers, from which on none is added: the HTTP server takes a hundred */

enum { IN_DOUBT = -1, NOT_SAID = -2 }; /* of the length of a body */

/* The end of the request's headers, or NULL. *body becomes the length that they announce, NOT_SAID
 * where it comes in chunks or the request is for another protocol, IN_DOUBT when it is not certain
 * where the body ends. *line_end: the CR of the first line. *lines: how many. */
static char *read_head(char *p, char *end, char **line_end, int64_t *body, int *lines)
{
    int lengths = 0;
    *line_end = NULL;
    *body = 0;
    *lines = 0;
    while (p < end) {
        char *lf = memchr(p, '\n', (size_t)(end - p));
        if (lf == NULL || lf == p || lf[-1] != '\r')
            return NULL;
        char *cr = lf - 1;
        size_t size = (size_t)(cr - p);
        ++*lines;
        if (*line_end == NULL) {
            *line_end = cr;
        } else if (size == 0) {
            return lf + 1;
        } else if (*p == ' ' || *p == '\t') {
            *body = IN_DOUBT;
        } else if ((*p | 32) == 'c' && size >= 14 && strncasecmp(p, "content-length", 14) == 0) {
            char *q = p + 14;
            int digits = 0;
            int64_t value = 0;
            if (*q != ':' || lengths++)
                *body = IN_DOUBT;
            for (q++; q < cr && (*q == ' ' || *q == '\t'); q++) {
            }
            for (; q < cr && *q >= '0' && *q <= '9' && digits < 18; q++, digits++)
                value = value * 10 + (*q - '0');
            for (; q < cr && (*q == ' ' || *q == '\t'); q++) {
            }
            if (q < cr || digits == 0)
                *body = IN_DOUBT;
            if (*body >= 0)
                *body = value;
        } else if (((*p | 32) == 't' && size >= 17 && strncasecmp(p, "transfer-encoding", 17) == 0)
                   || ((*p | 32) == 'u' && size >= 7 && strncasecmp(p, "upgrade", 7) == 0)) {
            if (*body != IN_DOUBT)
                *body = NOT_SAID;
        }
        p = lf + 1;
    }
    return NULL;
}

static int refused(unsigned char c)
{
    return c == '"' || c == '#' || c == '<' || c == '>' || c == '`' || c >= 0x7f;
}

/* Percent-encodes what would be refused between start and stop; n bytes from buf on are there.
 * Gives how many there are then. */
static ssize_t escape(char *buf, ssize_t n, size_t room, char *start, char *stop)
{
    static const char HEX[] = "0123456789ABCDEF";
    ssize_t more = 0;
    char *p;
    for (p = start; p < stop; p++)
        more += refused((unsigned char)*p) ? 2 : 0;
    if (more == 0 || (size_t)(n + more) > room)
        return n;
    memmove(stop + more, stop, (size_t)(buf + n - stop));
    char *out = stop + more;
    for (p = stop; p > start;) {
        unsigned char c = (unsigned char)*--p;
        if (refused(c)) {
            *--out = HEX[c & 15];
            *--out = HEX[c >> 4];
            *--out = '%';
        } else {
            *--out = (char)c;
        }
    }
    return n + more;
}

ssize_t ichi_stream_feed(ichi_stream *stream, char *buf, ssize_t n, size_t room)
{
    char *line_end, *after, *start, *stop;
    int64_t body;
    int lines;
    if (n <= 0 || stream->mode == ICHI_BLIND)
        return n;
    if (stream->mode == ICHI_BODY) {
        stream->body -= n;
        if (stream->body <= 0)
            stream->mode = stream->body == 0 ? ICHI_HEAD : ICHI_BLIND;
        return n;
    }
    stream->mode = ICHI_BLIND;
    after = read_head(buf, buf + n, &line_end, &body, &lines);
    if (after == NULL || body == IN_DOUBT || buf[0] < 'A' || buf[0] > 'Z')
        return n;
    start = memchr(buf, ' ', (size_t)(line_end - buf));
    stop = line_end - 9; /* " HTTP/1.1" */
    if (start == NULL || start >= stop || memcmp(stop, " HTTP/1.", 8) != 0)
        return n;
    if (body != NOT_SAID) {
        int64_t left = body - (buf + n - after);
        if (left >= 0) {
            stream->mode = left == 0 ? ICHI_HEAD : ICHI_BODY;
            stream->body = left;
        }
        body = left;
    }
    size_t tail = (size_t)(buf + n - after); /* of the body: it stays at the end */
    ssize_t size = escape(buf, n, room, start + 1, stop);
    if (lines < MANY)
        size = ichi_values_encode(buf, size, room, (size_t)(line_end + 2 - buf + (size - n)),
                                  (size_t)size - tail);
    if (body == 0 && tail != 0 && lines < MANY)
        return ichi_body_keep(buf, size, room, (size_t)size - tail);
    return size;
}

#if defined(__linux__) && defined(__LP64__)

#include "handover.h"

#include <link.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 65536

static ichi_stream streams[CONNECTIONS]; /* by descriptor; used by one thread at a time */
static volatile int ends;                /* beyond the highest descriptor that was accepted */
static int hands_over;                   /* no connection is shut down but by `shut_down` */

/* The library is told that the client has gone, and shuts the connection down before it closes its
 * descriptor: that would reach whoever has it now. */
static ssize_t receive(int fd, void *buf, size_t size, int flags)
{
    int known = fd >= 0 && fd < CONNECTIONS;
    if (known && streams[fd].mode == ICHI_GONE)
        return 0;
    ssize_t n = recv(fd, buf, size, flags);
    if (n <= 0 || flags != 0 || !known)
        return n;
    if (hands_over && streams[fd].mode == ICHI_FRESH && ichi_opens_socket(buf, (size_t)n)
        && ichi_hand_over(fd, buf, (size_t)n)) {
        streams[fd].mode = ICHI_GONE;
        streams[fd].port = 0;
        return 0;
    }
    return ichi_stream_feed(&streams[fd], buf, n, size);
}

static int shut_down(int fd, int how)
{
    if (fd >= 0 && fd < CONNECTIONS && streams[fd].mode == ICHI_GONE)
        return 0;
    return shutdown(fd, how);
}

static int accept_one(int listener, struct sockaddr *address, socklen_t *size, int flags)
{
    int fd = accept4(listener, address, size, flags);
    if (fd >= 0 && fd < CONNECTIONS) {
        int inet = address != NULL
                   && (address->sa_family == AF_INET || address->sa_family == AF_INET6);
        streams[fd].body = 0;
        streams[fd].mode = ICHI_FRESH;
        streams[fd].port = inet ? ntohs(((struct sockaddr_in *)address)->sin_port) : 0;
        if (fd >= ends)
            ends = fd + 1;
    }
    return fd;
}

int ichi_stream_find(uint16_t port, int from)
{
    for (int fd = from < 0 ? 0 : from; fd < ends; fd++)
        if (streams[fd].port == port && port != 0)
            return fd;
    return -1;
}

typedef struct {
    const char *name;
    ElfW(Addr) sealed, sealed_end; /* what the loader has made read-only */
    int accepts, receives, shuts;
} Search;

/* Lets an entry of a library's table of imported functions lead elsewhere. Where the loader has
 * sealed the table, it is sealed again; elsewhere its page may hold what the library writes to. */
static int redirect(const Search *search, ElfW(Addr) place, void *function)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *start = (char *)(place & ~(ElfW(Addr))(page - 1));
    int sealed = place >= search->sealed && place < search->sealed_end;
    if (sealed && mprotect(start, page, PROT_READ | PROT_WRITE) != 0)
        return 0;
    *(void **)place = function;
    if (sealed)
        mprotect(start, page, PROT_READ);
    return 1;
}

static void search(Search *search, ElfW(Addr) base, const ElfW(Rela) *relocation, size_t count,
                   const ElfW(Sym) *symbols, const char *names)
{
    for (; count > 0; count--, relocation++) {
        unsigned long type = ELF64_R_TYPE(relocation->r_info);
        /* GLOB_DAT and JUMP_SLOT of x86-64 and of aarch64 */
        if (type != 6 && type != 7 && type != 1025 && type != 1026)
            continue;
        const char *name = names + symbols[ELF64_R_SYM(relocation->r_info)].st_name;
        if (strcmp(name, "recv") == 0)
            search->receives += redirect(search, base + relocation->r_offset, (void *)receive);
        else if (strcmp(name, "accept4") == 0)
            search->accepts += redirect(search, base + relocation->r_offset, (void *)accept_one);
        else if (strcmp(name, "shutdown") == 0)
            search->shuts += redirect(search, base + relocation->r_offset, (void *)shut_down);
    }
}

static int visit(struct dl_phdr_info *info, size_t size, void *data)
{
    Search *wanted = data;
    ElfW(Addr) base = info->dlpi_addr;
    const ElfW(Dyn) *entry = NULL;
    const ElfW(Rela) *relocations[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    (void)size;
    if (info->dlpi_name == NULL || strstr(info->dlpi_name, wanted->name) == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type == PT_DYNAMIC) {
            entry = (const ElfW(Dyn) *)(base + part->p_vaddr);
        } else if (part->p_type == PT_GNU_RELRO) { /* whole pages: what is left over stays writable */
            ElfW(Addr) page = (ElfW(Addr))sysconf(_SC_PAGESIZE);
            wanted->sealed = (base + part->p_vaddr) & ~(page - 1);
            wanted->sealed_end = (base + part->p_vaddr + part->p_memsz) & ~(page - 1);
        }
    }
    for (; entry != NULL && entry->d_tag != DT_NULL; entry++) {
        /* the loader of glibc has made these addresses absolute, others have not */
        ElfW(Addr) at = entry->d_un.d_ptr < base ? base + entry->d_un.d_ptr : entry->d_un.d_ptr;
        switch (entry->d_tag) {
        case DT_RELA: relocations[0] = (const ElfW(Rela) *)at; break;
        case DT_RELASZ: bytes[0] = entry->d_un.d_val; break;
        case DT_JMPREL: relocations[1] = (const ElfW(Rela) *)at; break;
        case DT_PLTRELSZ: bytes[1] = entry->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const ElfW(Sym) *)at; break;
        case DT_STRTAB: names = (const char *)at; break;
        default: break;
        }
    }
    if (symbols != NULL && names != NULL)
        for (int i = 0; i < 2; i++)
            if (relocations[i] != NULL)
                search(wanted, base, relocations[i], bytes[i] / sizeof(ElfW(Rela)), symbols,
                       names);
    return 1;
}

int ichi_stream_install(const char *name)
{
    Search wanted = {name, 0, 0, 0, 0, 0};
    dl_iterate_phdr(visit, &wanted);
    hands_over = wanted.shuts > 0;
    return wanted.accepts > 0 && wanted.receives > 0;
}

#else

int ichi_stream_install(const char *name)
{
    (void)name;
    return 0;
}

int ichi_stream_find(uint16_t port, int from)
{
    (void)port;
    (void)from;
    return -1;
}

#endif
